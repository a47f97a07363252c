#include "tokenizer/unicode.h"

#include <gtest/gtest.h>

namespace furlong {
namespace {

TEST(Utf8, MaximalSubparts) {
  // The Unicode standard's own example (table 3-11), and truncated, overlong, surrogate and too large sequences.
  EXPECT_EQ(repair_utf8("a\xF1\x80\x80\xE1\x80\xC2"
                        "b\x80"
                        "c\x80\xBF"
                        "d"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
  EXPECT_EQ(repair_utf8("\xC0\x80"), "\uFFFD\uFFFD");
  EXPECT_EQ(repair_utf8("\xE0\x80\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(repair_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(repair_utf8("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(repair_utf8("\xF0\x9F\x98"), "\uFFFD");
  EXPECT_FALSE(is_valid_utf8("\xF0\x9F\x98"));
  EXPECT_FALSE(is_valid_utf8("\xED\xA0\x80"));
  EXPECT_TRUE(is_valid_utf8("\u07FF\u0800\uFFFF\U00010000\U0010FFFF"));
}

TEST(Utf8, LeavesACutSequence) {
  std::string out;
  EXPECT_EQ(append_utf8(out, "a\xF0\x9F\x98"), 1u);
  EXPECT_EQ(out, "a");
  EXPECT_EQ(append_utf8(out,
                        "\xF0\x9F"
                        "b"),
            3u);
  EXPECT_EQ(out, "a\uFFFDb");
}

TEST(Nfc, ComposesAndOrders) {
  EXPECT_EQ(nfc("plain"), "plain");
  EXPECT_EQ(nfc("e\u0301"), "\u00e9");
  EXPECT_EQ(nfc("\u212b \u2126 \ufb01"), "\u00c5 \u03a9 \ufb01");
  EXPECT_EQ(nfc("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(nfc("\u1100\u1161\u11a8"), "\uac01");
  EXPECT_EQ(nfc("\u0958"), "\u0915\u093c");                        // excluded from composition
  EXPECT_EQ(nfc("e\u1df6\u0301"), "e\u1df6\u0301");                // U+1DF6 is of Unicode 10
  EXPECT_EQ(nfc("\U00011935\U00011930"), "\U00011935\U00011930");  // composed since Unicode 13
}

TEST(Trim, UnicodeSpaces) {
  EXPECT_EQ(trim_unicode(" \t\n\v\f\r\x1c\x1f\u0085\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000x y\u3000 "),
            "x y");
  EXPECT_EQ(trim_unicode("\u200bx\ufeff"), "\u200bx\ufeff");
  EXPECT_EQ(trim_unicode(" \u3000 "), "");
  EXPECT_EQ(trim_unicode(""), "");
  EXPECT_EQ(trim_unicode("\x80 \xE3\x80"), "\x80 \xE3\x80");
}

}  // namespace
}  // namespace furlong
