// The gates of the delta rule, for one row and head.
#pragma once
#include "ops/cuda/kernel.cuh"

namespace furlong::cuda {

__device__ inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }
__device__ inline float sigmoid_exact(float x) { return 1.0f / (1.0f + expf(-x)); }

// (g, beta)
template <class T>
__device__ inline float2 gates_of(float A_log, T a, T b, T dt_bias) {
  return {-expf(A_log) * softplus(widen(a) + widen(dt_bias)), sigmoid_exact(widen(b))};
}

}  // namespace furlong::cuda
