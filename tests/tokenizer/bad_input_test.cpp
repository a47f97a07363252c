// Files and ids that must be refused, each with an error that names the place.
#include "fixtures.h"
#include "tokenizer/split.h"
#include "tokenizer/tokenizer.h"

namespace furlong {
namespace {

void expect_refused(const std::vector<std::string>& pieces, const std::function<void(Json&)>& edit) {
  expect_error(Exit::input, pieces, [&] { edited_tiny(edit); });
}

TEST(BadTokenizer, Files) {
  expect_error(Exit::input, {"no_such_folder"}, [] { Tokenizer::load("/no_such_folder/x"); });
  const std::string whole = read_file(data_path("tiny.json"));
  for (const size_t size : {size_t{0}, size_t{1}, size_t{700}, whole.size() / 2, whole.size() - 2}) {
    expect_error(Exit::input, {"cut.json"}, [&] { Tokenizer::parse(whole.substr(0, size), "cut.json"); });
  }
  for (const char* text : {"[]", "3", "{}", "{\"model\":null}"}) {
    expect_error(Exit::input, {"odd.json"}, [&] { Tokenizer::parse(text, "odd.json"); });
  }
}

TEST(BadTokenizer, Vocabulary) {
  expect_refused({"model.vocab", "the id 5", "twice"}, [](Json& j) { j["model"]["vocab"]["twice"] = 5; });
  expect_refused({"model.vocab", "-1"}, [](Json& j) { j["model"]["vocab"]["x1"] = -1; });
  expect_refused({"model.vocab", "1.5"}, [](Json& j) { j["model"]["vocab"]["x1"] = 1.5; });
  expect_refused({"model.vocab", "18446744073709551615"}, [](Json& j) { j["model"]["vocab"]["x1"] = ~uint64_t{0}; });
  expect_refused({"model.vocab", "4000000000"}, [](Json& j) { j["model"]["vocab"]["x1"] = 4000000000; });
  expect_refused({"the id 4000000 is too large for a file"}, [](Json& j) { j["model"]["vocab"]["x1"] = 4000000; });
  expect_refused({"model.vocab", "0x41"}, [](Json& j) { j["model"]["vocab"].erase("A"); });
  expect_refused({"model.vocab"}, [](Json& j) { j["model"]["vocab"] = Json::array(); });
}

TEST(BadTokenizer, Merges) {
  expect_refused({"model.merges[0]", "zzqq"}, [](Json& j) { j["model"]["merges"][0] = {"zzqq", "a"}; });
  expect_refused({"model.merges[1]", "~~"}, [](Json& j) { j["model"]["merges"][1] = {"~", "~"}; });
  expect_refused({"model.merges[2]"}, [](Json& j) { j["model"]["merges"][2].push_back("c"); });
  expect_refused({"model.merges[3]"}, [](Json& j) { j["model"]["merges"][3] = "a b c"; });
  expect_refused({"model.merges[3]"}, [](Json& j) { j["model"]["merges"][3] = "ab"; });
  expect_refused({"model.merges[4]"}, [](Json& j) { j["model"]["merges"][4] = 7; });
  expect_refused({"model.merges"}, [](Json& j) { j["model"]["merges"] = "a b"; });
}

TEST(BadTokenizer, UnsupportedKinds) {
  expect_refused({"model.type", "Unigram"}, [](Json& j) { j["model"]["type"] = "Unigram"; });
  expect_refused({"model.dropout"}, [](Json& j) { j["model"]["dropout"] = 0.1; });
  expect_refused({"model.byte_fallback"}, [](Json& j) { j["model"]["byte_fallback"] = true; });
  expect_refused({"model.end_of_word_suffix"}, [](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; });
  expect_refused({"\"model\"", "novel"}, [](Json& j) { j["model"]["novel"] = 1; });
  expect_refused({"novel"}, [](Json& j) { j["novel"] = 1; });
  expect_refused({"normalizer.type", "NFKC"}, [](Json& j) { j["normalizer"]["type"] = "NFKC"; });
  expect_refused({"normalizer.normalizers[1].type", "Lowercase"}, [](Json& j) {
    j["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Lowercase"}}}}};
  });
  expect_refused({"pre_tokenizer.type", "Whitespace"}, [](Json& j) { j["pre_tokenizer"] = {{"type", "Whitespace"}}; });
  expect_refused({"pre_tokenizer"}, [](Json& j) { j["pre_tokenizer"] = nullptr; });
  expect_refused({"decoder.type", "Metaspace"}, [](Json& j) { j["decoder"]["type"] = "Metaspace"; });
  expect_refused({"decoder"}, [](Json& j) { j["decoder"] = nullptr; });
  expect_refused({"post_processor.type", "BertProcessing"}, [](Json& j) {
    j["post_processor"] = {{"type", "BertProcessing"}};
  });
  expect_refused({"post_processor.single"}, [](Json& j) {
    j["post_processor"] = {{"type", "TemplateProcessing"},
                           {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}};
  });
}

TEST(BadTokenizer, PreTokenizers) {
  const auto split = [](Json& j) -> Json& { return j["pre_tokenizer"]["pretokenizers"][0]; };
  const auto bytes = [](Json& j) -> Json& { return j["pre_tokenizer"]["pretokenizers"][1]; };
  const std::string at = "pre_tokenizer.pretokenizers";
  expect_refused({at + "[0].behavior", "Removed"}, [&](Json& j) { split(j)["behavior"] = "Removed"; });
  expect_refused({at + "[0].invert"}, [&](Json& j) { split(j)["invert"] = true; });
  expect_refused({at + "[0].pattern", "String"}, [&](Json& j) { split(j)["pattern"] = {{"String", " "}}; });
  expect_refused({at + "[0].type", "Digits"}, [&](Json& j) { split(j) = {{"type", "Digits"}}; });
  expect_refused({at + "[1].add_prefix_space"}, [&](Json& j) { bytes(j)["add_prefix_space"] = true; });
  expect_refused({at + "[0].type"}, [&](Json& j) { j["pre_tokenizer"]["pretokenizers"].erase(1); });
  expect_refused({at}, [&](Json& j) { j["pre_tokenizer"]["pretokenizers"] = Json::array(); });
  expect_refused({at + "[0].pattern.Regex"}, [&](Json& j) { split(j)["pattern"]["Regex"] = "(a"; });
}

TEST(BadTokenizer, AddedTokens) {
  for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
    expect_refused({"added_tokens[1]", flag}, [&](Json& j) { j["added_tokens"][1][flag] = true; });
  }
  expect_refused({"added_tokens[1]", "special", "missing"}, [](Json& j) { j["added_tokens"][1].erase("special"); });
  expect_refused({"added_tokens[1]", "the id 496"}, [](Json& j) { j["added_tokens"][1]["id"] = 496; });
  expect_refused({"added_tokens[1]", "the id 5 "}, [](Json& j) { j["added_tokens"][1]["id"] = 5; });
  expect_refused({"added_tokens[1]", "twice"}, [](Json& j) { j["added_tokens"][1] = j["added_tokens"][0]; });
  expect_refused({"added_tokens[1].content"}, [](Json& j) { j["added_tokens"][1]["content"] = ""; });
  expect_refused({"added_tokens[1].id", "in the vocabulary"}, [](Json& j) { j["added_tokens"][1]["content"] = "A"; });
}

TEST(BadTokenizer, TemplateWithoutTokensIsFine) {
  const Tokenizer tokenizer = edited_tiny([](Json& j) {
    j["post_processor"] = {{"type", "TemplateProcessing"}, {"single", {{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}}};
  });
  EXPECT_EQ(tokenizer.encode("A"), std::vector<int32_t>{32});
}

TEST(BadIds, AreNamed) {
  const Tokenizer tokenizer = Tokenizer::load(data_path("tiny.json"));
  for (const int32_t id : {-1, 501, 2147483647}) {
    const std::vector<int32_t> ids = {32, id};
    expect_error(Exit::input, {std::to_string(id), "500"}, [&] { (void)tokenizer.decode(ids); });
    expect_error(Exit::input, {std::to_string(id)}, [&] { IncrementalDecoder(tokenizer).push(id); });
  }
  const Tokenizer gaps = Tokenizer::load(data_path("qwen3_reduced.json"));
  const std::vector<int32_t> gap = {151642};
  expect_error(Exit::input, {"151642"}, [&] { (void)gaps.decode(gap); });
}

TEST(SplitPattern, RefusesWhatTheEnginesReadDifferently) {
  for (const char* pattern :
       {"\\w+",        "\\bx",   "\\h",  "\\v",        "\\x41", "\\1",     "\\p{Han}", "\\pL",  "\\p{L",
        "[[:alpha:]]", "[a&&b]", "[]a]", "(?<name>a)", "(?i)a", "(*UTF)a", "a{2}+",    "a{,2}", "a{2",
        "{",           "^a",     "a$",   ".",          "[a",    "\\",      "(?"}) {
    expect_error(Exit::input, {"the-file", "split pattern"}, [&] { SplitPattern(pattern, "the-file"); });
  }
  for (const char* pattern : {"", "a*", "(?=a)", "a|", "(a", "a)"}) {
    expect_error(Exit::input, {"the-file", "split pattern"}, [&] { SplitPattern(pattern, "the-file"); });
  }
}

TEST(SplitPattern, StopsAtItsStepLimit) {
  const SplitPattern pattern("(?:a|a)+b|c", "the-file");
  std::vector<std::string_view> pieces;
  expect_error(Exit::input, {"the-file", "byte 0", "60 bytes"}, [&] { pattern.split(std::string(60, 'a'), pieces); });
}

TEST(SplitPattern, SplitsMatchesAndGaps) {
  std::vector<std::string_view> pieces;
  SplitPattern("\\p{N}{2}|\\p{^L}(?=\\s)", "the-file").split("ab123, \u00e9!\u3000", pieces);
  EXPECT_EQ(pieces, (std::vector<std::string_view>{"ab", "12", "3", ",", " \u00e9", "!", "\u3000"}));
  pieces.clear();
  SplitPattern("\\s+|[^\\s]+", "the-file").split("a\u180e\u0085\u2028 b", pieces);  // U+180E is no white space
  EXPECT_EQ(pieces, (std::vector<std::string_view>{"a\u180e", "\u0085\u2028 ", "b"}));
}

}  // namespace
}  // namespace furlong
