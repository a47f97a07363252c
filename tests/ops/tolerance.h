// How far a body may be from the float64 body on the same inputs.
#pragma once
#include <cmath>
#include <cstdint>

#include "tensor/dtype.h"

namespace furlong::test {

// Relative spacing of the numbers of a dtype: 2^-(explicit mantissa bits).
inline double epsilon(DType dtype) {
  return std::ldexp(1.0, dtype == DType::bf16 ? -7 : dtype == DType::f32 ? -23 : -52);
}

// The storage dtype rounds the result once, half a spacing of its own size. Before that it is a sum of `terms` products
// formed in the accumulator's dtype: at worst half a spacing per addition, relative to the size of the sums on the way,
// for which the largest entry of the whole result stands in. A fixed number of further operations (exponential,
// division, square root, each within two spacings) adds to the terms. The factor 4 allows for sums that cancel.
inline double tolerance(DType storage, DType accumulator, int64_t terms, double reference, double largest) {
  constexpr double operations = 16, cancellation = 4;
  const double rounding = storage == accumulator ? 0 : 0.5 * epsilon(storage) * std::abs(reference);
  return 1.01 * rounding +
         0.5 * cancellation * epsilon(accumulator) * (static_cast<double>(terms) + operations) * largest;
}

}  // namespace furlong::test
