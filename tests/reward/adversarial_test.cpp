// Answers made to break a grader: each gets a verdict, and the work behind it stays within its bound.
#include <gtest/gtest.h>

#include "reward/boxed.h"
#include "reward/deepscaler.h"
#include "reward/latex_text.h"
#include "reward/plain_normalize.h"
#include "reward/scorer.h"
#include "reward/symbolic.h"

namespace furlong::grader {
namespace {

std::string repeat(std::string_view text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

double grade(const std::string& answer, const char* label = "42") {
  return make_scorer("deepscaler")->score("</think>\\boxed{" + answer + "}", Label::string(label)).reward.value();
}

TEST(Adversarial, Nesting) {
  EXPECT_EQ(grade(repeat("{", 100000) + "42" + repeat("}", 100000)), 0);  // larger than any answer
  EXPECT_EQ(grade(repeat("{", 20000) + "42" + repeat("}", 20000)), 1);
  EXPECT_EQ(grade(repeat("{", 5000) + "\\pi" + repeat("}", 5000)), 0);
  EXPECT_EQ(grade(repeat("(", 30000) + "x" + repeat(")", 30000), "x"), 0);
  EXPECT_EQ(grade(repeat("(", 100) + "x+1" + repeat(")", 100), "1+x"), 1);
  EXPECT_EQ(grade(repeat("\\frac{", 5000) + "1" + repeat("}", 5000), "x"), 0);
  EXPECT_EQ(grade(repeat("\\begin{pmatrix}", 1000)), 0);
  EXPECT_EQ(grade(repeat("\\c{", 60) + "d" + repeat("}", 60), "x"), 0);  // each accent would double the text
  EXPECT_EQ(grade(repeat("{", 100000)), 0);
  EXPECT_EQ(grade(repeat("-", 9000) + "x", "x"), 1);
  EXPECT_EQ(grade(repeat("\\boxed{", 100000) + "42" + repeat("}", 100000)), 1);
}

TEST(Adversarial, Sizes) {
  EXPECT_EQ(grade(std::string(1 << 20, 'x')), 0);
  EXPECT_EQ(grade("42" + std::string(1 << 20, ' ')), 1);
  EXPECT_EQ(grade(std::string(1 << 20, '7')), 0);
  EXPECT_EQ(grade(std::string(100000, '7'), "x"), 0);
  EXPECT_EQ(grade("4" + std::string(60000, ' ') + "2"), 1);
  EXPECT_EQ(grade(repeat("day", 20000) + "42"), 1);
  EXPECT_EQ(grade(std::string(60000, '0') + "42"), 1);
  EXPECT_EQ(grade(repeat("\\", 60001)), 0);
  const std::string same(1 << 20, 'y');
  EXPECT_TRUE(answers_agree(same, same + " "));
  EXPECT_EQ(make_scorer("dapo")->score("Answer: " + std::string(1 << 20, '$'), Label::string("1")).reward, -1);
}

TEST(Adversarial, Characters) {
  EXPECT_EQ(grade("４２"), 1);
  EXPECT_EQ(grade("٤٢"), 1);
  EXPECT_EQ(grade("\\mathbf{x}", "x"), 0);
  EXPECT_EQ(grade("42\xFF"), 0);
  EXPECT_EQ(grade("\xC3\x28\xA0", "\xC3\x28\xA0"), 1);
  EXPECT_EQ(grade(std::string("4\0"
                              "2",
                              3)),
            0);
  EXPECT_EQ(grade("\\input{/etc/passwd}", ""), 0);
  EXPECT_EQ(grade("__import__('os').system('true')", "0"), 0);
  EXPECT_EQ(make_scorer("dapo")->score("\x80\x80\x80", Label::string("1")).reward, -1);
}

TEST(Adversarial, WorkIsBounded) {
  const std::pair<std::string, std::string> cases[] = {
      {"9**9**9", "x"},
      {"9**9**9", "9**9**9+1"},
      {"2**3**4**5", "x"},
      {"x**1000000000", "x**1000000001"},
      {"(x+1)**1000000000", "(x+2)**1000000000"},
      {"(x+y+1)**60", "(x+y+2)**60"},
      {repeat("(x+y+1)", 50), repeat("(x+y+2)", 50)},
      {repeat("(x+1)/(y+2)+", 50) + "1", "x"},
      {"x+" + std::string(9000, '7'), "x+1"},
      {"x" + repeat("*" + std::string(400, '7'), 20), "x+1"},
      {repeat("sqrt(2+", 100) + "x" + repeat(")", 100), "x"},
      {"(sqrt(2)+sqrt(3)+sqrt(5)+sqrt(7)+sqrt(11)+sqrt(13)+sqrt(17)+sqrt(19)+sqrt(23))**60", "x"},
      {repeat("x**", 190) + "x", "x"},
      {repeat("1/x+", 4000) + "x", "x"},
      {repeat("1/(x+1)+", 2000) + "x", "x"},
      {"2000!*x", "1999!*x"},
      {"sqrt(123456789012345678901234567890123456789012345678901234567891)", "x"},
      {"10**0.5**1000000", "x"},
      {"1e308*1e308x", "x"},
  };
  for (const auto& [truth, answer] : cases) {
    SymbolicWork work;
    EXPECT_FALSE(symbolic_equal(truth, answer, &work)) << truth.substr(0, 60);
    EXPECT_LE(work.steps, max_symbolic_steps) << truth.substr(0, 60);
  }
  SymbolicWork work;
  EXPECT_TRUE(symbolic_equal("(x+1)**20", "(x+1)**19*(x+1)", &work));
  EXPECT_GT(work.steps, 1000u);  // the counter counts
}

TEST(LatexText, Conventions) {
  const std::pair<const char*, const char*> cases[] = {
      {R"(\frac{1}{2})", "1/2"},
      {R"(\sqrt[3]{2})", "√(2)"},
      {R"(\sqrt\pi)", "√(π)"},
      {R"(\frac\pi2)", "π/2"},
      {R"(1 \frac{1}{2})", "1 1/2"},
      {R"(\begin{pmatrix}1&2\\3&4\end{pmatrix})", "[ 1 2; 3 4 ]"},
      {R"(\operatorname{lcm}(1,2))", "lcm(1,2)"},
      {R"(\mathbb{R})", "ℝ"},
      {R"(\hat{x})", "x̂"},
      {R"(\~n)", "ñ"},
      {R"(\left\{1\right\})", "{1}"},
      {R"(x\le 3)", "x≤3"},
      {R"(\sin^2 x)", "sin^2 x"},
      {R"(\frac{1)", "%s/%s1"},
      {R"(\frac{1}{2)", "1/2"},
      {R"(}\frac12)", "1/2"},
      {R"(\unknown{5})", "5"},
      {R"(\mbox{ cm})", ""},
      {R"(\[x\])", "\n    x\n"},
      {R"(a~b--c)", "a\u00A0b–c"},
      {R"(\textcolor{red}{5})", "5"},
      {R"(\sqrt\frac{1}{2})", "√(%s/%s)12"},
  };
  for (const auto& [latex, text] : cases) EXPECT_EQ(latex_to_text(latex), text) << latex;
  EXPECT_FALSE(latex_to_text("\\sqrt").has_value());
  EXPECT_FALSE(latex_to_text(repeat("{", 1000)).has_value());
  EXPECT_FALSE(latex_to_text(repeat("\\frac{", 200)).has_value());  // each reads its rest twice
}

TEST(PlainNormalize, ThousandsCommas) {
  EXPECT_EQ(strip_thousands_commas("1,234"), "1234");
  EXPECT_EQ(strip_thousands_commas("1,234,567"), "1234567");
  EXPECT_EQ(strip_thousands_commas("1,000,000,000"), "1000,000000");
  EXPECT_EQ(strip_thousands_commas("12,34"), "12,34");
  EXPECT_EQ(strip_thousands_commas("(1,2,3)"), "(1,2,3)");
  EXPECT_EQ(strip_thousands_commas("1,2345"), "1,2345");
}

TEST(Boxed, Extraction) {
  EXPECT_EQ(last_boxed("a \\boxed{b{c}d} e"), "b{c}d");
  EXPECT_EQ(last_boxed_command("a \\boxed 4 {b} e"), "\\boxed 4 {b}");
  EXPECT_FALSE(last_boxed("\\boxed 4 {b}").has_value());
  EXPECT_FALSE(last_boxed("\\boxed{b").has_value());
  EXPECT_FALSE(last_boxed("nothing").has_value());
  EXPECT_FALSE(after_thought("nothing").has_value());
  EXPECT_EQ(after_thought("a</think>b</think>c"), "c");
  EXPECT_EQ(after_thought("a###Responseb###Responsec"), "b");
}

}  // namespace
}  // namespace furlong::grader
