#include "reward/scorer.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace furlong {
namespace {

TEST(MakeScorer, UnknownNamesAreUsageErrors) {
  const auto message = [](const char* name) -> std::string {
    try {
      make_scorer(name);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Exit::usage);
      return error.what();
    }
    return {};
  };
  EXPECT_NE(message("deepscalar").find("did you mean deepscaler?"), std::string::npos);
  EXPECT_NE(message("boxed_mat").find("did you mean boxed_math?"), std::string::npos);
  for (const auto& name : scorer_names()) {
    EXPECT_NE(message("").find(name), std::string::npos);
    EXPECT_NE(make_scorer(name), nullptr);
    EXPECT_NE(make_scorer("boxed_" + name), nullptr);
  }
  EXPECT_FALSE(message(std::string(100000, 'x').c_str()).empty());
}

TEST(Scorer, LabelsThatCannotBeJudgedAreUnscored) {
  const Label bad[] = {Label::none(), Label::other()};
  for (const Label& label : bad) {
    for (const char* rule : {"deepscaler", "dapo"}) {
      const Score score = make_scorer(rule)->score("</think>Answer: \\boxed{42}", label);
      EXPECT_FALSE(score.reward.has_value()) << rule;
      EXPECT_NE(score.error.find("label"), std::string::npos) << rule;
      EXPECT_FALSE(score.acc.has_value());
    }
  }
  EXPECT_FALSE(make_scorer("math")->score("\\boxed{42}", Label::other()).reward.has_value());
  for (const char* text : {"forty-two", "", "inf", "nan", "1/2", "1e999"}) {
    const Score score = make_scorer("dapo")->score("Answer: 42", Label::string(text));
    EXPECT_FALSE(score.reward.has_value()) << text;
    EXPECT_NE(score.error.find(text), std::string::npos) << score.error;
  }
  // No box is no answer, whatever the label.
  EXPECT_EQ(make_scorer("deepscaler")->score("no box", Label::none()).reward, 0);
}

TEST(Scorer, MathTakesTheWholeTextAndNoFalsyLabel) {
  const auto math = make_scorer("math");
  EXPECT_EQ(math->score("\\boxed{42}", Label::string("42")).reward, 1);
  EXPECT_EQ(math->score("<think>\\boxed{42}</think>", Label::string("42")).reward, 1);
  EXPECT_EQ(math->score("\\boxed{41}", Label::string("42")).reward, 0);
  EXPECT_EQ(math->score("\\boxed{0}", Label::string("0")).reward, 1);
  EXPECT_EQ(math->score("\\boxed{0}", Label::integer(std::int64_t{0})).reward, 0);
  EXPECT_EQ(math->score("\\boxed{0.0}", Label::real(0.0)).reward, 0);
  EXPECT_EQ(math->score("\\boxed{}", Label::string("")).reward, 0);
  EXPECT_EQ(math->score("\\boxed{42}", Label::none()).reward, 0);
  EXPECT_EQ(math->score("\\boxed{42}", Label::integer(std::int64_t{42})).reward, 1);
  EXPECT_EQ(math->score("\\boxed{true}", Label::boolean(true)).reward, 1);
  EXPECT_EQ(math->score("\\boxed{42}", Label::string("so \\boxed{42}.")).reward, 1);
}

TEST(Scorer, GemmaMathTakesWhatFollowsTheChannel) {
  const auto gemma = make_scorer("gemma_math");
  EXPECT_EQ(gemma->score("\\boxed{42}", Label::string("42")).reward, 1);
  EXPECT_EQ(gemma->score("\\boxed{42}<channel|>\\boxed{41}", Label::string("42")).reward, 0);
  EXPECT_EQ(gemma->score("\\boxed{42}<channel|>none", Label::string("42")).reward, 0);
}

TEST(Scorer, BoxedPrefixShowsTheRuleTheBoxOnly) {
  EXPECT_EQ(make_scorer("boxed_dapo")->score("\\boxed{Answer: 42} then", Label::string("42")).reward, 1);
  EXPECT_EQ(make_scorer("boxed_dapo")->score("Answer: 42", Label::string("42")).reward, -1);
  EXPECT_EQ(make_scorer("boxed_deepscaler")->score("</think>\\boxed{42}", Label::string("42")).reward, 0);
}

TEST(Scorer, RandomRewardsAreThoseOfTheSamplesNumber) {
  const auto random = make_scorer("random");
  const Label none;
  int ones = 0;
  for (int64_t i = 0; i < 1000; i++) {
    const auto reward = random->score({.response = "", .label = none, .number = i}).reward;
    ASSERT_TRUE(reward.has_value());
    EXPECT_EQ(reward, random->score({.response = "x", .label = none, .number = i}).reward);
    ones += *reward == 1;
  }
  EXPECT_GT(ones, 440);
  EXPECT_LT(ones, 560);
  EXPECT_NE(random->score("x", none).error.find("random"), std::string::npos);
  EXPECT_NE(make_scorer("deterministic_random")->score("x", none).error.find("tokens"), std::string::npos);
  EXPECT_NE(make_scorer("f1")->score("x", none).error.find("there is no label"), std::string::npos);
}

TEST(Label, WritesNumbersAsPythonDoes) {
  EXPECT_EQ(Label::real(42).text, "42.0");
  EXPECT_EQ(Label::real(1e16).text, "1e+16");
  EXPECT_EQ(Label::integer(std::int64_t{-7}).text, "-7");
  EXPECT_EQ(Label::integer(std::uint64_t{18446744073709551615u}).text, "18446744073709551615");
  EXPECT_EQ(Label::boolean(false).text, "False");
}

}  // namespace
}  // namespace furlong
