#include "reward/dapo.h"

#include <cmath>

#include "reward/python_number.h"
#include "reward/text.h"

namespace furlong::grader {

namespace {

constexpr std::size_t tail_characters = 300;

// The last `count` characters.
std::string_view tail(std::string_view text, std::size_t count) {
  const std::size_t bytes = std::min(text.size(), 4 * count);
  std::string_view end = text.substr(text.size() - bytes);
  // Starting inside a character would count its rest as several.
  for (int i = 0; i < 3 && end.size() < text.size() && (static_cast<unsigned char>(end[0]) & 0xC0) == 0x80; ++i)
    end.remove_prefix(1);
  for (std::size_t have = count_code_points(end); have > count; --have) end.remove_prefix(code_point(end, 0).bytes);
  return end;
}

// Whether "answer" in any case starts at `at`; moves `at` behind it. The long s is an s to a pattern that ignores case.
bool accept_answer_word(std::string_view text, std::size_t& at) {
  std::size_t next = at;
  for (const char expected : {'a', 'n', 's', 'w', 'e', 'r'}) {
    const CodePoint c = code_point(text, next);
    const bool same = c.value == static_cast<char32_t>(expected) || c.value == static_cast<char32_t>(expected - 32) ||
                      (expected == 's' && c.value == 0x17F);
    if (c.bytes == 0 || !same) return false;
    next += c.bytes;
  }
  at = next;
  return true;
}

std::size_t skip_white(std::string_view text, std::size_t at) {
  for (CodePoint c = code_point(text, at); c.bytes > 0 && is_space(c.value); c = code_point(text, at)) at += c.bytes;
  return at;
}

// What the last match of "Answer : <rest of line>" holds.
std::optional<std::string_view> last_answer(std::string_view text) {
  std::optional<std::string_view> found;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t next = at;
    if (!accept_answer_word(text, next)) {
      ++at;
      continue;
    }
    next = skip_white(text, next);
    if (next >= text.size() || text[next] != ':') {
      ++at;
      continue;
    }
    const std::size_t after_colon = next + 1;
    std::size_t begin = skip_white(text, after_colon);
    if (begin >= text.size()) {
      // Only white space is left: of that the match keeps the last character that is no line feed.
      begin = std::string_view::npos;
      for (std::size_t i = after_colon; i < text.size(); i += code_point(text, i).bytes)
        if (text[i] != '\n') begin = i;
      if (begin == std::string_view::npos) {
        ++at;
        continue;
      }
    }
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    found = text.substr(begin, end - begin);
    at = end;
  }
  return found;
}

// Keeps what stands between the first two $ of each line that has them, with the $.
std::string keep_math(const std::string& text) {
  std::string out;
  bool first = true;
  for (const auto line : split(text, "\n")) {
    if (!first) out += '\n';
    first = false;
    const std::size_t open = line.find('$');
    const std::size_t close = open == std::string_view::npos ? open : line.find('$', open + 1);
    out += close == std::string_view::npos ? line : line.substr(open, close + 1 - open);
  }
  return out;
}

// Takes `open` and the brace that closes it off: the next one, or the line's last one.
std::string unwrap(const std::string& text, std::string_view open, bool to_last_brace) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t found; (found = text.find(open, at)) != std::string::npos;) {
    const std::size_t begin = found + open.size();
    const std::size_t line_end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, line_end - begin);
    const std::size_t close = to_last_brace ? line.rfind('}') : line.find('}');
    out.append(text, at, found - at);
    if (close == std::string_view::npos) {
      out.append(open);
      at = begin;
    } else {
      out.append(line.substr(0, close));
      at = begin + close + 1;
    }
  }
  return out.append(text, at);
}

// frac12 -> frac{1}{2} (takes 2), sqrt3 -> sqrt{3} (takes 1).
std::string brace_shorthand(const std::string& text, std::string_view name, int takes) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t found; (found = text.find(name, at)) != std::string::npos;) {
    const std::size_t begin = found + name.size();
    out.append(text, at, begin - at);
    at = begin;
    const std::size_t first = code_point(text, begin).bytes;
    const std::size_t second = takes == 2 ? code_point(text, begin + first).bytes : 0;
    if (first == 0 || text[begin] == '{') continue;
    if (takes == 2 && (second == 0 || text[begin + first] == '\n')) continue;
    out.append("{").append(text, begin, first).append("}");
    if (takes == 2) out.append("{").append(text, begin + first, second).append("}");
    at = begin + first + second;
  }
  return out.append(text, at);
}

bool is_digits(std::string_view text) {
  for (std::size_t at = 0; at < text.size(); at += code_point(text, at).bytes)
    if (!is_digit(code_point(text, at).value)) return false;
  return !text.empty();
}

}  // namespace

std::string dapo_normalize(std::string_view answer) {
  std::string text(answer.substr(answer.rfind('=') + 1));
  static constexpr std::string_view replacements[][2] = {
      {"an ", ""}, {"a ", ""},       {".$", "$"},           {"\\$", ""},          {"\\ ", ""},
      {" ", ""},   {"mbox", "text"}, {",\\text{and}", ","}, {"\\text{and}", ","}, {"\\text{m}", "\\text{}"},
  };
  for (const auto& [from, to] : replacements) text = replace_all(text, from, to);
  static constexpr std::string_view dropped[] = {
      "square",
      "ways",
      "integers",
      "dollars",
      "mph",
      "inches",
      "hours",
      "km",
      "units",
      "\\ldots",
      "sue",
      "points",
      "feet",
      "minutes",
      "digits",
      "cents",
      "degrees",
      "cm",
      "gm",
      "pounds",
      "meters",
      "meals",
      "edges",
      "students",
      "childrentickets",
      "multiples",
      "\\text{s}",
      "\\text{.}",
      "\\text{\ns}",
      "\\text{}^2",
      "\\text{}^3",
      "\\text{\n}",
      "\\text{}",
      "\\mathrm{th}",
      "^\\circ",
      "^{\\circ}",
      "\\;",
      ",\\!",
      "{,}",
      "\"",
      "\\dots",
      "<|im_end|>",
      "<|endoftext|>",
  };
  for (const auto word : dropped) text = replace_all(text, word, "");
  text = keep_math(text);
  text = unwrap(text, "\\text{", false);
  text = unwrap(text, "\\textbf{", false);
  text = unwrap(text, "\\overline{", false);
  text = unwrap(text, "\\boxed{", true);
  text = brace_shorthand(text, "frac", 2);
  text = brace_shorthand(text, "sqrt", 1);
  text = replace_all(text, "$", "");
  std::string digits = replace_all(text, ",", "");
  if (is_digits(digits)) return digits;
  return std::string(strip(text));
}

std::optional<std::string> dapo_label(std::string_view label) {
  const auto value = python_float(dapo_normalize(label));
  if (!value || !std::isfinite(*value)) return std::nullopt;
  return integral_text(*value);
}

std::string dapo_answer(std::string_view response) {
  return dapo_normalize(last_answer(tail(response, tail_characters)).value_or("[INVALID]"));
}

}  // namespace furlong::grader
