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
// <x, w> of k numbers by a warp, V to a load: each lane's share in order, then the sum over the lanes.
template <class T, int V>
__device__ inline float warp_dot(const T* x, const T* w, int64_t k) {
  struct alignas(sizeof(T) * V) Numbers {
    T at[V];
  };
  float sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x % warp * V; i < k; i += warp * V) {
    const auto a = *reinterpret_cast<const Numbers*>(x + i), b = *reinterpret_cast<const Numbers*>(w + i);
#pragma unroll
    for (int j = 0; j < V; j++) sum = fmaf(widen(a.at[j]), widen(b.at[j]), sum);
  }
  return warp_sum(sum);
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

// The kernels of a recorded step start early: while the kernels before them still run, as soon as each of their blocks
// has said dependents_may_start (programmatic dependent launch). A kernel that is launched so
//  - says dependents_may_start first of all;
//  - waits, before it reads what another kernel wrote or writes anything, until all kernels before it have ended;
//  - may read the weights of the model before that: no recorded step writes them.
// One that says dependents_may_start only when its own wait is over lets the next kernel read before its wait, past the
// first-level cache, what kernels before both wrote; where that is all the next one reads, it waits at its end.
// Outside a recording both are nothing, and kernels run one after the other.
__device__ inline void dependents_may_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ inline void wait_for_earlier() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// What a launch in a recording says: that it keeps these rules; and that its multiprocessor shall set as much memory
// aside for blocks as it can, since it does not change that while a block runs, and the next kernels need theirs.
struct EarlyLaunch {
  EarlyLaunch() {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[1].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  }
  static constexpr unsigned count = 2;
  cudaLaunchAttribute attributes[count + 1]{};  // the last one is free
};

// Launches a kernel that keeps these rules.
template <class... Parameters, class... Arguments>
void launch_early(Stream& stream, void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared,
                  const Arguments&... arguments) {
  Queue& queue = stream.queue();
  EarlyLaunch early;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  config.stream = queue.stream;
  config.attrs = early.attributes;
  config.numAttrs = queue.recording ? EarlyLaunch::count : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "launching a kernel");
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

// The logistic function: in fp32 to its last places for fp32 tensors, by the fast exponential for bf16 ones.
template <class T>
__device__ inline float sigmoid_of(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return 1.0f / (1.0f + expf(-x));
  } else {
    return __fdividef(1.0f, 1.0f + __expf(-x));
  }
}

// up · silu(gate)
template <class T>
__device__ inline float swiglu_of(float gate, float up) {
  return up * (gate * sigmoid_of<T>(gate));
}

}  // namespace furlong::cuda
