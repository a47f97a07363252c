// The inside of the reward room lives in furlong::grader; scorer.h, boxed.h and python_number.h are its doors.
// Text helpers with the meaning that Python's str gives them, on UTF-8. A byte that is no part of valid UTF-8 counts
// as one character of its own, belongs to no class and survives unchanged.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace furlong::grader {

struct CodePoint {
  char32_t value = 0;     // 0xDC80 + byte - 0x80 for an invalid byte
  std::size_t bytes = 0;  // length in UTF-8; 0 at the end of the text
};

// The character that starts at byte `at`.
CodePoint code_point(std::string_view text, std::size_t at);
std::size_t count_code_points(std::string_view text);
void append_code_point(std::string& out, char32_t value);

// The characters from the first to the last.
struct CharRange {
  char32_t first, last;
};
bool is_within(char32_t c, std::span<const CharRange> rising);  // that do not overlap

inline bool is_invalid_byte(char32_t c) { return c >= 0xDC80 && c <= 0xDCFF; }
bool is_space(char32_t c);      // str.isspace, and \s in a pattern
bool is_alpha(char32_t c);      // str.isalpha
bool is_digit(char32_t c);      // str.isdigit: decimal digits, superscripts, circled digits
int decimal_value(char32_t c);  // 0..9 for a decimal digit of any script (\d in a pattern), else -1

// str.strip() of white space.
std::string_view strip(std::string_view text);
// str.lower(), character by character.
std::string lower(std::string_view text);
// Canonical composition (NFC); text that is not valid UTF-8 is returned unchanged.
std::string compose(std::string_view text);

// str.replace(from, to); `from` is not empty.
std::string replace_all(std::string_view text, std::string_view from, std::string_view to);
// str.split(separator); `separator` is not empty.
std::vector<std::string_view> split(std::string_view text, std::string_view separator);
bool contains(std::string_view text, std::string_view part);

inline bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

// The inside of a text that is \text{...} as a whole (a last newline may follow), one line and not empty; otherwise
// the text itself.
std::string_view unwrap_text_macro(std::string_view text);

}  // namespace furlong::grader
