// What LaTeX commands take and what they become in plain text.
#pragma once
#include <string_view>

namespace furlong::grader {

enum class CommandText {
  literal,    // `text`
  arguments,  // its arguments one after another
  only,       // its one argument
  fraction,   // first/second
  root,       // √(second)
  last,       // its last argument
  bold,       // its argument in a mathematical alphabet
  italic,
  sans,
  monospace,
  doublestruck,
  script,
  fraktur,
  accent,  // every character of its argument with the combining mark `text`
};

struct LatexCommand {
  std::string_view name;
  std::string_view arguments;  // * an optional star, [ an optional argument, { a mandatory one
  CommandText kind = CommandText::literal;
  std::string_view text;
};

// The command of this name (no backslash). An unknown one takes no arguments and vanishes.
LatexCommand latex_command(std::string_view name);

// The code point of an ASCII letter in the alphabet of bold .. fraktur; other characters are returned unchanged.
char32_t styled_letter(char32_t letter, CommandText style);

}  // namespace furlong::grader
