// LaTeX as plain text: 1/2 for \frac{1}{2}, √(3) for \sqrt3, π for \pi, nothing for commands that only style. The
// conventions (which commands take arguments, what becomes of white space, of broken LaTeX, of unknown commands) are
// those of pylatexenc's LatexNodes2Text with its default settings, which the reference grader uses.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace furlong::grader {

// Comments (%) and $ are ordinary characters here; no file is ever read. Empty where the reference converter raises an
// error (a \sqrt without argument, an empty matrix), and beyond 240 nested groups. Linear in the text.
std::optional<std::string> latex_to_text(std::string_view latex);

}  // namespace furlong::grader
