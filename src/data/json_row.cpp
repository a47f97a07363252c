#include "data/json_row.h"

#include <limits>

#include "base/error.h"

namespace furlong {
namespace {

size_t skip_space(std::string_view text, size_t at) {
  const size_t next = text.find_first_not_of(" \t\r\n", at);
  return next == text.npos ? text.size() : next;
}

// `at` is a string's opening quote in valid JSON; the place behind its closing quote.
size_t end_of_string(std::string_view text, size_t at) {
  for (at++; text[at] != '"'; at++) {
    if (text[at] == '\\') at++;
  }
  return at + 1;
}

size_t end_of_value(std::string_view text, size_t at) {
  int depth = 0;
  while (at < text.size()) {
    const char c = text[at];
    if (c == '"') {
      at = end_of_string(text, at);
      continue;
    }
    if (depth == 0 && (c == ',' || c == '}')) break;
    if (c == '{' || c == '[') depth++;
    if (c == '}' || c == ']') depth--;
    at++;
  }
  while (std::string_view(" \t\r\n").find(text[at - 1]) != std::string_view::npos) at--;
  return at;
}

// The members of a JSON object that has been parsed before, so that nothing here can be malformed.
std::vector<JsonRow::Member> split_members(std::string_view text, const std::string& where) {
  std::vector<JsonRow::Member> members;
  size_t at = skip_space(text, skip_space(text, 0) + 1);
  while (text[at] != '}') {
    const size_t key_end = end_of_string(text, at);
    std::string key(text.substr(at + 1, key_end - at - 2));
    if (key.find('\\') != key.npos) key = parse_json(text.substr(at, key_end - at), where).get<std::string>();
    const size_t begin = skip_space(text, skip_space(text, key_end) + 1);
    const size_t end = end_of_value(text, begin);
    members.push_back({std::move(key), text.substr(begin, end - begin)});
    at = skip_space(text, end);
    if (text[at] == ',') at = skip_space(text, at + 1);
  }
  return members;
}

std::string key_list(const Json& object) {
  std::string list;
  for (const auto& item : object.items()) {
    if (list.size() > 400) return list + ", ...";
    list += (list.empty() ? "\"" : ", \"") + item.key() + "\"";
  }
  return list.empty() ? "none" : list;
}

}  // namespace

const char* json_kind(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null: return "null";
    case Json::value_t::object: return "an object";
    case Json::value_t::array: return "a list";
    case Json::value_t::string: return "a string";
    case Json::value_t::boolean: return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned: return "an integer";
    case Json::value_t::number_float: return "a number";
    default: return "no JSON value";
  }
}

JsonRow::JsonRow(std::string_view text, const std::string& path, int64_t line)
    : where_(fmt::format("{}:{}", path, line)), value_(parse_json_line(text, path, line)) {
  if (!value_.is_object()) {
    fail(Exit::input, "{}: this row is {}; expected one JSON object per line{}", where_, json_kind(value_),
         value_.is_array() ? " (for a file that is one JSON list: jq -c '.[]' turns it into jsonl)" : "");
  }
  members_ = split_members(text, where_);
}

const Json* JsonRow::find(const std::string& key) const {
  const auto it = value_.find(key);
  return it == value_.end() ? nullptr : &*it;
}

const Json& JsonRow::at(const std::string& key) const {
  const Json* value = find(key);
  if (value == nullptr) fail(Exit::input, "{}: no key \"{}\"; the row has: {}", where_, key, key_list(value_));
  return *value;
}

std::string_view JsonRow::raw(const std::string& key) const {
  for (const Member& member : members_) {
    if (member.key == key) return member.raw;
  }
  return {};
}

void JsonRow::wrong(const std::string& key, const Json& value, const std::string& expected) const {
  fail(Exit::input, "{}: \"{}\" is {}; expected {}", where_, key, json_kind(value), expected);
}

int64_t JsonRow::integer(const std::string& key, int64_t low, int64_t high) const {
  const Json& value = at(key);
  const bool bounded = high < std::numeric_limits<int64_t>::max();
  const std::string expected =
      bounded ? fmt::format("an integer from {} to {}", low, high) : fmt::format("an integer of {} or more", low);
  if (!value.is_number_integer()) wrong(key, value, expected);
  const bool huge = value.is_number_unsigned() && value.get<uint64_t>() > std::numeric_limits<int64_t>::max();
  if (huge || value.get<int64_t>() < low || value.get<int64_t>() > high) {
    fail(Exit::input, "{}: \"{}\" is {}; expected {}", where_, key, raw(key), expected);
  }
  return value.get<int64_t>();
}

LabelValue JsonRow::label(const std::string& key) const {
  using Kind = LabelValue::Kind;
  const Json& value = at(key);
  if (value.is_null()) return {};
  if (value.is_string()) return {Kind::string, value.get<std::string>(), 0};
  std::string text(raw(key));
  if (value.is_boolean()) return {Kind::boolean, std::move(text), value.get<bool>() ? 1.0 : 0.0};
  if (!value.is_number()) return {Kind::other, std::move(text), 0};
  // An integer too long for 64 bits is parsed as a float; its text still says what it is.
  const Kind kind = text.find_first_of(".eE") == text.npos ? Kind::integer : Kind::floating;
  return {kind, std::move(text), value.get<double>()};
}

void append_json_string(std::string& out, std::string_view text) {
  out += Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

void append_json_label(std::string& out, const LabelValue& label) {
  if (label.kind == LabelValue::Kind::string) return append_json_string(out, label.text);
  out += label.kind == LabelValue::Kind::none ? "null" : label.text;
}

}  // namespace furlong
