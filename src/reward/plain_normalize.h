// The second normal form of deepscaler's rule: plain text that an expression parser can read (docs/grader.md, form N).
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace furlong::grader {

// Near linear in the text.
std::string plain_normalize(std::string_view answer);

// 1,234 -> 1234, but not the commas of a list; as one pass after another of non-overlapping matches finds them, so that
// three commas in one number leave one behind.
std::string strip_thousands_commas(std::string_view text);

// Whether the text, thousands commas aside, is a number within 1e-7 of an integer.
bool is_integer_valued(std::string_view text);

// Whether the text looks like p/q with integers p and q != 0, one stray character after either allowed.
bool looks_like_fraction(std::string_view text);

// The elements of a normalised answer: inside one pair of brackets out of ()[] the parts between commas, otherwise the
// text as one element. Nothing for an empty text.
std::vector<std::string> split_elements(std::string_view text);

}  // namespace furlong::grader
