// Recipes: the part of TOML 1.0 that settings need. Keys with text, integer, real, true/false, lists of these and
// inline tables of these; [sections] group keys and mean nothing. Dates, nested lists, lists of tables and multi-line
// texts are refused. Written here rather than taken from a library because not every supported system packages one.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "trainer/settings.h"

namespace furlong {

struct TomlEntry {
  std::string key;  // without its section
  int line;         // from 1
  RawValue value;
};

// The entries in file order. `name` stands in errors. Throws Error(Exit::usage) with name:line:column, what was found
// and what was expected; also for a key that occurs twice, in whatever sections.
std::vector<TomlEntry> parse_toml(std::string_view text, const std::string& name);

}  // namespace furlong
