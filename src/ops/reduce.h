#pragma once
#include "tensor/stream.h"

namespace furlong {

// y += x, elementwise, one rounding
void add(Stream&, Tensor y, Tensor x);
// y = x, converting the dtype; rows may be strided on either side
void convert(Stream&, Tensor y, Tensor x);
// x *= factor, one rounding
void scale(Stream&, Tensor x, double factor);
// x = 0
void set_zero(Stream&, Tensor x);
// Σ x² in double, in a fixed order
double sum_of_squares(Stream&, Tensor x);
// True when every entry is finite.
bool all_finite(Stream&, Tensor x);

}  // namespace furlong
