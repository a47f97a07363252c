// The instructions of IFBench beside the package itself (tests/data/reward/make_ifbench.py), with small tables in the
// format of NLTK's.
#include "reward/ifbench.h"

#include <gtest/gtest.h>

#include <ctime>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "data_room/scratch.h"
#include "reward/ifbench_rules.h"
#include "reward/word_tokens.h"

namespace furlong {
namespace {

using namespace grader::ifbench;

const std::string nltk_data = FURLONG_TEST_DATA "/reward/nltk_data";

const Json& goldens() {
  static const Json json = read_json_file(FURLONG_TEST_DATA "/reward/ifbench.json");
  return json;
}

std::string metadata_of(const std::string& name, const Json& kwargs) {
  return Json{{"instruction_id_list", {name}}, {"kwargs", {kwargs}}}.dump();
}

Score score(const Scorer& rule, const std::string& response, const std::string& metadata) {
  const Label label = Label::none();
  return rule.score({.response = response, .label = label, .metadata = metadata});
}

// Why a row's metadata is refused.
std::string refusal(const Scorer& rule, const std::string& metadata) {
  return error_of(Exit::input, [&] { rule.check(metadata); });
}

TEST(IfBench, SentencesAndTokens) {
  const PunktModel model = read_punkt_model(nltk_data + "/tokenizers/punkt_tab/english");
  for (const Json& entry : goldens()["texts"]) {
    const Text text = decode(entry["text"].get<std::string>());
    std::vector<std::string> sentences, tokens;
    for (const View sentence : sentences_of(text, model)) {
      sentences.push_back(encode(sentence));
      for (const Text& token : treebank_tokens(sentence)) tokens.push_back(encode(token));
    }
    EXPECT_EQ(sentences, entry["sentences"]) << entry["text"];
    EXPECT_EQ(tokens, entry["tokens"]) << entry["text"];
  }
}

TEST(IfBench, Verdicts) {
  const auto rule = make_ifbench(nltk_data);
  std::set<std::string> seen;
  for (const Json& instruction : goldens()["instructions"]) {
    const std::string name = instruction["name"], verdicts = instruction["verdicts"];
    seen.insert(name);
    const std::string metadata = metadata_of(name, instruction["kwargs"]);
    for (size_t i = 0; i < verdicts.size(); i++) {
      const std::string text = goldens()["texts"][i]["text"];
      const Score found = score(*rule, text, metadata);
      ASSERT_TRUE(found.reward) << found.error;
      EXPECT_EQ(*found.reward, verdicts[i] == '1') << name << instruction["kwargs"] << Json(text);
    }
  }
  // None of the rules is without a golden.
  for (const auto list : {classic_instructions(), word_instructions(), format_instructions()}) {
    for (const Instruction& instruction : list)
      EXPECT_TRUE(seen.contains(std::string(instruction.name))) << instruction.name;
  }
}

TEST(IfBench, AllInstructionsOfARowCount) {
  const auto rule = make_ifbench("");
  const Json names = {"punctuation:no_comma", "count:numbers"};
  const std::string row = Json{{"instruction_id_list", names}, {"kwargs", {Json::object(), {{"N", 1}}}}}.dump();
  EXPECT_EQ(score(*rule, "one is 1", row).reward, 1);
  EXPECT_EQ(score(*rule, "one, is 1", row).reward, 0);
  EXPECT_EQ(score(*rule, "one is one", row).reward, 0);
  EXPECT_EQ(score(*rule, " \n", metadata_of("punctuation:no_comma", Json::object())).reward, 0);
  // One object for all, null for what an instruction does not take, and too short a list.
  const Json settings = {{"N", 1.0}, {"keyword", nullptr}};
  EXPECT_EQ(score(*rule, "1", Json{{"instruction_id_list", names}, {"kwargs", settings}}.dump()).reward, 1);
  EXPECT_EQ(score(*rule, "1", Json{{"instruction_id_list", names}, {"kwargs", {settings}}}.dump()).reward, 1);
}

TEST(IfBench, TheEndOfATurnIsNoText) {
  const auto rule = make_ifbench("");
  const std::string row = metadata_of("startend:quotation", Json::object());
  EXPECT_EQ(score(*rule, "\"yes\"<|im_end|>", row).reward, 1);
  EXPECT_EQ(score(*rule, "\"yes\"<|endoftext|>", row).reward, 1);
  EXPECT_EQ(score(*rule, "\"yes\" <|im_end|> no", row).reward, 0);
  EXPECT_EQ(score(*rule, "<|im_end|>", metadata_of("punctuation:no_comma", Json::object())).reward, 0);
}

TEST(IfBench, RefusesWhatItCannotJudge) {
  const auto with = make_ifbench(nltk_data), without = make_ifbench("");
  const struct {
    std::string metadata;
    const char* why;
  } rows[] = {
      {"{}", "instruction_id_list"},
      {"[]", "instruction_id_list"},
      {R"({"instruction_id_list": [7]})", "no name"},
      {metadata_of("count:nothing", {}), "count:nothing"},
      {metadata_of("count:nubmers", {}), "did you mean count:numbers"},
      {metadata_of("count:numbers", {{"n", 1}}), "\"N\" is missing"},
      {metadata_of("count:numbers", {{"N", nullptr}}), "\"N\" is missing"},
      {metadata_of("count:numbers", {{"N", -1}}), "a whole number from 0"},
      {metadata_of("count:numbers", {{"N", 1.5}}), "a whole number from 0"},
      {metadata_of("count:words_japanese", {{"N", 0}}), "a whole number from 1"},
      {metadata_of("format:list", {{"sep", " "}}), "text that is not blank"},
      {metadata_of("keywords:existence", {{"keywords", "a"}}), "a list of words"},
      {metadata_of("keywords:existence", {{"keywords", {"c++"}}}), "the marks of patterns"},
      {metadata_of("keywords:letter_frequency", {{"letter", "ab"}, {"let_frequency", 1}, {"let_relation", "at least"}}),
       "a letter"},
      {metadata_of("length_constraints:number_words", {{"num_words", 1}, {"relation", "above"}}), "\"at least\""},
      {metadata_of("language:response_language", {{"language", "en"}}), "--custom-rm-command"},
  };
  for (const auto& row : rows) {
    expect_contains(refusal(*with, row.metadata), row.why);
    const Score found = score(*with, "a response", row.metadata);
    EXPECT_FALSE(found.reward) << row.metadata;
    EXPECT_FALSE(found.error.empty());
  }
  const std::pair<const char*, const char*> needs[] = {
      {"ratio:sentence_type", "punkt_tab"},
      {"words:start_verb", "averaged_perceptron_tagger_eng"},
      {"words:odd_even_syllables", "syllapy/data.csv"},
  };
  for (const auto& [name, table] : needs) {
    with->check(metadata_of(name, {}));
    expect_contains(refusal(*without, metadata_of(name, {})), table);
  }
  expect_contains(refusal(*without, metadata_of("ratio:stop_words", {{"percentage", 1}})), "stopwords");
  without->check(metadata_of("words:vowel", {}));
}

TEST(IfBench, ReadsNoWrongTables) {
  expect_contains(error_of(Exit::input, [] { make_ifbench("/nonexistent"); }), "/nonexistent");
  for (const auto& [file, text] : std::vector<std::pair<std::string, std::string>>{
           {"tokenizers/punkt_tab/english/ortho_context.tab", "the\t12x\n"},
           {"tokenizers/punkt_tab/english/collocations.tab", "the\n"},
           {"syllapy/data.csv", "word,2\nother,x\n"},
           {"syllapy/data.csv", "word"},
           {"taggers/averaged_perceptron_tagger_eng/averaged_perceptron_tagger_eng.weights.json",
            "{\"bias\": {\"XX\": 1}}"},
           {"taggers/averaged_perceptron_tagger_eng/averaged_perceptron_tagger_eng.classes.json", "{}"}}) {
    const Scratch scratch;
    std::filesystem::copy(nltk_data, scratch.path("data"), std::filesystem::copy_options::recursive);
    scratch.file("data/" + file, text);
    expect_contains(error_of(Exit::input, [&] { make_ifbench(scratch.path("data")); }), file);
  }
}

// 100,000 characters of what is worst for a rule: each verdict takes a few passes over them, none their square.
TEST(IfBench, LongResponsesTakeNoLonger) {
  const auto rule = make_ifbench(nltk_data);
  constexpr size_t length = 100'000;
  for (const std::string piece :
       {"\n", " \n", ".", ". ", "a.", "?!", "'", "\"", "*", "[", "<<", "- ", ". . ", "(", "a", "Question "}) {
    std::string text;
    while (text.size() < length) text += piece;
    for (const Json& instruction : goldens()["instructions"]) {
      const auto start = std::clock();
      EXPECT_TRUE(score(*rule, text, metadata_of(instruction["name"], instruction["kwargs"])).reward);
      const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      EXPECT_LT(seconds, 0.2) << instruction["name"] << Json(piece);
    }
  }
}

}  // namespace
}  // namespace furlong
