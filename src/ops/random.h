// Random numbers straight into a tensor.
#pragma once
#include "base/rng.h"
#include "tensor/stream.h"

namespace furlong {

// x[i] = scale · normal(key, i), f32 or bf16 (rounded); of key.position the upper bits of i are taken. Devices agree to
// the rounding of their logarithm and cosine.
void random_normal(Stream&, Tensor x, const RngKey& key, double scale);

}  // namespace furlong
