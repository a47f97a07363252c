#include "tokenizer/tokenizer.h"

#include "base/threads.h"
#include "fixtures.h"
#include "tokenizer/unicode.h"

namespace furlong {
namespace {

std::string decode_in_steps(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  IncrementalDecoder decoder(tokenizer, skip_special);
  std::string out;
  for (const int32_t id : ids) {
    const std::string part = decoder.push(id);
    EXPECT_EQ(Json(part).dump().empty(), false);  // dump() throws on a split character
    out += part;
  }
  return out + decoder.finish();
}

void check_rows(const Tokenizer& tokenizer, const Json& rows) {
  ASSERT_FALSE(rows.empty());
  for (const Json& row : rows) {
    const auto ids = row.at("ids").get<std::vector<int32_t>>();
    if (row.contains("text")) {
      EXPECT_EQ(tokenizer.encode(row.at("text").get<std::string>()), ids) << row.at("text");
    }
    EXPECT_EQ(tokenizer.decode(ids), row.at("decoded")) << Json(ids);
    EXPECT_EQ(decode_in_steps(tokenizer, ids, false), row.at("decoded")) << Json(ids);
    if (row.contains("skipped")) {
      EXPECT_EQ(tokenizer.decode(ids, true), row.at("skipped")) << Json(ids);
      EXPECT_EQ(decode_in_steps(tokenizer, ids, true), row.at("skipped")) << Json(ids);
    }
  }
}

// The Qwen3 tokenizer with the part of its vocabulary that the rows reach, and 1200 merges they need not.
TEST(Tokenizer, Qwen3Goldens) {
  check_rows(Tokenizer::load(data_path("qwen3_reduced.json")), data_json("golden_qwen3.json"));
}

TEST(Tokenizer, TinyGoldens) {
  const Tokenizer tokenizer = Tokenizer::load(data_path("tiny.json"));
  const Json golden = data_json("golden_tiny.json");
  check_rows(tokenizer, golden.at("rows"));
  check_rows(tokenizer, golden.at("decodings"));
}

TEST(Tokenizer, PatternComesFromTheFile) {
  const Json golden = data_json("golden_tiny.json");
  const Tokenizer tokenizer = edited_tiny(
      [&](Json& json) { json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = golden.at("mark_pattern"); });
  check_rows(tokenizer, golden.at("mark_rows"));
}

// Added tokens that overlap, that are looked for after NFC and that are no spelling; GPT-2's own split; a Sequence.
TEST(Tokenizer, VariantGoldens) {
  const Json variant = data_json("golden_tiny.json").at("variant");
  const Tokenizer tokenizer = edited_tiny([&](Json& json) {
    for (const char* key : {"added_tokens", "pre_tokenizer", "normalizer"}) json[key] = variant.at(key);
  });
  check_rows(tokenizer, variant.at("rows"));
}

TEST(Tokenizer, MergesAsTextAreThePairs) {
  const Tokenizer pairs = Tokenizer::load(data_path("tiny.json"));
  const Tokenizer text = edited_tiny([](Json& json) {
    Json lines = Json::array({"#version: 0.2"});
    for (const Json& pair : json["model"]["merges"]) {
      lines.push_back(pair[0].get<std::string>() + " " + pair[1].get<std::string>());
    }
    json["model"]["merges"] = lines;
  });
  const std::string sample = "How many clips did Natalia sell altogether in April and May?";
  EXPECT_EQ(pairs.encode(sample), text.encode(sample));
  EXPECT_LT(pairs.encode(sample).size(), 40u);
}

TEST(Tokenizer, IgnoreMergesTakesWholePieces) {
  for (const bool ignore : {false, true}) {
    const Tokenizer tokenizer = edited_tiny([&](Json& json) {
      json["model"]["vocab"]["Ġqqz"] = 501;
      json["model"]["ignore_merges"] = ignore;
    });
    const std::vector<int32_t> whole = {501}, parts = {220, 80, 80, 89};
    EXPECT_EQ(tokenizer.encode(" qqz"), ignore ? whole : parts);
  }
}

TEST(Tokenizer, NullNormalizerKeepsText) {
  const Tokenizer tokenizer = edited_tiny([](Json& json) { json["normalizer"] = nullptr; });
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("e\u0301")), "e\u0301");
  EXPECT_EQ(Tokenizer::load(data_path("tiny.json")).decode(tokenizer.encode("e\u0301")), "e\u0301");
}

TEST(Tokenizer, Lookups) {
  const Tokenizer tokenizer = Tokenizer::load(data_path("qwen3_reduced.json"));
  EXPECT_EQ(tokenizer.vocab_size(), 151669);
  EXPECT_EQ(tokenizer.token_id("<|im_end|>"), 151645);
  EXPECT_EQ(tokenizer.token_id("Ġ"), 220);
  EXPECT_EQ(tokenizer.token_id("no such token"), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(151645));
  EXPECT_FALSE(tokenizer.is_special(151667));  // <think>
  EXPECT_FALSE(tokenizer.is_special(220));
  EXPECT_FALSE(tokenizer.is_special(-1));
  EXPECT_EQ(tokenizer.token_text(220), " ");
  EXPECT_EQ(tokenizer.token_bytes(149), "\xD9");
  EXPECT_EQ(tokenizer.token_text(149), "\uFFFD");
  EXPECT_TRUE(tokenizer.contains(0));
  EXPECT_FALSE(tokenizer.contains(151642));  // a gap of the reduced vocabulary
  EXPECT_FALSE(tokenizer.contains(151669));
  EXPECT_FALSE(tokenizer.contains(-1));
}

TEST(Tokenizer, LoadsFromFolder) {
  const std::string folder = testing::TempDir() + "tokenizer_folder";
  make_directories(folder);
  write_file_atomic(folder + "/tokenizer.json", read_file(data_path("tiny.json")));
  EXPECT_EQ(Tokenizer::load(folder).vocab_size(), 501);
}

TEST(Tokenizer, InvalidUtf8IsReplaced) {
  const Tokenizer tokenizer = Tokenizer::load(data_path("tiny.json"));
  EXPECT_EQ(tokenizer.encode("a\xFF\xE2\x82z"), tokenizer.encode("a\uFFFD\uFFFDz"));
  EXPECT_EQ(tokenizer.encode("\xF0\x9F"), tokenizer.encode("\uFFFD"));
}

TEST(Tokenizer, LongRuns) {
  const Tokenizer tokenizer = Tokenizer::load(data_path("qwen3_reduced.json"));
  constexpr size_t size = 1 << 20;
  for (const std::string unit :
       {"a", " ", "\n", "!", "7", "<", "\n ", "\u0301\u0323", "<|im_end|>", "\U0001F600", "\xF0"}) {
    std::string text = unit == "\u0301\u0323" ? "a" : "";
    while (text.size() < size) text += unit;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)) == nfc(repair_utf8(text)), true) << unit;
  }
}

TEST(Tokenizer, ThreadsShareOne) {
  const Tokenizer tokenizer = Tokenizer::load(data_path("tiny.json"));
  std::string text;
  for (int i = 0; i < 200; i++)
    text += "Weng earns $12 an hour for babysitting. <think>12/60</think> caf\u00e9 e\u0301";
  const std::vector<int32_t> expected = tokenizer.encode(text);
  std::vector<int> equal(200);
  ThreadPool pool(4);
  pool.parallel(200, [&](int64_t i) { equal[static_cast<size_t>(i)] = tokenizer.encode(text) == expected; });
  EXPECT_EQ(equal, std::vector<int>(200, 1));
}

TEST(IncrementalDecoder, HoldsIncompleteCharacters) {
  const Tokenizer tokenizer = Tokenizer::load(data_path("tiny.json"));
  const std::vector<int32_t> smile = tokenizer.encode("\U0001F600");
  ASSERT_EQ(smile.size(), 4u);
  IncrementalDecoder decoder(tokenizer);
  for (size_t i = 0; i < 3; i++) EXPECT_EQ(decoder.push(smile[i]), "");
  EXPECT_EQ(decoder.push(smile[3]), "\U0001F600");
  EXPECT_EQ(decoder.push(smile[0]), "");
  EXPECT_EQ(decoder.push(smile[1]), "");
  EXPECT_EQ(decoder.push(*tokenizer.token_id("a")), "\uFFFDa");  // one U+FFFD for both bytes
  EXPECT_EQ(decoder.push(smile[2]), "\uFFFD");                   // a continuation byte can begin nothing
  EXPECT_EQ(decoder.push(smile[0]), "");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
  EXPECT_EQ(decoder.finish(), "");
}

}  // namespace
}  // namespace furlong
