// Reading jsonl files row by row. Rows are the lines that are not blank; CRLF ends and a byte-order mark at the start
// of the file are taken away.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace furlong {

// Rows [begin, end) as Python slices a list: an absent bound is open, a negative one counts from the end, and bounds
// beyond the list are clipped.
struct RowSlice {
  std::optional<int64_t> begin, end;
  // The rows [first, second) of a file of n rows; second >= first.
  std::pair<int64_t, int64_t> resolve(int64_t n) const;
  bool needs_length() const { return begin.value_or(0) < 0 || end.value_or(0) < 0; }
};

struct InputSpec {
  std::string path;  // "-" is standard input
  RowSlice slice;
};
// Splits "path" or "path@[a:b]". Throws Error(Exit::usage) for a suffix @[...] that is no slice and Error(Exit::input)
// for a file format that is not read here (parquet).
InputSpec parse_input_spec(const std::string& spec);

class JsonlReader {
 public:
  // Opens "path", "path@[a:b]" or "-". Throws Error(Exit::input) naming the path and the system's reason.
  explicit JsonlReader(const std::string& spec);
  // Reads a stream that outlives the reader; `name` stands for the path in errors.
  JsonlReader(std::istream& in, std::string name, RowSlice slice = {});
  ~JsonlReader();
  JsonlReader(const JsonlReader&) = delete;
  JsonlReader& operator=(const JsonlReader&) = delete;

  // Moves to the next row of the slice; false at the end. The text is not parsed: base/json.h's
  // parse_json_line(text(), name(), line()) does that strictly. Throws Error(Exit::input) on a read error.
  bool next();
  std::string_view text() const { return current_.text; }
  int64_t line() const { return current_.line; }           // from 1, as an editor counts
  int64_t row() const { return row_; }                     // from 0, among all rows of the file
  bool terminated() const { return current_.terminated; }  // false: the file ends without a newline after this line
  const std::string& name() const { return name_; }
  std::string where() const;  // "name:line"

 private:
  struct Line {
    std::string text;
    int64_t line = 0;
    bool terminated = true;
  };
  bool read_line(Line& line);
  void read_all();

  std::string name_;
  std::unique_ptr<std::istream> owned_;
  std::istream* in_;
  RowSlice slice_;
  Line current_;
  int64_t lines_read_ = 0;
  int64_t row_ = -1;
  // A slice that counts from the end needs the whole file first.
  bool buffered_ = false;
  std::vector<Line> buffer_;
  int64_t buffer_end_ = 0;
};

}  // namespace furlong
