// The deepscaler rule for mathematical answers (docs/grader.md).
#pragma once
#include <string_view>

namespace furlong::grader {

// Whether two bare answers agree: equal in form M, or equal in form N, or element by element as algebra. Answers or
// labels of more than 64 KiB agree only if they are the same text.
bool answers_agree(std::string_view answer, std::string_view label);

}  // namespace furlong::grader
