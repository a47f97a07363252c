// Random weights for a new model.
#pragma once
#include <cstdint>

#include "base/threads.h"
#include "model/weights.h"

namespace furlong {

// Fills every defined tensor of `weights` (f32 or bf16). stream: draw the matrices where they lie (weights on a device
// otherwise get them from the host); they agree with the host's to the rounding of a logarithm and a cosine. Matrices
// are normal(0, initializer_range), zero-centred norms 0, the DeltaNet's norm 1, its convolution uniform within
// 1/sqrt(taps), A_log = log(uniform(1, 16)) and dt_bias such that softplus(dt_bias) is log-uniform in [1e-3, 1e-1] (Gu
// and Dao, "Mamba", 2023, section 3.6). Every number depends only on the seed, the tensor's place in the registry and
// its own place in the whole tensor: a part of a model (of a rank, or flat) gets the numbers of the whole one.
void init_weights(Weights& weights, const ModelConfig& config, uint64_t seed, double initializer_range,
                  ThreadPool* threads = nullptr, Stream* stream = nullptr);

}  // namespace furlong
