// YAML as JSON. Heavy (JSON): for .cpp files only.
#pragma once
#include <string>
#include <string_view>

#include "base/json.h"

namespace furlong {

// One YAML document of mappings with text keys, lists and scalars; plain scalars are null, true, false, integers, reals
// or else text. Throws Error(Exit::input) with where:line:column for what is no YAML, a key that occurs twice, aliases
// and tags, and what is larger than such files are. A build without libyaml reads JSON, which is YAML too.
Json parse_yaml(std::string_view text, const std::string& where);

}  // namespace furlong
