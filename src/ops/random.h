// Random numbers straight into a tensor.
#pragma once
#include "base/rng.h"
#include "tensor/stream.h"

namespace furlong {

// x[r, j] = scale · normal(key, first + r·stride + j), f32 or bf16 (rounded), x contiguous: parts of the rows of a
// larger tensor. stride 0: the rows follow one another there, too. Of key.position the upper bits of a place are taken.
// Devices agree to the rounding of their logarithm and cosine.
void random_normal(Stream&, Tensor x, const RngKey& key, double scale, int64_t first = 0, int64_t stride = 0);

}  // namespace furlong
