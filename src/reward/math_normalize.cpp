#include "reward/math_normalize.h"

#include <optional>

#include "reward/python_number.h"
#include "reward/text.h"

namespace furlong::grader {

namespace {

// \sqrt3 -> \sqrt{3}. Empty where nothing follows a \sqrt.
std::optional<std::string> brace_roots(const std::string& text) {
  const auto parts = split(text, "\\sqrt");
  std::string out(parts[0]);
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const std::string_view part = parts[i];
    if (part.empty()) return std::nullopt;
    out += "\\sqrt";
    if (part[0] == '{') {
      out += part;
    } else {
      const std::size_t first = code_point(part, 0).bytes;
      out.append("{").append(part.substr(0, first)).append("}").append(part.substr(first));
    }
  }
  return out;
}

// \frac12 -> \frac{1}{2}, \frac1{72} -> \frac{1}{72}. A \frac with one character after it leaves the whole text as it
// was; one with nothing after it gives an empty result.
std::optional<std::string> brace_fractions(const std::string& text) {
  const auto parts = split(text, "\\frac");
  std::string out(parts[0]);
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const std::string_view part = parts[i];
    if (part.empty()) return std::nullopt;
    out += "\\frac";
    if (part[0] == '{') {
      out += part;
      continue;
    }
    const std::size_t a = code_point(part, 0).bytes;
    const std::size_t b = code_point(part, a).bytes;
    if (b == 0) return text;
    out.append("{").append(part.substr(0, a)).append("}");
    if (part[a] == '{') {
      out += part.substr(a);
    } else {
      out.append("{").append(part.substr(a, b)).append("}").append(part.substr(a + b));
    }
  }
  return out;
}

// 3/4 -> \frac{3}{4}, for integers as they are normally written.
std::string slash_to_fraction(const std::string& text) {
  const std::size_t slash = text.find('/');
  if (slash == std::string::npos) return text;
  const std::string_view a = std::string_view(text).substr(0, slash);
  const std::string_view b = std::string_view(text).substr(slash + 1);
  if (!is_canonical_integer(a) || !is_canonical_integer(b)) return text;
  std::string out = "\\frac{";
  return out.append(a).append("}{").append(b).append("}");
}

std::optional<std::string> repair(std::string_view answer) {
  std::string text(answer);
  static constexpr std::string_view replacements[][2] = {
      {"\n", ""},     {"\\!", ""},     {"\\\\", "\\"},    {"tfrac", "frac"}, {"dfrac", "frac"},
      {"\\left", ""}, {"\\right", ""}, {"^{\\circ}", ""}, {"^\\circ", ""},   {"\\$", ""},
  };
  for (const auto& [from, to] : replacements) text = replace_all(text, from, to);
  // "\text{ " opens a unit.
  const auto units = split(text, "\\text{ ");
  if (units.size() > 2) return std::nullopt;
  if (units.size() == 2) text = std::string(units[0]);
  text = replace_all(text, "\\%", "");
  text = replace_all(text, " .", " 0.");
  text = replace_all(text, "{.", "{0.");
  if (text.empty()) return text;
  if (text[0] == '.') text.insert(text.begin(), '0');
  const auto sides = split(text, "=");
  if (sides.size() == 2 && count_code_points(sides[0]) <= 2) text = std::string(sides[1]);
  auto rooted = brace_roots(text);
  if (!rooted) return std::nullopt;
  auto fractions = brace_fractions(replace_all(*rooted, " ", ""));
  if (!fractions) return std::nullopt;
  if (*fractions == "0.5") return "\\frac{1}{2}";
  return slash_to_fraction(*fractions);
}

}  // namespace

std::string math_normalize(std::string_view answer) {
  answer = strip(answer);
  answer = strip(unwrap_text_macro(answer));
  auto repaired = repair(answer);
  return repaired ? *repaired : std::string(answer);
}

}  // namespace furlong::grader
