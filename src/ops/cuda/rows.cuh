// What kernels over the rows of a packed batch share: the segment of a row, numbers loaded several at a time.
#pragma once
#include "ops/cuda/kernel.cuh"

namespace furlong::cuda {

// The segment that row t lies in: the last whose start is at or before it.
__device__ inline int segment_of(const int32_t* starts, int segments, int t) {
  int low = 0, high = segments - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (starts[middle] <= t) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// V consecutive numbers, loaded and stored as one.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

template <int V, class T>
__device__ inline void widen(float (&out)[V], const Pack<T, V>& p) {
#pragma unroll
  for (int i = 0; i < V; i++) out[i] = widen(p.at[i]);
}
template <int V, class T>
__device__ inline Pack<T, V> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}
template <int V, class T>
__device__ inline void load(float (&out)[V], const T* from) {
  widen(out, load_pack<V>(from));
}

template <int V, class T>
__device__ inline void store(T* to, const float (&x)[V]) {
  Pack<T, V> p;
  if constexpr (std::is_same_v<T, half_t> && V % 2 == 0) {
#pragma unroll
    for (int i = 0; i < V; i += 2) {
      *reinterpret_cast<__nv_bfloat162*>(p.at + i) = __floats2bfloat162_rn(x[i], x[i + 1]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; i++) p.at[i] = narrow<T>(x[i]);
  }
  *reinterpret_cast<Pack<T, V>*>(to) = p;
}

// Whether rows of this tensor can be read in packs of V.
template <class T, int V>
bool packs(const Tensor& t, int64_t columns) {
  return columns % V == 0 && t.row_stride() % V == 0 && reinterpret_cast<uintptr_t>(t.data()) % (sizeof(T) * V) == 0;
}

}  // namespace furlong::cuda
