#include "reward/deepscaler.h"

#include "reward/math_normalize.h"
#include "reward/plain_normalize.h"
#include "reward/symbolic.h"
#include "reward/text.h"

namespace furlong::grader {

namespace {

constexpr std::size_t max_answer_bytes = std::size_t{64} << 10;

bool elements_agree(std::string_view label, std::string_view answer) {
  // An unreduced fraction is wrong, and so is an integer written as anything that is not one.
  if (looks_like_fraction(label) && looks_like_fraction(answer)) return label == answer;
  if (is_integer_valued(label) != is_integer_valued(answer)) return false;
  return symbolic_equal(label, answer);
}

bool agree_as_algebra(std::string_view answer, std::string_view label) {
  const std::string truth = plain_normalize(label), given = plain_normalize(answer);
  if (truth == given) return true;
  if (given.empty()) return false;
  const auto truths = split_elements(truth), givens = split_elements(given);
  // The brackets of a list tell an interval from a point: they have to be the same.
  if (truths.size() > 1 && (truth.front() != given.front() || truth.back() != given.back())) return false;
  if (truths.size() != givens.size()) return false;
  for (std::size_t i = 0; i < truths.size(); ++i)
    if (!elements_agree(truths[i], givens[i])) return false;
  return true;
}

}  // namespace

bool answers_agree(std::string_view answer, std::string_view label) {
  if (strip(answer) == strip(label)) return true;
  if (answer.size() > max_answer_bytes || label.size() > max_answer_bytes) return false;
  return math_normalize(answer) == math_normalize(label) || agree_as_algebra(answer, label);
}

}  // namespace furlong::grader
