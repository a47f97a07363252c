// What of a chunk its keys, decays and β decide, for heads of 128 in bf16: the same functions for training, prefill and
// decode, so that a row has the same bits wherever it is solved.
#pragma once
#include "ops/cuda/delta_tile.cuh"

namespace furlong::cuda::delta {

constexpr int team = 128;  // threads that work on one value head
constexpr int t_stride = chunk_rows + 4, half = chunk_rows / 2, block = 16;

// Decays are summed on a grid of 2^-36, where doubles up to 2^17 are exact: sums do not depend on their order.
__device__ inline double on_grid(float g) {
  constexpr double large = 3 * 65536.0 / 2;
  return static_cast<double>(g) + large - large;
}

// r = β (v - e^γ Sᵀk)
__device__ inline float right_side(float beta, float v, float decay, float read) {
  return beta * fmaf(-decay, read, v);
}

__device__ inline int team_of() { return threadIdx.x / team; }
__device__ inline void team_sync() { asm volatile("bar.sync %0, 128;" ::"r"(1 + team_of()) : "memory"); }

__device__ inline uint32_t tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// c (16,8) += a·b over Depth columns of a, both fp32 in shared memory.
template <int Depth>
__device__ inline void multiply_tf32(float (&c)[4], const float* a, const float* b) {
  const int g = threadIdx.x % warp / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int k = 0; k < Depth; k += 8) {
    const uint32_t x0 = tf32(a[g * t_stride + k + t]), x1 = tf32(a[(g + 8) * t_stride + k + t]);
    const uint32_t x2 = tf32(a[g * t_stride + k + t + 4]), x3 = tf32(a[(g + 8) * t_stride + k + t + 4]);
    const uint32_t y0 = tf32(b[(k + t) * t_stride + g]), y1 = tf32(b[(k + t + 4) * t_stride + g]);
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(y0), "r"(y1));
  }
}

__device__ inline void put_tile(float* to, const float (&c)[4], float sign) {
  to += tile_row() * t_stride + tile_column();
  *reinterpret_cast<float2*>(to) = {sign * c[0], sign * c[1]};
  *reinterpret_cast<float2*>(to + 8 * t_stride) = {sign * c[2], sign * c[3]};
}

// L <- (I + L)⁻¹ of a strictly lower triangular L: blocks of 16 on the diagonal by substitution, then twice
// [A 0; B C]⁻¹ = [A⁻¹ 0; -C⁻¹ B A⁻¹ C⁻¹]. Only the first `rows` rows are needed; those behind their blocks are void.
__device__ inline void invert(float* L, int rows = chunk_rows) {
  const int w = threadIdx.x % team / warp, lane = threadIdx.x % warp;
  float* diagonal = L + w * block * (t_stride + 1);
  {
    const int column = lane % block;
    float x[block];
#pragma unroll
    for (int i = 0; i < block; i++) x[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
    for (int j = 0; j < block; j += 4) {
#pragma unroll
      for (int i = j + 1; i < block; i++) {
        const float4 four = *reinterpret_cast<const float4*>(diagonal + i * t_stride + j);
        const float factors[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int e = 0; e < min(4, i - j); e++) x[i] = fmaf(-factors[e], x[j + e], x[i]);
      }
    }
    __syncwarp();
    if (lane < block) {
#pragma unroll
      for (int i = 0; i < block; i++) diagonal[i * t_stride + column] = x[i];
    }
  }
  team_sync();
  if (rows <= block) return;
  {
    const int r = 1 + w / 2 * 2, n = w % 2 * 8;  // block (r, r-1), eight of its columns
    float* off = L + r * block * t_stride + (r - 1) * block;
    float* between = L + w / 2 * block * t_stride + half + n;
    float c[4] = {};
    multiply_tf32<block>(c, off, L + (r - 1) * block * (t_stride + 1) + n);
    put_tile(between, c, 1);
    team_sync();
    float d[4] = {};
    multiply_tf32<block>(d, L + r * block * (t_stride + 1), between);
    put_tile(off + n, d, -1);
  }
  team_sync();
  if (rows <= half) return;
  const int row = w / 2 * block, n0 = w % 2 * block;
#pragma unroll
  for (int n = n0; n < n0 + block; n += 8) {
    float c[4] = {};
    multiply_tf32<half>(c, L + (half + row) * t_stride, L + n);
    put_tile(L + row * t_stride + half + n, c, 1);
  }
  team_sync();
#pragma unroll
  for (int n = n0; n < n0 + block; n += 8) {
    float c[4] = {};
    multiply_tf32<half>(c, L + (half + row) * t_stride + half, L + half + n);
    put_tile(L + (half + row) * t_stride + n, c, -1);
  }
  team_sync();
}

// One chunk of one segment at one key head.
struct ChunkRead {
  const Call& c;
  const half_t* x;
  int64_t x_stride;
  Chunk ck;
  int key_head, slot;
  bool ringed;  // the rows before ck.lo lie in the slot's ring

  // One row of q or k: divided by its length, put into the image and, where `to` is given, kept. A lane has four
  // numbers.
  __device__ void normalise(uint2 raw, int r, half_t* image, float* to, float* inverse) const {
    const int lane = threadIdx.x % warp;
    const float2 a = unpack(raw.x), b = unpack(raw.y);
    const float sum = warp_sum(fmaf(b.y, b.y, fmaf(b.x, b.x, fmaf(a.y, a.y, a.x * a.x))));
    const float s = 1.0f / sqrtf(sum + l2_eps);
    const float4 y{a.x * s, a.y * s, b.x * s, b.y * s};
    const int64_t at = static_cast<int64_t>(ck.base + r) * c.kh + key_head;
    if (to != nullptr) {
      *reinterpret_cast<float4*>(to + at * head_dim + lane * 4) = y;
      if (lane == 0) inverse[at] = s;
    }
    *reinterpret_cast<uint2*>(image + place<head_dim>(r, lane * 4)) = {pack(y.x, y.y), pack(y.z, y.w)};
  }
  // The numbers of q of row r that this lane normalises; those of k are c.kh heads further on.
  __device__ const half_t* query(int r) const {
    return x + static_cast<int64_t>(ck.base + r) * x_stride + key_head * head_dim + threadIdx.x % warp * 4;
  }

  struct Decays {
    double* gamma;
    float *beta, *e_gamma, *to_end;
  };
  __device__ float2 given_gates(int64_t t, int head) const { return {c.g[t * c.vh + head], c.beta[t * c.vh + head]}; }
  // Of every row, by one warp, two rows a lane: β and γ (zero and that of the last row where there is none), e^γ and
  // e^{γ_C-γ}. Calls ready() before it asks gates(t) for g and β of row t of the batch. entry(r): where row r lies in
  // the ring.
  template <class Ready, class Gates, class Entry>
  __device__ void decays(int head, const Decays& to, Ready ready, Gates gates, Entry entry) const {
    const int lane = threadIdx.x % warp;
    double before = 0, kept[2] = {}, g[2];
    float beta[2] = {};
    if (ringed) before = c.g_of(entry(ck.lo - 1), head);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int r = lane * 2 + i;
      if (!ringed || r >= ck.lo) continue;
      const int64_t at = entry(r);
      kept[i] = c.g_of(at, head);
      beta[i] = c.beta_of(at, head);
    }
    ready();
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int r = lane * 2 + i;
      const bool own = r >= ck.lo && r < ck.hi;
      g[i] = 0;
      if (!own) continue;
      const float2 found = gates(static_cast<int64_t>(ck.base + r));
      g[i] = on_grid(found.x);
      beta[i] = found.y;
    }
    double sum = g[0] + g[1];
#pragma unroll
    for (int d = 1; d < warp; d *= 2) {
      const double other = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += other;
    }
    double gamma[2] = {before + (sum - g[1]), before + sum};
    const double end = __shfl_sync(0xffffffffu, gamma[1], warp - 1);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int r = lane * 2 + i;
      if (r < ck.lo) gamma[i] = kept[i];
      to.gamma[r] = gamma[i];
      to.beta[r] = beta[i];
      to.e_gamma[r] = expf(static_cast<float>(gamma[i]));
      to.to_end[r] = expf(static_cast<float>(end - gamma[i]));
    }
  }
};

// Calls put(i, j, ⟨rows_i,k_j⟩ e^{γ_i-γ_j}, that of j + 1) for the 16 rows i from r0 of a warp and even j; zero above
// the diagonal. Unroll: a kernel that runs through its code only once is bound by fetching it.
template <int Unroll, class Put>
__device__ inline void products(const half_t* rows, const half_t* keys, const double* gamma, int r0, Put put) {
  float s[8][4] = {};
#pragma unroll Unroll
  for (int k = 0; k < head_dim; k += 16) {
    uint32_t a[4];
    load_a<head_dim>(a, rows, r0, k);
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      if (n * 8 > r0) continue;  // above the diagonal
      uint32_t y[4];
      load_b_transposed<head_dim>(y, keys, k, n * 8);
      mma(s[n], a, y[0], y[1]);
      mma(s[n + 1], a, y[2], y[3]);
    }
  }
  const int i0 = r0 + tile_row();
  const double own[2] = {gamma[i0], gamma[i0 + 8]};
#pragma unroll
  for (int n = 0; n < 8; n++) {
    const int j = n * 8 + tile_column();
    float p[2][2] = {};
    if (n * 8 <= r0 + 8) {  // without branches between lanes, which would run one after the other
      const double2 at = *reinterpret_cast<const double2*>(gamma + j);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int i = i0 + h * 8;
        const float x = s[n][2 * h] * __expf(static_cast<float>(own[h] - at.x));
        const float y = s[n][2 * h + 1] * __expf(static_cast<float>(own[h] - at.y));
        p[h][0] = j <= i ? x : 0.0f;
        p[h][1] = j + 1 <= i ? y : 0.0f;
      }
    }
    put(i0, j, p[0][0], p[0][1]);
    put(i0 + 8, j, p[1][0], p[1][1]);
  }
}

// The same of the keys c0 .. c0 + 15 alone, by one warp: several share the rows of a tile so.
template <class Put>
__device__ inline void block_products(const half_t* rows, const half_t* keys, const double* gamma, int r0, int c0,
                                      Put put) {
  float s[2][4] = {};
#pragma unroll
  for (int k = 0; k < head_dim; k += 16) {
    uint32_t a[4], y[4];
    load_a<head_dim>(a, rows, r0, k);
    load_b_transposed<head_dim>(y, keys, k, c0);
    mma(s[0], a, y[0], y[1]);
    mma(s[1], a, y[2], y[3]);
  }
  const int i0 = r0 + tile_row();
  const double own[2] = {gamma[i0], gamma[i0 + 8]};
#pragma unroll
  for (int n = 0; n < 2; n++) {
    const int j = c0 + n * 8 + tile_column();
    const double2 at = *reinterpret_cast<const double2*>(gamma + j);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int i = i0 + h * 8;
      const float x = s[n][2 * h] * __expf(static_cast<float>(own[h] - at.x));
      const float y = s[n][2 * h + 1] * __expf(static_cast<float>(own[h] - at.y));
      put(i, j, j <= i ? x : 0.0f, j + 1 <= i ? y : 0.0f);
    }
  }
}

// Two neighbours of L, and of P, from what products() puts.
__device__ inline void put_lower_pair(float* L, const float* beta, int r, int j, float x, float y) {
  const float b = beta[r];
  *reinterpret_cast<float2*>(L + r * t_stride + j) = {j < r ? b * x : 0.0f, j + 1 < r ? b * y : 0.0f};
}
__device__ inline void put_query_pair(half_t* P, int r, int j, float x, float y) {
  const float scale = rsqrtf(static_cast<float>(head_dim));
  *reinterpret_cast<uint32_t*>(P + place<chunk_rows>(r, j)) = pack(scale * x, scale * y);
}

// L of 16 rows, and P of 16 rows.
__device__ inline void put_lower(float* L, const half_t* keys, const double* gamma, const float* beta, int r0) {
  products<head_dim / 16>(keys, keys, gamma, r0,
                          [&](int r, int j, float x, float y) { put_lower_pair(L, beta, r, j, x, y); });
}
__device__ inline void put_queries(half_t* P, const half_t* queries, const half_t* keys, const double* gamma, int r0) {
  products<head_dim / 16>(queries, keys, gamma, r0,
                          [&](int r, int j, float x, float y) { put_query_pair(P, r, j, x, y); });
}

// Eight numbers of T in bf16, from column `from` of row r of the inverted L.
__device__ inline uint4 inverse_at(const float* row, int r, int from) {
  const auto* at = reinterpret_cast<const float4*>(row + from);
  const float4 low = at[0], high = at[1];
  float x[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = from + i <= r ? x[i] : 0.0f;
  return {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])};
}
// T of a team's inverted L: 16 bytes of the image at a time.
__device__ inline void put_inverse(half_t* T, const float* L) {
  for (int at = threadIdx.x % team; at < chunk_rows * chunk_rows / 8; at += team) {
    const int r = at / 8, column = at % 8 * 8;
    *reinterpret_cast<uint4*>(T + place<chunk_rows>(r, column)) = inverse_at(L + r * t_stride, r, column);
  }
}

}  // namespace furlong::cuda::delta
