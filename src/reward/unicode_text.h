// Python's str on whole characters, for rules that count, index and compare them: what text.h does on UTF-8, on UTF-32.
// An invalid byte is one character (0xDC80 and up) of no class.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "reward/text.h"

namespace furlong::grader::ifbench {

// Of the same names on UTF-8.
using grader::contains, grader::lower, grader::replace_all, grader::split, grader::strip;

using Text = std::u32string;
using View = std::u32string_view;

Text decode(std::string_view utf8);
std::string encode(View text);

bool is_word(char32_t c);         // \w in a pattern of re: str.isalnum or an underscore
bool is_nltk_word(char32_t c);    // \w in a pattern of regex, which NLTK uses: marks as well, no superscripts
bool is_alnum(char32_t c);        // str.isalnum
bool is_decimal(char32_t c);      // \d in a pattern
bool is_upper(char32_t c);        // str.isupper
bool is_lower(char32_t c);        // str.islower
bool is_emoji(char32_t c);        // one by itself
bool is_punctuation(char32_t c);  // of string.punctuation: the 32 of ASCII
inline bool is_in(char32_t c, View set) { return set.find(c) != View::npos; }
inline bool is_edge(char32_t c) { return c == U' ' || is_punctuation(c); }

Text lower(View text);          // str.lower(), character by character
bool is_upper(View text);       // str.isupper(): some letter has a case, and all that have one are upper
bool is_lower(View text);       // str.islower()
bool is_blank(View text);       // not text.strip()
Text fold_to_ascii(View text);  // NFKD, then what is ASCII: accents are lost, as are other scripts

View strip(View text);  // of white space
View strip_right(View text);
// str.strip(characters) for those that `drops` names; of one side with strip_left_of, strip_right_of.
template <class Drops>
View strip_left_of(View text, Drops drops) {
  while (!text.empty() && drops(text.front())) text.remove_prefix(1);
  return text;
}
template <class Drops>
View strip_right_of(View text, Drops drops) {
  while (!text.empty() && drops(text.back())) text.remove_suffix(1);
  return text;
}
template <class Drops>
View strip_of(View text, Drops drops) {
  return strip_right_of(strip_left_of(text, drops), drops);
}
Text without_punctuation(View text);

std::vector<View> split(View text);                     // str.split(): at white space
std::vector<View> split_at(View text, View separator);  // str.split(separator); `separator` is not empty
std::vector<View> words_of(View text);                  // the runs of NLTK's \w
std::vector<View> numbers_of(View text);                // the runs of \d
Text join(const std::vector<View>& parts, View separator);

inline bool contains(View text, View part) { return text.find(part) != View::npos; }
std::size_t count(View text, View part);  // str.count: without overlaps; `part` is not empty
Text replace_all(View text, View from, View to);

// Where \bword\b stands in `text`, or npos. Cases are told apart unless both are in lower case.
std::size_t find_word(View text, View word);
// The same for a pattern of characters and dots, each of which stands for any character but a newline.
std::size_t find_pattern(View text, View pattern, bool bounded, std::size_t at = 0);

}  // namespace furlong::grader::ifbench
