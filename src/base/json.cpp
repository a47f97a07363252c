#include "base/json.h"

#include <algorithm>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace furlong {
namespace {

constexpr int max_depth = 64;

// only_line > 0: the text is that one line of a longer file.
std::string place(std::string_view text, size_t byte, int64_t only_line) {
  byte = std::min(byte, text.size());
  if (only_line > 0) return fmt::format("{}:{}", only_line, byte + 1);
  size_t line = 1, column = 1;
  for (size_t i = 0; i < byte; i++) {
    if (text[i] == '\n') {
      line++;
      column = 1;
    } else {
      column++;
    }
  }
  return fmt::format("{}:{}", line, column);
}

std::string excerpt(std::string_view text, size_t byte) {
  const size_t begin = byte > 30 ? byte - 30 : 0;
  std::string out;
  for (size_t i = begin; i < text.size() && i < begin + 60; i++) {
    const auto c = static_cast<unsigned char>(text[i]);
    out += c < 0x20 || c >= 0x7f ? '.' : text[i];
  }
  return out;
}

template <class J>
J parse(std::string_view text, const std::string& path, int64_t line = 0) {
  const std::string where = line > 0 ? fmt::format("{}:{}", path, line) : path;
  // The parser would take a NUL byte for the end of its input.
  if (const size_t nul = text.find('\0'); nul != text.npos) {
    fail(Exit::input, "{}:{}: a NUL byte, which JSON text cannot hold; the file is damaged or is not text", path,
         place(text, nul, line));
  }
  std::vector<std::set<std::string>> keys;
  std::string duplicate;
  int depth_seen = 0;
  auto callback = [&](int depth, nlohmann::json::parse_event_t event, auto& value) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      depth_seen = std::max(depth_seen, depth + 1);
      if (depth_seen > max_depth) fail(Exit::input, "{}: JSON nested deeper than {} levels", where, max_depth);
      if (event == Event::object_start) keys.emplace_back();
    } else if (event == Event::object_end) {
      keys.pop_back();
    } else if (event == Event::key && duplicate.empty()) {
      const auto& name = value.template get_ref<const std::string&>();
      if (!keys.back().insert(name).second) duplicate = name;
    }
    return true;
  };
  J result;
  try {
    result = J::parse(text.begin(), text.end(),
                      typename J::parser_callback_t([&](int depth, typename J::parse_event_t event, J& value) {
                        return callback(depth, static_cast<nlohmann::json::parse_event_t>(event), value);
                      }));
  } catch (const nlohmann::json::parse_error& e) {
    const size_t byte = e.byte > 0 ? e.byte - 1 : 0;
    fail(Exit::input, "{}:{}: not valid JSON, near `{}`{}", path, place(text, byte, line), excerpt(text, byte),
         line > 0 ? "; expected one whole JSON value on this line" : "");
  } catch (const nlohmann::json::out_of_range&) {
    fail(Exit::input, "{}: a number is too large for a 64-bit float", where);
  }
  if (!duplicate.empty()) fail(Exit::input, "{}: the JSON key \"{}\" occurs twice in one object", where, duplicate);
  return result;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where) { return parse<Json>(text, where); }
OrderedJson parse_ordered_json(std::string_view text, const std::string& where) {
  return parse<OrderedJson>(text, where);
}
Json parse_json_line(std::string_view text, const std::string& path, int64_t line) {
  return parse<Json>(text, path, line);
}
OrderedJson parse_ordered_json_line(std::string_view text, const std::string& path, int64_t line) {
  return parse<OrderedJson>(text, path, line);
}
Json read_json_file(const std::string& path) { return parse_json(read_file(path), path); }

}  // namespace furlong
