#include "reward/unicode_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

#include "reward/text.h"

namespace furlong::grader::ifbench {
namespace {

// Other_Lowercase and Other_Uppercase of Unicode's PropList.txt: marks, numerals and symbols that have a case.
constexpr CharRange other_lower[] = {
    {0x00AA, 0x00AA}, {0x00BA, 0x00BA}, {0x02B0, 0x02B8},   {0x02C0, 0x02C1},   {0x02E0, 0x02E4},   {0x0345, 0x0345},
    {0x037A, 0x037A}, {0x1D2C, 0x1D6A}, {0x1D78, 0x1D78},   {0x1D9B, 0x1DBF},   {0x2071, 0x2071},   {0x207F, 0x207F},
    {0x2090, 0x209C}, {0x2170, 0x217F}, {0x24D0, 0x24E9},   {0x2C7C, 0x2C7D},   {0xA69C, 0xA69D},   {0xA770, 0xA770},
    {0xA7F8, 0xA7F9}, {0xAB5C, 0xAB5F}, {0x10780, 0x10780}, {0x10783, 0x10785}, {0x10787, 0x107B0}, {0x107B2, 0x107BA}};
constexpr CharRange other_upper[] = {
    {0x2160, 0x216F}, {0x24B6, 0x24CF}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}};

utf8proc_category_t category(char32_t c) {
  return is_invalid_byte(c) ? UTF8PROC_CATEGORY_CN : utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

char32_t lower(char32_t c) {
  if (c < 0x80) return c >= U'A' && c <= U'Z' ? c + 32 : c;
  return is_invalid_byte(c) ? c : static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

template <class Belongs>
std::vector<View> runs(View text, Belongs belongs) {
  std::vector<View> out;
  for (std::size_t at = 0; at < text.size();) {
    std::size_t end = at;
    while (end < text.size() && belongs(text[end])) ++end;
    if (end > at) out.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

// Whether all letters with a case have this one, and there is any.
bool has_case(View text, bool upper) {
  bool found = false;
  for (const char32_t c : text) {
    if (upper ? is_lower(c) : is_upper(c)) return false;
    if (c >= 0x80 && category(c) == UTF8PROC_CATEGORY_LT) return false;
    found = found || (upper ? is_upper(c) : is_lower(c));
  }
  return found;
}

// \b: a character of \w stands on one side only.
bool is_bound(View text, std::size_t at) {
  return (at > 0 && is_word(text[at - 1])) != (at < text.size() && is_word(text[at]));
}

}  // namespace

Text decode(std::string_view utf8) {
  Text out;
  out.reserve(utf8.size());
  for (std::size_t at = 0; at < utf8.size();) {
    const CodePoint c = code_point(utf8, at);
    out.push_back(c.value);
    at += c.bytes;
  }
  return out;
}

std::string encode(View text) {
  std::string out;
  for (const char32_t c : text) append_code_point(out, c);
  return out;
}

bool is_alnum(char32_t c) {
  if (c < 0x80) return (c >= U'0' && c <= U'9') || (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z');
  if (is_alpha(c)) return true;
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}

bool is_word(char32_t c) { return c == U'_' || is_alnum(c); }

bool is_nltk_word(char32_t c) {
  if (c < 0x80) return is_word(c);
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return is_alpha(c) || is_within(c, other_lower) || is_within(c, other_upper);
  }
}

bool is_decimal(char32_t c) { return c < 0x80 ? c >= U'0' && c <= U'9' : category(c) == UTF8PROC_CATEGORY_ND; }

bool is_upper(char32_t c) {
  if (c < 0x80) return c >= U'A' && c <= U'Z';
  return category(c) == UTF8PROC_CATEGORY_LU || is_within(c, other_upper);
}
bool is_lower(char32_t c) {
  if (c < 0x80) return c >= U'a' && c <= U'z';
  return category(c) == UTF8PROC_CATEGORY_LL || is_within(c, other_lower);
}

bool is_punctuation(char32_t c) {
  return (c >= U'!' && c <= U'/') || (c >= U':' && c <= U'@') || (c >= U'[' && c <= U'`') || (c >= U'{' && c <= U'~');
}

Text lower(View text) {
  Text out(text);
  for (char32_t& c : out) c = lower(c);
  return out;
}

bool is_upper(View text) { return has_case(text, true); }
bool is_lower(View text) { return has_case(text, false); }
bool is_blank(View text) { return std::all_of(text.begin(), text.end(), is_space); }

Text fold_to_ascii(View text) {
  const std::string utf8 = encode(text);
  utf8proc_uint8_t* mapped = nullptr;
  const auto size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(utf8.data()), static_cast<utf8proc_ssize_t>(utf8.size()),
                   &mapped, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT));
  Text out;
  if (size < 0) {  // not UTF-8
    std::copy_if(text.begin(), text.end(), std::back_inserter(out), [](char32_t c) { return c < 0x80; });
    return out;
  }
  for (utf8proc_ssize_t i = 0; i < size; ++i) {
    if (mapped[i] < 0x80) out.push_back(mapped[i]);
  }
  std::free(mapped);
  return out;
}

View strip(View text) { return strip_of(text, is_space); }
View strip_right(View text) { return strip_right_of(text, is_space); }

Text without_punctuation(View text) {
  Text out;
  std::copy_if(text.begin(), text.end(), std::back_inserter(out), [](char32_t c) { return !is_punctuation(c); });
  return out;
}

std::vector<View> split(View text) {
  return runs(text, [](char32_t c) { return !is_space(c); });
}
std::vector<View> words_of(View text) { return runs(text, is_nltk_word); }
std::vector<View> numbers_of(View text) { return runs(text, is_decimal); }

std::vector<View> split_at(View text, View separator) {
  std::vector<View> parts;
  std::size_t at = 0;
  for (std::size_t found; (found = text.find(separator, at)) != View::npos; at = found + separator.size())
    parts.push_back(text.substr(at, found - at));
  parts.push_back(text.substr(at));
  return parts;
}

Text join(const std::vector<View>& parts, View separator) {
  Text out;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) out += separator;
    out += parts[i];
  }
  return out;
}

std::size_t count(View text, View part) { return split_at(text, part).size() - 1; }

Text replace_all(View text, View from, View to) { return join(split_at(text, from), to); }

std::size_t find_word(View text, View word) {
  for (std::size_t at = 0; (at = text.find(word, at)) != View::npos; ++at) {
    if (is_bound(text, at) && is_bound(text, at + word.size())) return at;
  }
  return View::npos;
}

std::size_t find_pattern(View text, View pattern, bool bounded, std::size_t at) {
  const auto same = [](char32_t wanted, char32_t c) { return wanted == U'.' ? c != U'\n' : wanted == c; };
  for (; at + pattern.size() <= text.size(); ++at) {
    if (!std::equal(pattern.begin(), pattern.end(), text.begin() + static_cast<std::ptrdiff_t>(at), same)) continue;
    if (!bounded || (is_bound(text, at) && is_bound(text, at + pattern.size()))) return at;
  }
  return View::npos;
}

}  // namespace furlong::grader::ifbench
