// One row of logits to its log-sum-exp and entropy, in one fixed order, for the loss and for sampling alike: the
// log-prob recorded when a token is drawn is bit-equal to the one computed from the same logits later. A block reads
// one part of a row, once; a warp joins the parts.
#pragma once
#include "ops/cuda/packs.cuh"

namespace furlong::cuda {

constexpr int quads = 8;  // groups of four neighbouring logits that a thread holds
constexpr int part_columns = block_threads * quads * 4;

inline int64_t parts_of(int64_t columns) { return blocks_for(columns, part_columns); }

// Σ e^d and Σ e^d d over a part, d = l/T - max.
struct RowPart {
  float max, sum, weighted;
};

struct RowSoftmax {
  float max;      // of the logits over the temperature
  float log_sum;  // log Σ exp(l/T - max)
  float entropy;  // nats

  __device__ float lse() const { return max + log_sum; }
  __device__ float log_prob(float logit, float inverse) const { return (__fmul_rn(logit, inverse) - max) - log_sum; }
};

// The column of a thread's first logit of quad k.
__device__ inline int64_t quad_column(int64_t part, int k) {
  return part * part_columns + (k * block_threads + static_cast<int>(threadIdx.x)) * 4;
}

// Logits past the end of the row are -infinity.
__device__ inline void load_quad(float (&x)[4], const float* row, int64_t column, int64_t n, bool aligned) {
  if (aligned && column + 4 <= n) {
    const float4 q = *reinterpret_cast<const float4*>(row + column);
    x[0] = q.x, x[1] = q.y, x[2] = q.z, x[3] = q.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) x[i] = column + i < n ? row[column + i] : -INFINITY;
}

__device__ inline void load_part(float (&x)[quads][4], const float* row, int64_t part, int64_t n, bool aligned) {
#pragma unroll
  for (int k = 0; k < quads; k++) load_quad(x[k], row, quad_column(part, k), n, aligned);
}

// The largest logit of a part, the same in every thread. `shared` holds one float a warp.
__device__ inline float part_max(const float (&x)[quads][4], float* shared) {
  float top = -INFINITY;
#pragma unroll
  for (int k = 0; k < quads; k++) top = fmaxf(top, fmaxf(fmaxf(x[k][0], x[k][1]), fmaxf(x[k][2], x[k][3])));
  top = warp_max(top);
  if (threadIdx.x % warp == 0) shared[threadIdx.x / warp] = top;
  __syncthreads();
  for (int i = 0; i < block_threads / warp; i++) top = fmaxf(top, shared[i]);
  return top;
}

// The sums of a part whose largest logit is `largest`; the same in every thread. `shared` holds two floats a warp,
// apart from part_max's.
__device__ inline RowPart part_sums(const float (&x)[quads][4], float largest, float inverse, float* shared) {
  if (largest == -INFINITY) return {-INFINITY, 0, 0};
  const float top = __fmul_rn(largest, inverse);
  float sums[2] = {};
#pragma unroll
  for (int k = 0; k < quads; k++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float d = __fmul_rn(x[k][i], inverse) - top, e = expf(d);
      sums[0] += e;
      sums[1] += e == 0 ? 0 : e * d;
    }
  }
  team_sum<block_threads>(sums, shared);
  return {top, sums[0], sums[1]};
}

// Called by a whole warp; the same in every lane.
__device__ inline RowSoftmax join_parts(const RowPart* parts, int count) {
  const int lane = threadIdx.x % warp;
  float top = -INFINITY, sum = 0, weighted = 0;
  for (int p = lane; p < count; p += warp) top = fmaxf(top, parts[p].max);
  top = warp_max(top);
  for (int p = lane; p < count; p += warp) {
    const RowPart part = parts[p];
    const float d = part.max - top, scale = expf(d);
    if (scale == 0) continue;
    sum += scale * part.sum;
    weighted += scale * (part.weighted + d * part.sum);
  }
  sum = warp_sum(sum);
  weighted = warp_sum(weighted);
  const float log_sum = logf(sum);
  return {top, log_sum, log_sum - weighted / sum};
}

}  // namespace furlong::cuda
