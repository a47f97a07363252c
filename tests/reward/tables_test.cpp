// The behaviour of the rules row by row, as observed on the reference grader.
#include <gtest/gtest.h>

#include "reward/scorer.h"

namespace furlong {
namespace {

struct Row {
  const char* answer;  // what follows </think>, or the whole response
  const char* label;
  double reward;
};

constexpr Row deepscaler_rows[] = {
    {R"(\boxed{42})", R"(42)", 1},
    {R"(\boxed{42.0})", R"(42)", 1},
    {R"(\boxed{042})", R"(42)", 1},
    {R"(\boxed{+42})", R"(42)", 1},
    {R"(\boxed{42.})", R"(42)", 1},
    {R"(\boxed{41.99999999})", R"(42)", 1},
    {R"(\boxed{42.5})", R"(42)", 0},
    {R"(\boxed{41.9999})", R"(42)", 0},
    {R"(\boxed{1,000})", R"(1000)", 1},
    {R"(\boxed{1{,}000})", R"(1000)", 1},
    {R"(\boxed{1\,000})", R"(1000)", 0},
    {R"(\boxed{1,\!000})", R"(1000)", 1},
    {R"(\boxed{1 000})", R"(1000)", 1},
    {R"(\boxed{12,34})", R"(1234)", 0},
    {R"(\boxed{1e3})", R"(1000)", 1},
    {R"(\boxed{1_000})", R"(1000)", 1},
    {R"(\boxed{\$42})", R"(42)", 1},
    {R"(\boxed{42\%})", R"(42)", 1},
    {R"(\boxed{42\%})", R"(0.42)", 0},
    {R"(\boxed{42^{\circ}})", R"(42)", 1},
    {R"(\boxed{42\text{ cm}})", R"(42)", 1},
    {R"(\boxed{42\text{cm}})", R"(42)", 1},
    {R"(\boxed{42 \text{ apples}})", R"(42)", 1},
    {R"(\boxed{42 apples})", R"(42)", 0},
    {R"(\boxed{42\text{ m}\text{ s}})", R"(42)", 0},
    {R"(\boxed{7 kilometers})", R"(7)", 0},
    {R"(\boxed{x=42})", R"(42)", 1},
    {R"(\boxed{mn=42})", R"(42)", 1},
    {R"(\boxed{xyz=42})", R"(42)", 0},
    {R"(\boxed{a=b=42})", R"(42)", 0},
    {R"(\boxed{6*7})", R"(42)", 0},
    {R"(\boxed{\frac{84}{2}})", R"(42)", 0},
    {R"(\boxed{2^{10}})", R"(1024)", 0},
    {R"(\boxed{10!})", R"(3628800)", 0},
    {R"(\boxed{2\times 10^6})", R"(2000000)", 0},
    {R"(\boxed{\log_2 8})", R"(3)", 0},
    {R"(\boxed{(42)})", R"(42)", 1},
    {R"(\boxed{(42]})", R"(42)", 1},
    {R"(\boxed{((42))})", R"(42)", 0},
    {R"(\boxed{{42}})", R"(42)", 1},
    {R"(\boxed{})", R"(42)", 0},
    {R"(\boxed{ })", R"( )", 1},
    {R"(\boxed 42)", R"(42)", 0},
    {R"(\boxed {42})", R"(42)", 0},
    {R"(\fbox{42})", R"(42)", 0},
    {R"(\boxed{42)", R"(42)", 0},
    {R"(\boxed{41}\boxed{42})", R"(42)", 1},
    {R"(\boxed{42}\boxed{41})", R"(42)", 0},
    {R"(\boxed{\boxed{42}})", R"(42)", 1},
    {R"(\boxed{42} … \boxed)", R"(42)", 0},
    {R"(\boxed{9007199254740993})", R"(9007199254740992)", 1},
    {R"(\boxed{-0})", R"(0)", 1},
    {R"(\boxed{42}<|im_end|>)", R"(42)", 1},
    {R"(\boxed{42})", R"(… \boxed{42}.)", 1},
    {R"(\boxed{42})", R"(\boxed{})", 0},
    {R"(\boxed{0.5})", R"(\frac{1}{2})", 1},
    {R"(\boxed{2/4})", R"(1/2)", 0},
    {R"(\boxed{.5})", R"(\frac{1}{2})", 1},
    {R"(\boxed{0.333})", R"(\frac{1}{3})", 0},
    {R"(\boxed{1\frac{1}{2}})", R"(\frac{3}{2})", 1},
    {R"(\boxed{-\frac{1}{2}})", R"(\frac{-1}{2})", 1},
    {R"(\boxed{\sqrt{8}})", R"(2\sqrt{2})", 1},
    {R"(\boxed{\frac{1}{\sqrt2}})", R"(\frac{\sqrt{2}}{2})", 1},
    {R"(\boxed{(x+1)^2})", R"(x^2+2x+1)", 1},
    {R"(\boxed{x+y+z})", R"(z+y+x)", 0},
    {R"(\boxed{(0.5,1)})", R"((\frac{1}{2},1))", 1},
    {R"(\boxed{[1,2]})", R"((1,2))", 0},
    {R"(\boxed{2,1})", R"(1,2)", 0},
    {R"(\boxed{1, 2})", R"(1 or 2)", 1},
    {R"(\boxed{A})", R"((A))", 1},
    {R"(\boxed{\text{Yes}})", R"(yes)", 1},
    {R"(\boxed{\frac{3}{4}x})", R"(\frac{3x}{4})", 0},
    {R"(\boxed{0.75x})", R"(\frac{3x}{4})", 1},
};

TEST(DeepscalerTable, EveryRow) {
  const auto scorer = make_scorer("deepscaler");
  for (const Row& row : deepscaler_rows) {
    const Score score = scorer->score(std::string("<think>thought</think>") + row.answer, Label::string(row.label));
    EXPECT_EQ(score.reward, row.reward) << row.answer << " against " << row.label;
    EXPECT_TRUE(score.error.empty()) << score.error;
  }
}

TEST(DeepscalerTable, LabelsThatAreNumbers) {
  const auto scorer = make_scorer("deepscaler");
  EXPECT_EQ(scorer->score(R"(</think>\boxed{42})", Label::real(42.0)).reward, 1);
  EXPECT_EQ(scorer->score(R"(</think>\boxed{42})", Label::integer(std::int64_t{42})).reward, 1);
  EXPECT_EQ(scorer->score(R"(</think>\boxed{0})", Label::integer(std::int64_t{0})).reward, 1);
  EXPECT_EQ(scorer->score(R"(</think>\boxed{43})", Label::integer(std::int64_t{42})).reward, 0);
  EXPECT_EQ(scorer->score(R"(</think>\boxed{100000000000000000000})", Label::real(1e20)).reward, 1);
  EXPECT_EQ(scorer->score(R"(</think>\boxed{42})", Label::string("")).reward, 0);
}

constexpr Row whole_responses[] = {
    {R"(<think>\boxed{42}</think>)", "42", 0},
    {R"(\boxed{42})", "42", 0},
    {R"(a</think>\boxed{41}</think>\boxed{42})", "42", 1},
    {R"(###Response \boxed{42})", "42", 1},
    {R"(###Response \boxed{41} ###Response \boxed{42})", "42", 0},
};

TEST(DeepscalerTable, WholeResponses) {
  const auto scorer = make_scorer("deepscaler");
  for (const Row& row : whole_responses)
    EXPECT_EQ(scorer->score(row.answer, Label::string(row.label)).reward, row.reward) << row.answer;
}

constexpr Row dapo_rows[] = {
    {"Answer: 42", "42", 1},         {R"(Answer: \boxed{42})", "42", 1},
    {"Answer: $42$", "42", 1},       {"Answer: 41\nAnswer: 42", "42", 1},
    {"Answer: x = 42", "42", 1},     {"Answer: 42 dollars", "42", 1},
    {"Answer: \n42", "42", 1},       {R"(\boxed{42})", "42", -1},
    {"The answer is 42", "42", -1},  {"Answer: 42.", "42", -1},
    {"Answer: 42.0", "42", -1},      {"Answer: 042", "42", -1},
    {"Answer: **42**", "42", -1},    {"Answer: 84/2", "42", -1},
    {"Answer: 42 apples", "42", -1}, {"Answer: {42}", "42", -1},
    {"Answer: 42", "42.9", 1},
};

TEST(DapoTable, EveryRow) {
  const auto scorer = make_scorer("dapo");
  for (const Row& row : dapo_rows) {
    const Score score = scorer->score(row.answer, Label::string(row.label));
    EXPECT_EQ(score.reward, row.reward) << row.answer;
    EXPECT_EQ(score.acc, row.reward > 0) << row.answer;
  }
}

TEST(DapoTable, OnlyTheLast300CharactersCount) {
  const auto scorer = make_scorer("dapo");
  const Label label = Label::string("42");
  EXPECT_EQ(scorer->score("Answer: 42" + std::string(300, '.'), label).reward, -1);
  EXPECT_EQ(scorer->score("Answer: 42\n" + std::string(289, '.'), label).reward, 1);
  EXPECT_EQ(scorer->score("Answer: 42\n" + std::string(290, '.'), label).reward, -1);
  std::string wide;
  for (int i = 0; i < 289; ++i) wide += "\u4E16";  // characters, not bytes
  EXPECT_EQ(scorer->score("Answer: 42\n" + wide, label).reward, 1);
  EXPECT_EQ(scorer->score("Answer: 42\n" + wide + "\u4E16", label).reward, -1);
}

TEST(DapoTable, Predictions) {
  const auto scorer = make_scorer("dapo");
  const auto pred = [&](const char* response) { return scorer->score(response, Label::string("42")).pred; };
  EXPECT_EQ(pred("no such line"), "[INVALID]");
  EXPECT_EQ(pred(R"(ANSWER : the area = \frac12 \text{ cm})"), R"(\frac{1}{2})");
  EXPECT_EQ(pred("answer: 1,234,567"), "1234567");
  EXPECT_EQ(pred("Answer: It is $x$ or $y$"), "x");
  EXPECT_EQ(pred(R"(Answer: \sqrt3)"), R"(\sqrt{3})");
  EXPECT_EQ(pred("Answer: \n"), "");
  EXPECT_EQ(pred("Answer:"), "[INVALID]");
}

}  // namespace
}  // namespace furlong
