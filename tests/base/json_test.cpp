#include "base/json.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace furlong {
namespace {

std::string complaint(const std::string& text) {
  try {
    parse_json(text, "f.json");
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::input);
    return e.what();
  }
  return "";
}

TEST(Json, ReadsValues) {
  const Json value = parse_json(R"({"a": [1, 2.5, "x\u00e9", null, true], "b": {}})", "f.json");
  EXPECT_EQ(value["a"][0], 1);
  EXPECT_EQ(value["a"][1], 2.5);
  EXPECT_EQ(value["a"][2], "x\xc3\xa9");
  EXPECT_TRUE(value["b"].empty());
  EXPECT_EQ(parse_json("9223372036854775807", "f").get<int64_t>(), INT64_MAX);
}

TEST(Json, KeepsTheOrderOfKeys) {
  EXPECT_EQ(parse_ordered_json(R"({"z":1,"a":2})", "f").dump(), R"({"z":1,"a":2})");
  EXPECT_EQ(parse_json(R"({"z":1,"a":2})", "f").dump(), R"({"a":2,"z":1})");
}

TEST(Json, NamesThePlace) {
  EXPECT_EQ(complaint("{\"a\": 1,\n \"b\": }").rfind("f.json:2:7: not valid JSON", 0), 0u)
      << complaint("{\"a\": 1,\n \"b\": }");
  EXPECT_NE(complaint("[1, 2").find("f.json:1:"), std::string::npos);
}

TEST(Json, RefusesWhatIsNoStrictJson) {
  for (const char* bad :
       {"", " ", "[1,]", "{'a':1}", "{\"a\":1} x", "NaN", "01", "\"\xff\"", "\"\\ud800\"", "[1] // c"}) {
    EXPECT_NE(complaint(bad), "") << bad;
  }
}

TEST(Json, RefusesDuplicateKeysAtAnyDepth) {
  EXPECT_NE(complaint(R"({"a":1,"a":2})").find("\"a\" occurs twice"), std::string::npos);
  EXPECT_NE(complaint(R"([{"b":{"x":1,"y":[{}],"x":2}}])").find("\"x\" occurs twice"), std::string::npos);
  EXPECT_EQ(complaint(R"([{"a":1},{"a":2},{"b":{"a":1}}])"), "");
}

TEST(Json, BoundsTheDepth) {
  const auto nested = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  EXPECT_EQ(complaint(nested(60)), "");
  EXPECT_NE(complaint(nested(100000)).find("nested deeper"), std::string::npos);
}

}  // namespace
}  // namespace furlong
