// Verdicts of the reference grader on pairs of many kinds; both files were made by running it.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

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

// f1, gpqa and deterministic_random (make_rule_goldens.py).
TEST(Corpus, OtherRules) {
  const std::string path = FURLONG_TEST_DATA "/reward/rules.jsonl";
  std::ifstream file(path);
  std::map<std::string, int> rows;
  for (std::string line; std::getline(file, line);) {
    const Json row = parse_json(line, path);
    const std::string rule = row["rule"], response = row["response"];
    Label label = Label::none();
    if (const auto it = row.find("label"); it != row.end() && !it->is_null()) {
      label = it->is_string()           ? Label::string(*it)
              : it->is_boolean()        ? Label::boolean(*it)
              : it->is_number_integer() ? Label::integer(it->get<int64_t>())
                                        : Label::real(*it);
    }
    // The metadata as it stands in the file: the order of choices counts.
    const std::string metadata = parse_ordered_json(line, path).value("metadata", OrderedJson::object()).dump();
    const std::vector<int32_t> tokens = row.value("tokens", std::vector<int32_t>());
    const Score score = make_scorer(rule)->score(
        {.response = response, .label = label, .metadata = metadata, .tokens = tokens, .number = 0});
    ASSERT_TRUE(score.reward.has_value()) << line << score.error;
    EXPECT_EQ(*score.reward, row["reward"].get<double>()) << line;
    rows[rule]++;
  }
  EXPECT_EQ(rows, (std::map<std::string, int>{{"f1", 26}, {"gpqa", 61}, {"deterministic_random", 8}}));
}

TEST(Corpus, MathPairs) { EXPECT_EQ(check_corpus("math_pairs.jsonl"), 1283); }
TEST(Corpus, GeneratedPairs) { EXPECT_EQ(check_corpus("grader_pairs.jsonl"), 900); }

}  // namespace
}  // namespace furlong
