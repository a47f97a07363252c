#include "data/jsonl.h"

#include <sstream>

#include "base/append.h"
#include "base/json.h"
#include "data/json_row.h"
#include "data_room/scratch.h"

namespace furlong {
namespace {

std::vector<std::string> rows_of(const std::string& content, const std::string& suffix = "") {
  const Scratch scratch;
  JsonlReader reader(scratch.file("a.jsonl", content) + suffix);
  std::vector<std::string> rows;
  while (reader.next()) rows.emplace_back(reader.text());
  return rows;
}

TEST(Jsonl, SkipsMarksLineEndsAndBlankLines) {
  const Scratch scratch;
  JsonlReader reader(scratch.file("a.jsonl", "\xEF\xBB\xBF{\"a\":1}\r\n\r\n \t\n{\"a\":2}"));
  ASSERT_TRUE(reader.next());
  EXPECT_EQ(reader.text(), "{\"a\":1}");
  EXPECT_EQ(reader.line(), 1);
  EXPECT_TRUE(reader.terminated());
  ASSERT_TRUE(reader.next());
  EXPECT_EQ(reader.text(), "{\"a\":2}");
  EXPECT_EQ(reader.line(), 4);
  EXPECT_EQ(reader.row(), 1);
  EXPECT_FALSE(reader.terminated());
  EXPECT_EQ(reader.where(), scratch.path("a.jsonl") + ":4");
  EXPECT_FALSE(reader.next());
}

TEST(Jsonl, SlicesAsPythonDoes) {
  // The indices that list(range(5))[a:b] keeps.
  const std::string content = "0\n1\n\n2\n3\n4\n";
  const struct {
    const char* slice;
    std::vector<std::string> rows;
  } cases[] = {
      {"@[:]", {"0", "1", "2", "3", "4"}},
      {"@[1:3]", {"1", "2"}},
      {"@[:2]", {"0", "1"}},
      {"@[3:]", {"3", "4"}},
      {"@[-2:]", {"3", "4"}},
      {"@[:-4]", {"0"}},
      {"@[-3:-1]", {"2", "3"}},
      {"@[1:-1]", {"1", "2", "3"}},
      {"@[-9:2]", {"0", "1"}},
      {"@[2:99]", {"2", "3", "4"}},
      {"@[4:2]", {}},
      {"@[7:]", {}},
      {"@[:0]", {}},
      {"@[-1:1]", {}},
      {"@[:-9]", {}},
      {"@[0:9223372036854775807]", {"0", "1", "2", "3", "4"}},
      {"@[-9223372036854775808:1]", {"0"}},
  };
  for (const auto& c : cases) EXPECT_EQ(rows_of(content, c.slice), c.rows) << c.slice;
}

TEST(Jsonl, ResolvedBoundsAreInOrder) {
  using Bounds = std::pair<int64_t, int64_t>;
  EXPECT_EQ((RowSlice{4, 2}.resolve(5)), (Bounds{4, 4}));
  EXPECT_EQ((RowSlice{-1, 1}.resolve(5)), (Bounds{4, 4}));
  EXPECT_EQ((RowSlice{7, {}}.resolve(5)), (Bounds{5, 5}));
  EXPECT_EQ((RowSlice{}.resolve(0)), (Bounds{0, 0}));
}

TEST(Jsonl, StopsReadingAtTheEndOfASlice) {
  std::istringstream in("0\n1\n2\n");
  JsonlReader reader(in, "stream", RowSlice{0, 1});
  EXPECT_TRUE(reader.next());
  EXPECT_FALSE(reader.next());
  std::string rest;
  std::getline(in, rest);
  EXPECT_EQ(rest, "1");
}

TEST(Jsonl, RefusesBadNames) {
  const struct {
    const char* spec;
    Exit code;
    const char* message;
  } cases[] = {
      {"a.jsonl@[1]", Exit::usage, "not a row slice"},
      {"a.jsonl@[1:2:3]", Exit::usage, "not a row slice"},
      {"a.jsonl@[x:2]", Exit::usage, "not a row slice"},
      {"a.jsonl@[1: 2]", Exit::usage, "not a row slice"},
      {"a.jsonl@[:99999999999999999999]", Exit::usage, "not a row slice"},
      {"@[1:2]", Exit::usage, "names no file"},
      {"", Exit::usage, "names no file"},
      {"dir/train.parquet", Exit::input, "FROM 'dir/train.parquet') TO 'dir/train.jsonl'"},
      {"train.parquet@[0:5]", Exit::input, "Parquet"},
      {"/no/such/file.jsonl", Exit::input, "cannot read /no/such/file.jsonl: No such file"},
      {"/", Exit::input, "it is a folder"},
  };
  for (const auto& c : cases) {
    expect_contains(error_of(c.code, [&] { JsonlReader reader(c.spec); }), c.message);
  }
  EXPECT_EQ(parse_input_spec("-@[2:]").path, "-");
  EXPECT_EQ(parse_input_spec("odd@[name.jsonl").path, "odd@[name.jsonl");
}

TEST(Jsonl, BadRowsNameFileLineColumnAndExcerpt) {
  using std::string_literals::operator""s;
  const struct {
    std::string line;
    const char* message;
  } cases[] = {
      {"{\"a\": 1,}", "in.jsonl:2:9: not valid JSON, near `{\"a\": 1,}`; expected one whole JSON value"},
      {"{\"a\": tru}", ":2:10: not valid JSON"},
      {"{\"a\": NaN}", ":2:7: not valid JSON"},
      {"{\"a\": 1} x", ":2:10: not valid JSON"},
      {"{\"a\": \"x", ":2:"},
      {"{\"a\": \"\\ud800\"}", "not valid JSON"},
      {"{\"a\": \"\xff\"}", ":2:8: not valid JSON"},
      {"{\"\xc3(\": 1}", "not valid JSON"},
      {"{\"a\": 1}\0"s, ":2:9: a NUL byte"},
      {"{\"a\": \"\0\"}"s, ":2:8: a NUL byte"},
      {"{\"a\": 1e999}", ":2: a number is too large"},
      {"{\"a\": 1, \"a\": 2}", ":2: the JSON key \"a\" occurs twice"},
      {"{\"a\": {\"b\": 1, \"b\": 2}}", "\"b\" occurs twice"},
      {std::string(100000, '['), ":2: JSON nested deeper"},
      {"[1]", ":2: this row is a list; expected one JSON object per line"},
      {"\"a\"", ":2: this row is a string"},
      {"{", ":2:"},
  };
  for (const auto& c : cases) {
    std::istringstream in("{}\n" + c.line + "\n");
    JsonlReader reader(in, "in.jsonl");
    ASSERT_TRUE(reader.next());
    JsonRow first(reader.text(), reader.name(), reader.line());
    ASSERT_TRUE(reader.next());
    expect_contains(error_of(Exit::input, [&] { JsonRow row(reader.text(), reader.name(), reader.line()); }),
                    c.message);
  }
  for (const auto& [content, message] : {std::pair{"1\n\xEF\xBB\xBF{}\n", "in.jsonl:2:1: a byte-order mark"},
                                         {"\xFF\xFE{", "in.jsonl:1:1: the file is UTF-16"}}) {
    std::istringstream in(content);
    JsonlReader reader(in, "in.jsonl");
    expect_contains(error_of(Exit::input,
                             [&] {
                               while (reader.next()) {
                               }
                             }),
                    message);
  }
}

TEST(Jsonl, KeepsTheTextOfMembers) {
  const std::string text =
      R"( { "a" : 1.50 , "b":[1, {"x":"]}"} ] ,"\u0063":"q\"},", "d":{} ,"e":123456789012345678901} )";
  const JsonRow row(text, "f", 1);
  ASSERT_EQ(row.members().size(), 5u);
  EXPECT_EQ(row.raw("a"), "1.50");
  EXPECT_EQ(row.raw("b"), "[1, {\"x\":\"]}\"} ]");
  EXPECT_EQ(row.raw("c"), "\"q\\\"},\"");
  EXPECT_EQ(row.raw("d"), "{}");
  EXPECT_EQ(row.label("e").kind, LabelValue::Kind::integer);
  EXPECT_EQ(row.label("e").text, "123456789012345678901");
  EXPECT_TRUE(JsonRow("{}", "f", 1).members().empty());
}

TEST(Appender, MendsATornLastLine) {
  const Scratch scratch;
  const struct {
    const char* before;
    const char* after;
    uint64_t torn;
  } cases[] = {
      {"", "{\"n\":1}\n", 0},
      {"{\"a\":1}\n", "{\"a\":1}\n{\"n\":1}\n", 0},
      {"{\"a\":1}\n{\"b\":", "{\"a\":1}\n{\"n\":1}\n", 5},
      {"{\"a\":1}\n{\"b\":2}", "{\"a\":1}\n{\"b\":2}\n{\"n\":1}\n", 0},
      {"{\"b\":", "{\"n\":1}\n", 5},
  };
  for (const auto& c : cases) {
    const std::string path = scratch.file("log", c.before);
    LineAppender file(path);
    EXPECT_EQ(file.torn_bytes(), c.torn);
    file.add("{\"n\":1}");
    file.sync();
    EXPECT_EQ(read_file(path), c.after);
    EXPECT_EQ(file.bytes(), read_file(path).size());
  }
  // Longer than one block of the backward search.
  const std::string path = scratch.file("long", "{}\n" + std::string(200000, 'x'));
  EXPECT_EQ(LineAppender(path).torn_bytes(), 200000u);
  EXPECT_EQ(read_file(path), "{}\n");
  error_of(Exit::resources, [&] { LineAppender file(scratch.path("none/log")); });
}

}  // namespace
}  // namespace furlong
