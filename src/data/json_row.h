// One jsonl row as an object, with typed access that names file, line and key when it fails. Heavy (JSON): for .cpp
// files only.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "data/label.h"

namespace furlong {

// "a string", "an integer", ...
const char* json_kind(const Json& value);

class JsonRow {
 public:
  struct Member {
    std::string key;
    std::string_view raw;  // the value's text as it stands in the row
  };

  // Parses strictly; `text` outlives the row. Throws Error(Exit::input) when it is not one JSON object.
  JsonRow(std::string_view text, const std::string& path, int64_t line);

  const Json* find(const std::string& key) const;  // null when the key is absent
  const Json& at(const std::string& key) const;    // Error(Exit::input) lists the keys that exist
  std::string_view raw(const std::string& key) const;
  const std::vector<Member>& members() const { return members_; }  // in file order
  const std::string& where() const { return where_; }              // "path:line"

  // Error(Exit::input): where: the key holds what, not what was expected.
  [[noreturn]] void wrong(const std::string& key, const Json& value, const std::string& expected) const;
  // An integer in [low, high].
  int64_t integer(const std::string& key, int64_t low, int64_t high) const;
  LabelValue label(const std::string& key) const;

 private:
  std::string where_;
  Json value_;
  std::vector<Member> members_;
};

// Writing: a JSON string (bytes that are not UTF-8 become U+FFFD), and a label as it was read.
void append_json_string(std::string& out, std::string_view text);
void append_json_label(std::string& out, const LabelValue& label);

}  // namespace furlong
