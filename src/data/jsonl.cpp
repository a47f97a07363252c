#include "data/jsonl.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "base/error.h"

namespace furlong {
namespace {

constexpr std::string_view utf8_mark = "\xEF\xBB\xBF";

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// False when `text` is neither empty nor a 64-bit integer.
bool parse_bound(std::string_view text, std::optional<int64_t>& bound) {
  if (text.empty()) return true;
  int64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size()) return false;
  bound = value;
  return true;
}

std::unique_ptr<std::istream> open_stream(const std::string& path) {
  std::error_code code;
  if (std::filesystem::is_directory(path, code)) fail(Exit::input, "cannot read {}: it is a folder", path);
  errno = 0;
  auto stream = std::make_unique<std::ifstream>(path, std::ios::binary);
  if (!*stream) fail(Exit::input, "cannot read {}: {}", path, errno != 0 ? std::strerror(errno) : "it does not open");
  return stream;
}

}  // namespace

std::pair<int64_t, int64_t> RowSlice::resolve(int64_t n) const {
  const auto place = [n](int64_t bound) {
    if (bound < 0) bound = bound < -n ? 0 : bound + n;
    return std::min(bound, n);
  };
  const int64_t first = place(begin.value_or(0));
  return {first, std::max(first, place(end.value_or(n)))};
}

InputSpec parse_input_spec(const std::string& spec) {
  InputSpec result{spec, {}};
  const size_t at = spec.rfind("@[");
  if (at != spec.npos && spec.back() == ']') {
    const std::string_view inside = std::string_view(spec).substr(at + 2, spec.size() - at - 3);
    const size_t colon = inside.find(':');
    if (colon == inside.npos || !parse_bound(inside.substr(0, colon), result.slice.begin) ||
        !parse_bound(inside.substr(colon + 1), result.slice.end)) {
      fail(Exit::usage, "{}: \"@[{}]\" is not a row slice; write path@[a:b] with integers a and b, either left out",
           spec, inside);
    }
    result.path = spec.substr(0, at);
  }
  if (result.path.empty()) fail(Exit::usage, "\"{}\" names no file; give a .jsonl path or - for standard input", spec);
  if (ends_with(result.path, ".parquet")) {
    fail(Exit::input,
         "{0}: Parquet files are not read; convert it to jsonl first, for example\n"
         "  duckdb -c \"COPY (SELECT * FROM '{0}') TO '{1}.jsonl' (FORMAT json)\"",
         result.path, result.path.substr(0, result.path.size() - 8));
  }
  return result;
}

JsonlReader::JsonlReader(const std::string& spec) {
  InputSpec input = parse_input_spec(spec);
  slice_ = input.slice;
  if (input.path == "-") {
    name_ = "standard input";
    in_ = &std::cin;
  } else {
    owned_ = open_stream(input.path);
    in_ = owned_.get();
    name_ = std::move(input.path);
  }
}

JsonlReader::JsonlReader(std::istream& in, std::string name, RowSlice slice)
    : name_(std::move(name)), in_(&in), slice_(slice) {}

JsonlReader::~JsonlReader() = default;

std::string JsonlReader::where() const { return fmt::format("{}:{}", name_, current_.line); }

bool JsonlReader::read_line(Line& line) {
  while (std::getline(*in_, line.text)) {
    line.line = ++lines_read_;
    line.terminated = !in_->eof();
    std::string& text = line.text;
    if (text.compare(0, 3, utf8_mark) == 0) {
      if (line.line > 1) {
        fail(Exit::input, "{}:{}:1: a byte-order mark inside the file (were two files joined?); remove it", name_,
             line.line);
      }
      text.erase(0, 3);
    }
    if (line.line == 1 && (text.compare(0, 2, "\xFF\xFE") == 0 || text.compare(0, 2, "\xFE\xFF") == 0)) {
      fail(Exit::input, "{}:1:1: the file is UTF-16; jsonl is UTF-8, convert it with iconv -f UTF-16 -t UTF-8", name_);
    }
    if (!text.empty() && text.back() == '\r') text.pop_back();
    if (text.find_first_not_of(" \t\r") != text.npos) return true;
  }
  if (in_->bad()) fail(Exit::input, "{}: reading failed after line {}", name_, lines_read_);
  return false;
}

void JsonlReader::read_all() {
  buffered_ = true;
  for (Line line; read_line(line);) buffer_.push_back(std::move(line));
  const auto [first, last] = slice_.resolve(static_cast<int64_t>(buffer_.size()));
  row_ = first - 1;
  buffer_end_ = last;
}

bool JsonlReader::next() {
  if (slice_.needs_length()) {
    if (!buffered_) read_all();
    if (row_ + 1 >= buffer_end_) return false;
    current_ = std::move(buffer_[static_cast<size_t>(++row_)]);
    return true;
  }
  do {
    if (slice_.end && row_ + 1 >= *slice_.end) return false;
    if (!read_line(current_)) return false;
    row_++;
  } while (row_ < slice_.begin.value_or(0));
  return true;
}

}  // namespace furlong
