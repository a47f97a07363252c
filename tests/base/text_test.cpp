#include "base/text.h"

#include <gtest/gtest.h>

namespace furlong {
namespace {

TEST(EditDistance, CountsInsertionsDeletionsReplacementsAndSwaps) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("abc", ""), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("size", "szie"), 1u);  // a swap is one edit
  EXPECT_EQ(edit_distance("ca", "abc"), 3u);     // no place is edited twice
  EXPECT_EQ(edit_distance("same", "same"), 0u);
}

TEST(NearestNames, FindsTyposAndWholeWords) {
  const std::vector<std::string> names{"rollout-batch-size", "global-batch-size", "eps-clip", "eps-clip-high", "lr"};
  EXPECT_EQ(nearest_names("rollout-batch-szie", names), std::vector<std::string>{"rollout-batch-size"});
  EXPECT_EQ(nearest_names("rollout_batch_size", names), std::vector<std::string>{"rollout-batch-size"});
  EXPECT_EQ(nearest_names("batch-size", names), (std::vector<std::string>{"global-batch-size", "rollout-batch-size"}));
  EXPECT_EQ(nearest_names("eps-clp", names), std::vector<std::string>{"eps-clip"});
  EXPECT_TRUE(nearest_names("something-else", names).empty());
  EXPECT_TRUE(nearest_names("", names).empty());
  EXPECT_TRUE(nearest_names(std::string(100000, 'x'), names).empty());
}

TEST(Numbers, AreWholeTexts) {
  EXPECT_EQ(parse_integer("42"), 42);
  EXPECT_EQ(parse_integer("+42"), 42);
  EXPECT_EQ(parse_integer("-9223372036854775808"), INT64_MIN);
  for (const char* bad : {"", "+", "-", "+-1", " 1", "1 ", "1.0", "1e3", "0x10", "9223372036854775808", "a"}) {
    EXPECT_FALSE(parse_integer(bad)) << bad;
  }
  EXPECT_EQ(parse_real("1e-6"), 1e-6);
  EXPECT_EQ(parse_real(".5"), 0.5);
  EXPECT_EQ(parse_real("3"), 3.0);
  for (const char* bad : {"", "inf", "nan", "-inf", "1e999", "1,5", "1 ", "0.1x"}) EXPECT_FALSE(parse_real(bad)) << bad;
}

TEST(Numbers, RealsReadBackAsTheSameDouble) {
  for (const double x : {0.0, 1.0, 0.1, 1e-6, 1e-8, 0.28, 1e300, 1.0 / 3, -2.5, 5e-324}) {
    const std::string text = format_real(x);
    EXPECT_EQ(parse_real(text), x) << text;
    EXPECT_NE(text.find_first_of(".e"), std::string::npos) << text;
  }
}

TEST(Human, Sizes) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_bytes((1ull << 20) - 1), "1.0 MiB");
  EXPECT_EQ(human_bytes(UINT64_MAX), "16.0 EiB");
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(1000), "1.0 K");
  EXPECT_EQ(human_count(35951822704.0), "36.0 B");
  EXPECT_EQ(human_count(999999), "1.0 M");
  EXPECT_EQ(human_seconds(0.84), "0.8 s");
  EXPECT_EQ(human_seconds(42.4), "42 s");
  EXPECT_EQ(human_seconds(59.6), "1 min 00 s");
  EXPECT_EQ(human_seconds(245), "4 min 05 s");
  EXPECT_EQ(human_seconds(3 * 3600 + 125), "3 h 02 min");
  EXPECT_EQ(human_seconds(2 * 86400 + 4 * 3600), "2 d 04 h");
  EXPECT_EQ(human_seconds(-1), "?");
}

TEST(Printable, HidesWhatATerminalWouldObey) {
  EXPECT_EQ(printable("a\tb\nc"), "a\\tb\\nc");
  EXPECT_EQ(printable("\x1b[31mred\x7f"), "\\x1b[31mred\\x7f");
  EXPECT_EQ(printable("caf\xc3\xa9 \xf0\x9f\x98\x80"), "caf\xc3\xa9 \xf0\x9f\x98\x80");
  EXPECT_EQ(printable("\xff\xc3"), "\\xff\\xc3");
  EXPECT_EQ(printable("\xe2\x80\xae"), "\\xe2\\x80\\xae");  // right-to-left override
  EXPECT_EQ(printable("\xc2\x9b"), "\\xc2\\x9b");           // a one-byte escape of old terminals
  EXPECT_EQ(printable(std::string(200, 'x'), 5), "xxxxx...");
}

TEST(Utf8, RefusesWhatIsNone) {
  EXPECT_TRUE(valid_utf8(""));
  EXPECT_TRUE(valid_utf8("\xe2\x82\xac\xf4\x8f\xbf\xbf"));
  for (const char* bad :
       {"\x80", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xe2\x82"}) {
    EXPECT_FALSE(valid_utf8(bad));
  }
}

TEST(JoinOr, Enumerates) {
  EXPECT_EQ(join_or({}), "");
  EXPECT_EQ(join_or({"a"}), "a");
  EXPECT_EQ(join_or({"a", "b", "c"}), "a, b or c");
}

}  // namespace
}  // namespace furlong
