// Finding the final answer in a response.
#pragma once
#include <optional>
#include <string_view>

namespace furlong {

// The last \boxed... of the text with its braces, from the backslash to the brace that closes the first one after it
// (every brace counts, escaped ones too). Empty without \boxed or where its braces never close.
std::optional<std::string_view> last_boxed_command(std::string_view text);

// The inside of the last \boxed. Empty where last_boxed_command is, or where it is not just \boxed{...}.
std::optional<std::string_view> last_boxed(std::string_view text);

// The answer part of a response with a thought: what follows the last </think>; without that tag what stands between
// the first ###Response and the next one; empty without either.
std::optional<std::string_view> after_thought(std::string_view response);

}  // namespace furlong
