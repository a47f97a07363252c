// What the kernels share: element types, conversions, sums over warps and blocks in a fixed order, launch sizes.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

#include "ops/cuda/bodies.h"
#include "tensor/cuda/queue.h"

namespace furlong::cuda {

using half_t = __nv_bfloat16;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(half_t x) { return __bfloat162float(x); }
template <class T>
__device__ inline T narrow(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

// The address of a tensor's numbers as a kernel sees them.
template <class T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(t.data());
}

// Calls f.template operator()<T>() for the element type of a dtype.
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f.template operator()<half_t>();
  CHECK(dtype == DType::f32, "no CUDA body for {}", name_of(dtype));
  return f.template operator()<float>();
}

constexpr int warp = 32;

// The sum over a warp, the same in every lane; the order is fixed.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int d = warp / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int d = warp / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
  return x;
}

// The sum over a block of Threads threads, the same in every thread. `shared` holds Threads / 32 floats; the block
// synchronises before and after.
template <int Threads>
__device__ inline float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if constexpr (Threads == warp) return x;
  __syncthreads();
  if (threadIdx.x % warp == 0) shared[threadIdx.x / warp] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < Threads / warp; i++) sum += shared[i];
  return sum;
}

inline int64_t blocks_for(int64_t n, int64_t per_block) { return (n + per_block - 1) / per_block; }

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

}  // namespace furlong::cuda
