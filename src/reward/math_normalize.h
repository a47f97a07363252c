// The first of the two normal forms in which deepscaler's rule compares answers: light repairs of LaTeX, after the
// evaluation of the MATH data set (docs/grader.md, form M).
#pragma once
#include <string>
#include <string_view>

namespace furlong::grader {

// Linear in the text. Where a rule meets LaTeX it cannot repair, the text comes back trimmed but otherwise as it was.
std::string math_normalize(std::string_view answer);

}  // namespace furlong::grader
