// Decides whether two expressions are equal as algebra, for the little language that normalised answers are written in.
#pragma once
#include <cstdint>
#include <string_view>

namespace furlong::grader {

// Steps of work spent (limb and term operations); one comparison never spends more than max_symbolic_steps.
struct SymbolicWork {
  std::uint64_t steps = 0;
};
inline constexpr std::uint64_t max_symbolic_steps = 120000;

// Whether truth - answer is zero. Numbers, letters (each its own unknown), pi, sqrt(), ln(), ! and !!, + - * / // ^ **,
// brackets; a missing sign is a multiplication. False for everything else, for more than two distinct letters
// ("sqrt" and "frac" aside), for ^ before a number of several digits or before (, and when the work runs out.
// Nothing is evaluated numerically beyond the bound, nothing recurses deeper than 200 brackets.
bool symbolic_equal(std::string_view truth, std::string_view answer, SymbolicWork* work = nullptr);

}  // namespace furlong::grader
