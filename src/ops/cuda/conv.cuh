// The causal convolution of a few taps as its kernels see it: those of conv.cu, and the delta rule's decode.
#pragma once
#include "ops/conv.h"
#include "ops/cuda/rows.cuh"

namespace furlong::cuda {

constexpr int fast_taps = 4;  // of the released models

// The operands as the kernels see them.
template <class T>
struct Conv {
  const T* x;
  const T* w;
  int64_t x_stride;
  int rows, channels, taps, segments;
  const int32_t *starts, *positions;
  const int32_t* slots;  // null without memory
  T* window;
  int entries;

  __device__ T* kept(int segment, int position) const {
    return window + (static_cast<int64_t>(slots[segment]) * entries + position % entries) * channels;
  }
  // The input `back` rows before row t of a segment that starts at `first`, or null.
  __device__ const T* before(int segment, int first, int t, int back) const {
    if (t - back >= first) return x + (t - back) * x_stride;
    if (slots == nullptr) return nullptr;
    const int position = positions[t] - back;
    return position < 0 ? nullptr : kept(segment, position);
  }
};

template <class T>
Conv<T> conv_of(const Tensor& x, const Tensor& w, const Segments& segments, const DeltaSlots& slots) {
  Conv<T> c{data_of<T>(x),
            data_of<T>(w),
            x.row_stride(),
            static_cast<int>(x.rows()),
            static_cast<int>(x.dim(1)),
            static_cast<int>(w.dim(2)),
            static_cast<int>(segments.count()),
            segments.starts.as<int32_t>(),
            segments.positions.as<int32_t>(),
            nullptr,
            nullptr,
            1};
  if (slots.defined()) {
    c.slots = slots.slots.as<int32_t>();
    c.window = data_of<T>(slots.window);
    c.entries = static_cast<int>(slots.window.dim(1));
  }
  return c;
}

template <class T, int V>
__device__ inline void load_taps(float (&w)[fast_taps][V], const T* from) {
#pragma unroll
  for (int v = 0; v < V; v++) {
    float t[fast_taps];
    load(t, from + v * fast_taps);
#pragma unroll
    for (int i = 0; i < fast_taps; i++) w[i][v] = t[i];
  }
}

// Four taps that can be loaded as one.
template <class T>
bool has_fast_taps(const Tensor& w) {
  return w.dim(2) == fast_taps && reinterpret_cast<uintptr_t>(w.data()) % (fast_taps * sizeof(T)) == 0;
}

template <class T, int V>
__device__ inline void load_or_zero(float (&out)[V], const T* from, int channel) {
  if (from != nullptr) {
    load(out, from + channel);
  } else {
#pragma unroll
    for (int v = 0; v < V; v++) out[v] = 0;
  }
}

// The three inputs before row t, oldest first.
template <class T, int V>
__device__ inline void load_history(float (&past)[fast_taps - 1][V], const Conv<T>& c, int s, int first, int t,
                                    int channel) {
#pragma unroll
  for (int i = 0; i < fast_taps - 1; i++) load_or_zero(past[i], c.before(s, first, t, fast_taps - 1 - i), channel);
}

template <int V>
__device__ inline void shift(float (&past)[fast_taps - 1][V], const float (&x)[V]) {
#pragma unroll
  for (int v = 0; v < V; v++) {
    past[0][v] = past[1][v];
    past[1][v] = past[2][v];
    past[2][v] = x[v];
  }
}

template <int V>
__device__ inline float tap_sum(const float (&w)[fast_taps][V], const float (&past)[fast_taps - 1][V],
                                const float (&x)[V], int v) {
  return fmaf(w[3][v], x[v], fmaf(w[2][v], past[2][v], fmaf(w[1][v], past[1][v], w[0][v] * past[0][v])));
}

__device__ inline float silu(float p) { return __fdividef(p, 1 + __expf(-p)); }

}  // namespace furlong::cuda
