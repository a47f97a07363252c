#include "reward/plain_normalize.h"

#include <cmath>

#include "reward/latex_text.h"
#include "reward/python_number.h"
#include "reward/text.h"

namespace furlong::grader {

namespace {

bool is_bracket(char c) { return c == '(' || c == ')' || c == '[' || c == ']'; }

void skip_spaces(std::string_view text, std::size_t& at) {
  while (at < text.size() && text[at] == ' ') ++at;
}

// Deletes every `unit`, an "es" and an "s" after it, spaces, and a power like ^2.
std::string delete_unit(const std::string& text, std::string_view unit) {
  const std::string_view view = text;
  std::size_t found = view.find(unit);
  if (found == std::string_view::npos) return text;
  std::string out;
  std::size_t at = 0;
  for (; found != std::string_view::npos; found = view.find(unit, at)) {
    out.append(view, at, found - at);
    at = found + unit.size();
    if (view.substr(at).starts_with("es")) at += 2;
    if (view.substr(at).starts_with("s")) at += 1;
    skip_spaces(view, at);
    if (at + 1 < view.size() && view[at] == '^' && is_ascii_digit(view[at + 1])) {
      at += 2;
      while (at < view.size() && is_ascii_digit(view[at])) ++at;
    }
  }
  return out.append(view, at);
}

// Deletes ^\circ, spaces allowed between.
std::string delete_degrees(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    if (text[at] == '^') {
      std::size_t next = at + 1;
      skip_spaces(text, next);
      if (std::string_view(text).substr(next).starts_with("\\circ")) {
        at = next + 5;
        continue;
      }
    }
    out.push_back(text[at++]);
  }
  return out;
}

// Deletes every `mark` and the spaces after it.
std::string delete_with_spaces(const std::string& text, std::string_view mark) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t found; (found = text.find(mark, at)) != std::string::npos;) {
    out.append(text, at, found - at);
    at = found + mark.size();
    skip_spaces(text, at);
  }
  return out.append(text, at);
}

// "- " -> "-".
std::string close_up_minus(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    out.push_back(text[at]);
    if (text[at++] == '-') skip_spaces(text, at);
  }
  return out;
}

// 7 3/4 -> 7+3/4. A digit belongs to one match only: 1 2 3 -> 1+2 3.
std::string join_mixed_numbers(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    out.push_back(text[at]);
    std::size_t next = at + 1;
    skip_spaces(text, next);
    if (is_ascii_digit(text[at]) && next > at + 1 && next < text.size() && is_ascii_digit(text[next])) {
      out.push_back('+');
      out.push_back(text[next]);
      at = next + 1;
    } else {
      ++at;
    }
  }
  return out;
}

bool near_integer(double value) { return std::isfinite(value) && std::abs(value - std::nearbyint(value)) <= 1e-7; }

// Longer texts are no answers; they keep their LaTeX.
constexpr std::size_t max_latex_bytes = std::size_t{16} << 10;

std::string latex_to_plain(const std::string& text) {
  if (text.size() > max_latex_bytes) return text;
  std::string prepared = replace_all(text, "\\tfrac", "\\frac");
  prepared = replace_all(prepared, "\\dfrac", "\\frac");
  prepared = replace_all(prepared, "\\frac", " \\frac");  // keeps 1\frac12 a mixed number
  const auto converted = latex_to_text(prepared);
  if (!converted) return text;
  std::string out = *converted;
  static constexpr std::string_view symbols[][2] = {{"√", "sqrt"}, {"π", "pi"}, {"∞", "inf"},
                                                    {"∪", "U"},    {"·", "*"},  {"×", "*"}};
  for (const auto& [from, to] : symbols) out = replace_all(out, from, to);
  return std::string(strip(out));
}

}  // namespace

std::string strip_thousands_commas(std::string_view text) {
  std::string current(text);
  const auto digit_at = [&current](std::size_t at, std::size_t& bytes) {
    const CodePoint c = code_point(current, at);
    bytes = c.bytes;
    return c.bytes > 0 && decimal_value(c.value) >= 0;
  };
  for (bool changed = true; changed;) {
    changed = false;
    if (current.find(',') == std::string::npos) break;
    std::string out;
    for (std::size_t at = 0; at < current.size();) {
      std::size_t bytes = 0;
      const bool digit = digit_at(at, bytes);
      const std::size_t comma = at + bytes;
      out.append(current, at, bytes);
      at = comma;
      if (!digit || comma >= current.size() || current[comma] != ',') continue;
      std::size_t end = comma + 1;
      int digits = 0;
      while (digits < 3 && digit_at(end, bytes)) end += bytes, ++digits;
      // What follows the three digits belongs to the match: the next match starts after it.
      if (digits < 3 || digit_at(end, bytes)) continue;
      out.append(current, comma + 1, end + bytes - comma - 1);
      at = end + bytes;
      changed = true;
    }
    current = std::move(out);
  }
  return current;
}

bool is_integer_valued(std::string_view text) {
  const auto value = python_float(strip_thousands_commas(text));
  return value && near_integer(*value);
}

bool looks_like_fraction(std::string_view text) {
  std::size_t at = text.starts_with('-') ? 1 : 0;
  const std::size_t first = at;
  while (at < text.size() && is_ascii_digit(text[at])) ++at;
  if (at == first) return false;
  const auto is_end = [&text](std::size_t p) { return p == text.size() || (p + 1 == text.size() && text[p] == '\n'); };
  const auto denominator = [&](std::size_t p) {
    bool nonzero = false;
    for (; p < text.size() && is_ascii_digit(text[p]); ++p) nonzero |= text[p] != '0';
    if (!nonzero) return false;
    if (is_end(p)) return true;
    return text[p] != '\n' && is_end(p + code_point(text, p).bytes);
  };
  if (at < text.size() && text[at] == '/' && denominator(at + 1)) return true;
  const std::size_t stray = code_point(text, at).bytes;
  if (stray == 0 || text[at] == '\n') return false;
  return at + stray < text.size() && text[at + stray] == '/' && denominator(at + stray + 1);
}

std::vector<std::string> split_elements(std::string_view text) {
  const std::string joined = strip_thousands_commas(text);
  if (joined.empty()) return {};
  std::vector<std::string> elements;
  if (joined.size() > 2 && is_bracket(joined.front()) && is_bracket(joined.back())) {
    const std::string_view inside = std::string_view(joined).substr(1, joined.size() - 2);
    if (inside.find_first_of("()[]") == std::string_view::npos) {
      for (const auto part : split(inside, ",")) elements.emplace_back(strip(part));
      return elements;
    }
  }
  elements.push_back(joined);
  return elements;
}

std::string plain_normalize(std::string_view answer) {
  std::string text(unwrap_text_macro(answer));
  static constexpr std::string_view replacements[][2] = {
      {"\\%", "%"},
      {"\\$", "$"},
      {"$", ""},
      {"%", ""},
      {" or ", " , "},
      {" and ", " , "},
      {"million", "*10^6"},
      {"billion", "*10^9"},
      {"trillion", "*10^12"},
  };
  for (const auto& [from, to] : replacements) text = replace_all(text, from, to);
  static constexpr std::string_view units[] = {"degree", "cm",   "centimeter", "meter", "mile",  "second",
                                               "minute", "hour", "day",        "week",  "month", "year",
                                               "foot",   "feet", "inch",       "yard"};
  for (const auto unit : units) text = delete_unit(text, unit);
  text = delete_degrees(text);
  if (text.starts_with('{') && text.ends_with('}')) text = text.substr(1, text.size() - 2);
  text = delete_with_spaces(text, ",\\!");
  if (const auto value = python_float(text); value && near_integer(*value))
    text = integral_text(std::nearbyint(*value));
  if (contains(text, "\\")) text = latex_to_plain(text);
  text = join_mixed_numbers(close_up_minus(text));
  for (const char* dropped : {" ", "{", "}"}) text = replace_all(text, dropped, "");
  text = lower(text);
  if (is_integer_valued(text)) text = integral_text(*python_float(replace_all(text, ",", "")));
  return text;
}

}  // namespace furlong::grader
