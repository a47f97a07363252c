// Verdicts of the reference grader on pairs of many kinds; both files were made by running it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/json.h"
#include "reward/scorer.h"

namespace furlong {
namespace {

int check_corpus(const std::string& name) {
  const auto deepscaler = make_scorer("deepscaler"), dapo = make_scorer("dapo");
  const std::string path = std::string(FURLONG_TEST_DATA) + "/reward/" + name;
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  int rows = 0;
  for (std::string line; std::getline(file, line);) {
    ++rows;
    const Json row = parse_json(line, fmt::format("{}:{}", path, rows));
    const std::string response = row.at("response");
    const Label label = Label::string(row.at("label"));
    EXPECT_EQ(deepscaler->score(response, label).reward, row.at("deepscaler").get<double>()) << line;
    const Score score = dapo->score(response, label);
    if (row.at("dapo").is_null()) {
      EXPECT_FALSE(score.reward.has_value()) << line;
      EXPECT_FALSE(score.error.empty()) << line;
    } else {
      EXPECT_EQ(score.reward, row.at("dapo").at("score").get<double>()) << line;
      EXPECT_EQ(score.acc, row.at("dapo").at("acc").get<bool>()) << line;
      EXPECT_EQ(score.pred, row.at("dapo").at("pred").get<std::string>()) << line;
    }
  }
  return rows;
}

TEST(Corpus, MathPairs) { EXPECT_EQ(check_corpus("math_pairs.jsonl"), 1283); }
TEST(Corpus, GeneratedPairs) { EXPECT_EQ(check_corpus("grader_pairs.jsonl"), 900); }

}  // namespace
}  // namespace furlong
