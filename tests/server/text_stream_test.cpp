#include "server/text_stream.h"

#include <gtest/gtest.h>

#include <random>

namespace furlong {
namespace {

const Tokenizer& tiny() {
  static const Tokenizer tokenizer = Tokenizer::load(FURLONG_TEST_DATA "/tiny");
  return tokenizer;
}

constexpr int32_t c3 = 127, a9 = 102, e2 = 158, b82 = 224, ac = 105, im_end = 498;  // bytes of é and €

std::vector<std::string> pieces(const TextRules& rules, const std::vector<int32_t>& ids) {
  TextStream stream(tiny(), rules);
  std::vector<std::string> out;
  for (const int32_t id : ids) out.push_back(stream.push(id));
  out.push_back(stream.finish());
  return out;
}

TEST(TextStream, HoldsAnIncompleteCharacter) {
  EXPECT_EQ(pieces({}, {64, c3, a9, e2, b82, ac, 65}), (std::vector<std::string>{"a", "", "é", "", "", "€", "b", ""}));
  EXPECT_EQ(pieces({}, {64, e2, b82}), (std::vector<std::string>{"a", "", "", "\xEF\xBF\xBD"}));
}

TEST(TextStream, SpecialAndUnknownTokensHaveNoText) {
  EXPECT_EQ(pieces({}, {64, im_end, 511, 65}), (std::vector<std::string>{"a", "", "", "b", ""}));
  EXPECT_EQ(pieces({.skip_special = false}, {64, im_end, 65}), (std::vector<std::string>{"a", "<|im_end|>", "b", ""}));
}

TEST(TextStream, HoldsWhatMayBecomeAStop) {
  const TextRules rules{.stops = {"bcd", "xyz"}};
  EXPECT_EQ(pieces(rules, {64, 65, 66, 68, 65, 66}), (std::vector<std::string>{"a", "", "", "bce", "", "", "bc"}));
  EXPECT_EQ(pieces(rules, {64, 65, 66, 67, 68}), (std::vector<std::string>{"a", "", "", "", "", ""}));
  EXPECT_EQ(pieces({.stops = {"bcd"}, .include_stop = true}, {64, 65, 66, 67, 68}),
            (std::vector<std::string>{"a", "", "", "bcd", "", ""}));
  // A stop within a character's bytes, and one inside a longer token.
  EXPECT_EQ(pieces({.stops = {"é"}}, {64, c3, a9, 65}), (std::vector<std::string>{"a", "", "", "", ""}));
  EXPECT_EQ(pieces({.stops = {"n"}}, {300, 64}), (std::vector<std::string>{"i", "", ""}));  // "ing"
}

TEST(TextStream, NamesTheStopThatComesFirst) {
  const TextRules rules{.stops = {"cd", "bc"}};
  TextStream stream(tiny(), rules);
  std::string text;
  for (const int32_t id : {64, 65, 66, 67}) text += stream.push(id);
  EXPECT_EQ(text, "a");
  ASSERT_NE(stream.matched(), nullptr);
  EXPECT_EQ(*stream.matched(), "bc");
}

// The text never depends on how it was cut, and the engine's rule ends a response with the very token in which the
// stream finds the stop.
TEST(TextStream, AgreesWithTheEnginesRule) {
  std::mt19937 random(7);
  int64_t stopped = 0;
  for (int trial = 0; trial < 3000; trial++) {
    const bool skip = trial % 2 == 0;
    std::vector<int32_t> ids(40);
    const std::vector<int32_t> few = {64, 65, 66, c3, a9, e2, b82, ac, 300, 259, im_end, 511, 499};
    for (int32_t& id : ids) {
      id = trial % 3 == 0 ? static_cast<int32_t>(random() % 512) : few[random() % few.size()];
    }
    TextRules rules{.skip_special = skip};
    const TextRules no_stops = rules;
    TextStream all(tiny(), no_stops);
    std::string whole;
    for (const int32_t id : ids) whole += all.push(id);
    for (int k = 0; k < 2 && !whole.empty(); k++) {
      size_t at = random() % whole.size();
      while ((whole[at] & 0xC0) == 0x80) at--;
      size_t end = std::min(whole.size(), at + 1 + random() % 6);
      while (end < whole.size() && (whole[end] & 0xC0) == 0x80) end++;
      rules.stops.push_back(whole.substr(at, end - at));
    }
    if (rules.stops.empty()) continue;
    TextStream stream(tiny(), rules);
    const auto rule = stop_text_rule(tiny(), rules);
    std::string shown, so_far;
    TextStream again(tiny(), no_stops);
    for (size_t i = 0; i < ids.size(); i++) {
      shown += stream.push(ids[i]);
      so_far += again.push(ids[i]);
      const bool ends = rule({ids.data(), i + 1});
      ASSERT_EQ(ends, stream.matched() != nullptr) << "trial " << trial << ", token " << i;
      if (!ends) continue;
      stopped++;
      const size_t first = std::min(so_far.find(rules.stops[0]), so_far.find(rules.stops[1]));
      ASSERT_EQ(shown, so_far.substr(0, first));
      break;
    }
  }
  EXPECT_GT(stopped, 2000);
}

}  // namespace
}  // namespace furlong
