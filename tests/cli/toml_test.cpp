#include "furlong/toml.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/rng.h"

namespace furlong {
namespace {

using From = RawValue::From;

TomlEntry only(const std::string& text) {
  const auto entries = parse_toml(text, "r.toml");
  EXPECT_EQ(entries.size(), 1u);
  return entries.at(0);
}

std::string refusal_of(const std::string& text) {
  try {
    parse_toml(text, "r.toml");
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    return e.what();
  }
  return "";
}

TEST(Toml, Values) {
  const auto value = [](const std::string& text) { return only("key = " + text).value; };
  EXPECT_EQ(value("\"a \\\"b\\\" \\\\ \\t \\u00e9 \\U0001F600 # no comment\"").words[0],
            "a \"b\" \\ \t \xc3\xa9 \xf0\x9f\x98\x80 # no comment");
  EXPECT_EQ(value("'C:\\n'").words[0], "C:\\n");
  EXPECT_EQ(value("1_000").words[0], "1000");
  EXPECT_EQ(value("+7").from, From::integer);
  EXPECT_EQ(value("-0.5").from, From::real);
  EXPECT_EQ(value("1e-6").from, From::real);
  EXPECT_EQ(value("true # yes").from, From::flag);
  EXPECT_EQ(value("{ a = true, 'b c' = \"x\\\"\", n = 1, r = 0.5 }").words[0],
            "{\"a\":true,\"b c\":\"x\\\"\",\"n\":1,\"r\":0.5}");
  EXPECT_EQ(value("{}").words[0], "{}");
  const RawValue list = value("[1, 2,\n  # three\n  3,\n]");
  EXPECT_EQ(list.words, (Texts{"1", "2", "3"}));
  EXPECT_TRUE(list.integers_only);
  EXPECT_FALSE(list.texts_only);
  EXPECT_FALSE(value("[1, 2.0]").integers_only);
  EXPECT_TRUE(value("['a', \"b\"]").texts_only);
}

TEST(Toml, SectionsAndLines) {
  const auto entries = parse_toml(
      "\xef\xbb\xbf# head\r\n\r\n[a.'b c']\r\nx-y = 1\r\n\n [ z ] # tail\nlist = [\n1,\n2]\nq.lr = 2", "r.toml");
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].key, "x-y");
  EXPECT_EQ(entries[0].line, 4);
  EXPECT_EQ(entries[1].line, 7);
  EXPECT_EQ(entries[2].key, "lr");
  EXPECT_EQ(entries[2].line, 10);
  EXPECT_TRUE(parse_toml("", "r.toml").empty());
}

TEST(Toml, ErrorsNameLineAndColumn) {
  EXPECT_EQ(
      refusal_of("a = 1\nb = abc\n"),
      "r.toml:2:5: expected a value (\"text\" in quotes, a decimal number, true, false or [a list]), found `abc`");
  EXPECT_EQ(refusal_of("a = 1 2"), "r.toml:1:7: expected the end of the line, found `2`");
  EXPECT_EQ(refusal_of("a_b = 1\n[s]\na-b = 2"), "r.toml:3:1: a-b is already set in line 1");
  EXPECT_EQ(refusal_of("a 1"), "r.toml:1:3: expected = after a, found `1`");
  EXPECT_EQ(refusal_of("a = [1\n\n"), "r.toml:3:1: the list that begins in line 1 does not end");
  EXPECT_EQ(refusal_of("a = \"x\nb"), "r.toml:1:7: the text does not end on its line");
}

TEST(Toml, RefusesWhatARecipeHasNoUseFor) {
  for (const char* bad : {"a =",
                          "= 1",
                          "a = 01",
                          "a = 1.",
                          "a = .5",
                          "a = 1__0",
                          "a = _1",
                          "a = 1e",
                          "a = inf",
                          "a = nan",
                          "a = 0x10",
                          "a = 1979-05-27",
                          "a = 07:32:00",
                          "a = \"\"\"x\"\"\"",
                          "a = '''x'''",
                          "a = [[1]]",
                          "a = [{}]",
                          "a = {b = [1]}",
                          "a = {b.c = 1}",
                          "a = {b = 1,}",
                          "a = {b = 1 c = 2}",
                          "a = {b = 1, b = 2}",
                          "a = {\nb = 1}",
                          "a = [1 2]",
                          "a = [,]",
                          "[[t]]",
                          "[a",
                          "[a]\n[a]",
                          "[]",
                          "a = \"\\x\"",
                          "a = \"\\ud800\"",
                          "a = \"\\u12\"",
                          "a = \"\x01\"",
                          "a = \"\xff\"",
                          "a = True",
                          "a = 9223372036854775808",
                          "a = 1e999",
                          "\"a",
                          "a\rb = 1"}) {
    EXPECT_NE(refusal_of(bad), "") << bad;
  }
}

// Pieces of recipes in random order never do anything but parse or complain with a place.
TEST(Toml, RandomTextsParseOrComplain) {
  const Texts pieces{"a", "b-c", " = ", "1",  "-2.5e3", "\"t\"", "'l'", "[",  "]",        "{", "}",
                     ",", "\n",  "#",   "\\", "\"",     "true",  ".",   "\t", "\xc3\xa9", "_"};
  int parsed = 0;
  for (uint32_t round = 0; round < 20000; round++) {
    const RngKey key{1, round, 0, 0, Purpose::data};
    std::string text;
    const uint32_t n = random_word(key, 0) % 12;
    for (uint32_t i = 1; i <= n; i++) text += pieces[random_word(key, i) % pieces.size()];
    const std::string found = refusal_of(text);
    if (found.empty()) {
      parsed++;
    } else {
      EXPECT_EQ(found.rfind("r.toml:", 0), 0u) << found;
    }
  }
  EXPECT_GT(parsed, 100);
}

}  // namespace
}  // namespace furlong
