// Rows of numbers in packs of eight: what the row-wise kernels share. A pack is read and written 16 bytes at a time
// where the rows allow it and one number at a time elsewhere; the arithmetic is the same, so that a row's result
// depends on neither its place nor its neighbours.
#pragma once
#include <limits>

#include "ops/cuda/kernel.cuh"

namespace furlong::cuda {

constexpr int pack = 8;  // numbers one thread handles at a time
constexpr int block_threads = 256;

template <class T>
struct alignas(16) Octet {
  uint4 raw[pack * sizeof(T) / sizeof(uint4)];
};

__device__ inline void widen_pack(const Octet<float>& p, float (&f)[pack]) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    f[4 * i] = __uint_as_float(p.raw[i].x);
    f[4 * i + 1] = __uint_as_float(p.raw[i].y);
    f[4 * i + 2] = __uint_as_float(p.raw[i].z);
    f[4 * i + 3] = __uint_as_float(p.raw[i].w);
  }
}

__device__ inline void widen_pack(const Octet<half_t>& p, float (&f)[pack]) {
  const uint32_t pairs[4] = {p.raw[0].x, p.raw[0].y, p.raw[0].z, p.raw[0].w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    f[2 * i] = __uint_as_float(pairs[i] << 16);
    f[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
  }
}

__device__ inline void narrow_pack(const float (&f)[pack], Octet<float>& p) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    p.raw[i] = make_uint4(__float_as_uint(f[4 * i]), __float_as_uint(f[4 * i + 1]), __float_as_uint(f[4 * i + 2]),
                          __float_as_uint(f[4 * i + 3]));
  }
}

__device__ inline uint32_t narrow_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ inline void narrow_pack(const float (&f)[pack], Octet<half_t>& p) {
  p.raw[0] =
      make_uint4(narrow_pair(f[0], f[1]), narrow_pair(f[2], f[3]), narrow_pair(f[4], f[5]), narrow_pair(f[6], f[7]));
}

// Rows of a tensor as a kernel sees them.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  bool aligned;  // every row begins at a multiple of 16 bytes

  __device__ T* at(int64_t row, int64_t column) const { return data + row * stride + column; }
};

template <class T>
Rows<T> rows_of(const Tensor& t) {
  const bool aligned = reinterpret_cast<uintptr_t>(t.data()) % 16 == 0 && t.row_stride() * sizeof(T) % 16 == 0;
  return {data_of<T>(t), t.row_stride(), aligned};
}

// The numbers from p on, zeros from the `left`-th on. Whole: every pack is aligned and either whole or past the end,
// which spares a kernel the other way.
template <bool Whole = false, class T>
__device__ inline Octet<T> load_pack(const T* p, int64_t left, bool aligned) {
  Octet<T> out{};
  if (Whole ? left > 0 : aligned && left >= pack) {
    const uint4* from = reinterpret_cast<const uint4*>(p);
#pragma unroll
    for (size_t i = 0; i < sizeof(out) / sizeof(uint4); i++) out.raw[i] = from[i];
  } else if constexpr (!Whole) {
    float f[pack];
#pragma unroll
    for (int i = 0; i < pack; i++) f[i] = i < left ? widen(p[i]) : 0.0f;
    narrow_pack(f, out);
  }
  return out;
}

template <bool Whole = false, class T>
__device__ inline void store_pack(T* p, const Octet<T>& in, int64_t left, bool aligned) {
  if (Whole || (aligned && left >= pack)) {
    uint4* to = reinterpret_cast<uint4*>(p);
#pragma unroll
    for (size_t i = 0; i < sizeof(in) / sizeof(uint4); i++) to[i] = in.raw[i];
  } else if constexpr (!Whole) {
    float f[pack];
    widen_pack(in, f);
#pragma unroll
    for (int i = 0; i < pack; i++) {
      if (i < left) p[i] = narrow<T>(f[i]);
    }
  }
}

template <bool Whole = false, class T>
__device__ inline void load_floats(float (&f)[pack], const T* p, int64_t left, bool aligned) {
  widen_pack(load_pack<Whole>(p, left, aligned), f);
}
template <bool Whole = false, class T>
__device__ inline void store_floats(T* p, const float (&f)[pack], int64_t left, bool aligned) {
  Octet<T> out;
  narrow_pack(f, out);
  store_pack<Whole>(p, out, left, aligned);
}

// A small weight vector of either dtype, widened with an offset.
struct Weights {
  const void* data;
  bool half, aligned;
  float offset;

  template <bool Whole = false>
  __device__ void load(float (&f)[pack], int64_t column, int64_t n) const {
    const int64_t left = n - column;
    if (half) {
      load_floats<Whole>(f, static_cast<const half_t*>(data) + column, left, aligned);
    } else {
      load_floats<Whole>(f, static_cast<const float*>(data) + column, left, aligned);
    }
#pragma unroll
    for (int i = 0; i < pack; i++) f[i] += offset;
  }
};

inline Weights weights_of(const Tensor& w, float offset) {
  CHECK(w.dtype() == DType::bf16 || w.dtype() == DType::f32, "weights in {}", name_of(w.dtype()));
  return {w.data(), w.dtype() == DType::bf16, reinterpret_cast<uintptr_t>(w.data()) % 16 == 0, offset};
}

// The sums over the teams of `Lanes` neighbouring threads that a block is divided into, the same in each lane of a
// team; a team wider than a warp is the whole block. `shared` holds Count floats a warp; it must not be read any more
// from a call before, so callers in a loop alternate between two.
template <int Lanes, int Count>
__device__ inline void team_sum(float (&x)[Count], float* shared) {
#pragma unroll
  for (int d = (Lanes < warp ? Lanes : warp) / 2; d > 0; d /= 2) {
#pragma unroll
    for (int k = 0; k < Count; k++) x[k] += __shfl_xor_sync(0xffffffffu, x[k], d);
  }
  if constexpr (Lanes > warp) {
    static_assert(Lanes == block_threads);
    if (threadIdx.x % warp == 0) {
#pragma unroll
      for (int k = 0; k < Count; k++) shared[threadIdx.x / warp * Count + k] = x[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < Count; k++) {
      x[k] = 0;
#pragma unroll
      for (int i = 0; i < Lanes / warp; i++) x[k] += shared[i * Count + k];
    }
  }
}

// The steps of an RMS norm on a pack: the sum of squares, 1/rms of n numbers, x · r · w, and the gate v · silu(z).
__device__ inline void add_squares(float& sum, const float (&v)[pack]) {
#pragma unroll
  for (int i = 0; i < pack; i++) sum = fmaf(v[i], v[i], sum);
}
__device__ inline float inverse_rms(float sum, int64_t n, float eps) {
  return 1.0f / sqrtf(sum / static_cast<float>(n) + eps);
}
__device__ inline void scale_pack(float (&v)[pack], float r, const float (&w)[pack]) {
#pragma unroll
  for (int i = 0; i < pack; i++) v[i] = v[i] * r * w[i];
}
template <class T>
__device__ inline void gate_pack(float (&v)[pack], const Octet<T>& z) {
  float g[pack];
  widen_pack(z, g);
#pragma unroll
  for (int i = 0; i < pack; i++) v[i] *= g[i] * sigmoid_of<T>(g[i]);
}

// Sums over rows that a team's lanes hold for their columns: adds the teams' in order and writes the block's row of
// `partial`, for add_columns.
template <int Lanes, int Packs>
__device__ inline void write_partial(float* partial, const float (&sum)[Packs][pack], int64_t n) {
  constexpr int teams = block_threads / Lanes;
  __shared__ float shared[teams > 1 ? block_threads * pack : 1];
  float* to = partial + blockIdx.x * n;
#pragma unroll
  for (int p = 0; p < Packs; p++) {
    const int64_t c = (p * Lanes + threadIdx.x % Lanes) * static_cast<int64_t>(pack);
    if constexpr (teams > 1) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < pack; i++) shared[threadIdx.x * pack + i] = sum[p][i];
      __syncthreads();
    }
    if (threadIdx.x >= Lanes) continue;
#pragma unroll
    for (int i = 0; i < pack; i++) {
      float all = sum[p][i];
      if constexpr (teams > 1) {
        for (int t = 1; t < teams; t++) all += shared[(t * Lanes + threadIdx.x) * pack + i];
      }
      if (c + i < n) to[c + i] = all;
    }
  }
}

// to[c] += the sum of columns[b * n + c] over b < blocks, in a fixed order: the second stage of a sum over rows.
void add_columns(Stream& stream, float* to, const float* columns, int64_t blocks, int64_t n);

// Calls f(row, column) for the first column of every pack of `rows` rows of `columns` numbers, one thread a pack.
template <class F>
__global__ void __launch_bounds__(block_threads) each_pack_kernel(uint32_t total, uint32_t packs, F f) {
  dependents_may_start();
  wait_for_earlier();
  const uint32_t i = blockIdx.x * block_threads + threadIdx.x;
  if (i >= total) return;
  const uint32_t row = packs == total ? 0 : i / packs;
  f(static_cast<int64_t>(row), static_cast<int64_t>(i - row * packs) * pack);
}

template <class F>
void each_pack(Stream& stream, int64_t rows, int64_t columns, const F& f) {
  const int64_t packs = blocks_for(columns, pack), total = rows * packs;
  CHECK(total <= std::numeric_limits<uint32_t>::max() - block_threads, "{} rows of {} numbers at once", rows, columns);
  launch_early(stream, each_pack_kernel<F>, dim3(static_cast<uint32_t>(blocks_for(total, block_threads))),
               block_threads, 0, static_cast<uint32_t>(total), static_cast<uint32_t>(packs), f);
}

}  // namespace furlong::cuda
