#include "reward/python_number.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace furlong {
namespace {

TEST(PythonFloat, ReadsWhatPythonReads) {
  const std::pair<const char*, double> cases[] = {
      {"42", 42},
      {"42.", 42},
      {".5", 0.5},
      {"+42", 42},
      {"-42.5", -42.5},
      {"1e3", 1000},
      {"1E-2", 0.01},
      {"1_000", 1000},
      {"1_0.0_1", 10.01},
      {"1e1_0", 1e10},
      {"007", 7},
      {" 42\t\n", 42},
      {"\u300042\u00A0", 42},
      {"４２", 42},
      {"٣.٥", 3.5},
      {"𝟜𝟚", 42},
      {"1e400000000000", INFINITY},
      {"1e-400", 0},
      {"0e999999999", 0},
      {"0.1", 0.1},
      {"1e+5", 1e5},
      {"inf", INFINITY},
      {"-Infinity", -INFINITY},
      {"179769313486231580793e288", 1.7976931348623158e308},
      {"5e-324", 5e-324},
  };
  for (const auto& [text, value] : cases) EXPECT_EQ(python_float(text), value) << text;
  EXPECT_TRUE(std::isnan(*python_float("nan")));
  EXPECT_TRUE(std::signbit(*python_float("-0")));
  EXPECT_EQ(python_float("1" + std::string(100000, '0')), INFINITY);
  EXPECT_EQ(python_float("0." + std::string(100000, '0') + "1"), 0);
  EXPECT_EQ(python_float(std::string(100000, '0') + "42"), 42);
}

TEST(PythonFloat, RejectsWhatPythonRejects) {
  for (const char* text : {"",     " ",     ".",   "+",   "1__0", "_1", "1_",    "1_.0", "1._0",  "1e", "1e+", "1e_5",
                           "0x10", "1,000", "1 0", "--1", "½",    "²",  "1.2.3", "nan1", "1\xC3", "e5", "in f"})
    EXPECT_FALSE(python_float(text).has_value()) << text;
}

TEST(PythonInteger, Canonical) {
  for (const char* text : {"0", "7", "-7", "120"}) EXPECT_TRUE(is_canonical_integer(text)) << text;
  for (const char* text : {"", "-", "-0", "07", "+7", " 7", "7.0", "1_0", "٣"})
    EXPECT_FALSE(is_canonical_integer(text)) << text;
  EXPECT_TRUE(is_canonical_integer(std::string(4300, '1')));
  EXPECT_FALSE(is_canonical_integer(std::string(4301, '1')));
}

TEST(PythonText, OfNumbers) {
  EXPECT_EQ(integral_text(42.9), "42");
  EXPECT_EQ(integral_text(-0.5), "0");
  EXPECT_EQ(integral_text(1e23), "99999999999999991611392");
  const std::pair<double, const char*> cases[] = {
      {42, "42.0"},
      {0.5, "0.5"},
      {-1.25, "-1.25"},
      {1e16, "1e+16"},
      {1e15, "1000000000000000.0"},
      {1e-4, "0.0001"},
      {1e-5, "1e-05"},
      {1.5e300, "1.5e+300"},
      {0, "0.0"},
      {-0.0, "-0.0"},
      {123456.789, "123456.789"},
      {0.1 + 0.2, "0.30000000000000004"},
  };
  for (const auto& [value, text] : cases) EXPECT_EQ(python_float_text(value), text);
}

}  // namespace
}  // namespace furlong
