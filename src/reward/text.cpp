#include "reward/text.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>

namespace furlong::grader {

namespace {

constexpr char32_t invalid_byte_base = 0xDC00;

// Characters of numeric type Digit that are no decimal digits (UnicodeData.txt, field 7 without field 6).
constexpr CharRange other_digits[] = {
    {0x00B2, 0x00B3}, {0x00B9, 0x00B9},   {0x1369, 0x1371},   {0x19DA, 0x19DA},   {0x2070, 0x2070},
    {0x2074, 0x2079}, {0x2080, 0x2089},   {0x2460, 0x2468},   {0x2474, 0x247C},   {0x2488, 0x2490},
    {0x24EA, 0x24EA}, {0x24F5, 0x24FD},   {0x24FF, 0x24FF},   {0x2776, 0x277E},   {0x2780, 0x2788},
    {0x278A, 0x2792}, {0x10A40, 0x10A43}, {0x10E60, 0x10E68}, {0x11052, 0x1105A}, {0x1F100, 0x1F10A},
};

}  // namespace

CodePoint code_point(std::string_view text, std::size_t at) {
  if (at >= text.size()) return {};
  const auto byte = static_cast<unsigned char>(text[at]);
  if (byte < 0x80) return {byte, 1};
  utf8proc_int32_t value = 0;
  const auto bytes =
      utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                       static_cast<utf8proc_ssize_t>(std::min<std::size_t>(text.size() - at, 4)), &value);
  if (bytes <= 0) return {invalid_byte_base + byte, 1};
  return {static_cast<char32_t>(value), static_cast<std::size_t>(bytes)};
}

std::size_t count_code_points(std::string_view text) {
  std::size_t count = 0;
  for (std::size_t at = 0; at < text.size(); at += code_point(text, at).bytes) ++count;
  return count;
}

void append_code_point(std::string& out, char32_t value) {
  if (value < 0x80) {
    out.push_back(static_cast<char>(value));
    return;
  }
  if (is_invalid_byte(value)) {
    out.push_back(static_cast<char>(value - invalid_byte_base));
    return;
  }
  utf8proc_uint8_t bytes[4];
  const auto count = utf8proc_encode_char(static_cast<utf8proc_int32_t>(value), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(std::max<utf8proc_ssize_t>(count, 0)));
}

bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_alpha(char32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  if (is_invalid_byte(c)) return false;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return true;
    default: return false;
  }
}

int decimal_value(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9' ? static_cast<int>(c - '0') : -1;
  const auto is_decimal = [](char32_t x) {
    return !is_invalid_byte(x) && utf8proc_category(static_cast<utf8proc_int32_t>(x)) == UTF8PROC_CATEGORY_ND;
  };
  if (!is_decimal(c)) return -1;
  // Decimal digits stand in Unicode as unbroken rows of ten, several rows at most (the mathematical ones) in a block.
  char32_t first = c;
  while (is_decimal(first - 1)) --first;
  return static_cast<int>((c - first) % 10);
}

bool is_digit(char32_t c) { return decimal_value(c) >= 0 || is_within(c, other_digits); }

bool is_within(char32_t c, std::span<const CharRange> rising) {
  const auto after = std::upper_bound(rising.begin(), rising.end(), c,
                                      [](char32_t value, const CharRange& range) { return value < range.first; });
  return after != rising.begin() && c <= std::prev(after)->last;
}

std::string_view strip(std::string_view text) {
  const auto ascii_space = [text](std::size_t at) {
    return static_cast<unsigned char>(text[at]) < 0x80 && is_space(static_cast<char32_t>(text[at]));
  };
  std::size_t begin = 0;
  while (begin < text.size()) {
    if (ascii_space(begin)) {
      ++begin;
      continue;
    }
    const CodePoint c = code_point(text, begin);
    if (!is_space(c.value)) break;
    begin += c.bytes;
  }
  std::size_t end = text.size();
  while (end > begin) {
    std::size_t last = end - 1;
    if (ascii_space(last)) {
      end = last;
      continue;
    }
    while (last > begin && end - last < 4 && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    const CodePoint c = code_point(text, last);
    if (last + c.bytes != end || !is_space(c.value)) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

std::string lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point(text, at);
    at += c.bytes;
    if (c.value < 0x80) {
      out.push_back(c.value >= 'A' && c.value <= 'Z' ? static_cast<char>(c.value + 32) : static_cast<char>(c.value));
    } else if (is_invalid_byte(c.value)) {
      append_code_point(out, c.value);
    } else {
      append_code_point(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.value))));
    }
  }
  return out;
}

std::string compose(std::string_view text) {
  utf8proc_uint8_t* mapped = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &mapped, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) return std::string(text);
  std::string out(reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(size));
  std::free(mapped);
  return out;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::size_t found = text.find(from);
  if (found == std::string_view::npos) return std::string(text);
  std::string out;
  out.reserve(text.size());
  std::size_t at = 0;
  for (; found != std::string_view::npos; found = text.find(from, at)) {
    out.append(text, at, found - at);
    out.append(to);
    at = found + from.size();
  }
  out.append(text, at);
  return out;
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator) {
  std::vector<std::string_view> parts;
  std::size_t at = 0;
  for (std::size_t found; (found = text.find(separator, at)) != std::string_view::npos; at = found + separator.size())
    parts.push_back(text.substr(at, found - at));
  parts.push_back(text.substr(at));
  return parts;
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

std::string_view unwrap_text_macro(std::string_view text) {
  constexpr std::string_view open = "\\text{";
  if (!text.starts_with(open)) return text;
  std::string_view inside = text.substr(open.size());
  if (inside.ends_with('\n')) inside.remove_suffix(1);
  if (!inside.ends_with('}')) return text;
  inside.remove_suffix(1);
  if (inside.empty() || contains(inside, "\n")) return text;
  return inside;
}

}  // namespace furlong::grader
