// JSON with strict reading: duplicate keys, trailing text, deep nesting and invalid UTF-8 are errors that name the
// place. This header is heavy: include it from .cpp files, never from another header.
#pragma once
#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <string_view>

// Compiled once, in json_instance.cpp.
extern template class nlohmann::basic_json<>;

namespace furlong {

using Json = nlohmann::json;                 // keys sorted
using OrderedJson = nlohmann::ordered_json;  // keys in file order

// Parses one JSON value. `where` names the source in errors ("file.json" or "data.jsonl:12").
// Throws Error(Exit::input) with where:line:column, the reason and an excerpt.
Json parse_json(std::string_view text, const std::string& where);
OrderedJson parse_ordered_json(std::string_view text, const std::string& where);
// One line of a jsonl file; errors name path:line:column (columns count bytes from 1).
Json parse_json_line(std::string_view text, const std::string& path, int64_t line);
OrderedJson parse_ordered_json_line(std::string_view text, const std::string& path, int64_t line);
// Reads and parses a whole file. Throws Error(Exit::input) naming the file.
Json read_json_file(const std::string& path);

}  // namespace furlong
