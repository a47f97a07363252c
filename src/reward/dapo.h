// The dapo rule: the last "Answer: ..." near the end of a response, compared with an integer label as text
// (docs/grader.md).
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace furlong::grader {

// The rule's normal form of an answer. Linear in the text.
std::string dapo_normalize(std::string_view answer);

// The label as the rule compares it: its integral part in digits. Empty where the label is no finite number.
std::optional<std::string> dapo_label(std::string_view label);

// The normalised answer of a response, "[INVALID]" without one.
std::string dapo_answer(std::string_view response);

}  // namespace furlong::grader
