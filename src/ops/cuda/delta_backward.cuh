// What the two kernels of the delta rule's backward for heads of 128 in bf16 share.
#pragma once
#include "ops/cuda/delta_tile.cuh"

namespace furlong::cuda::delta {

struct Backward128 {
  Records records;
  // Of each chunk and value head, as images: x = (I + L)⁻ᵀ du, and the gradient of the state leaving the chunk.
  half_t* solved;  // (64, 128)
  half_t* D;       // (128, 128)
  const half_t *x, *do_;
  half_t* dx;
  int64_t x_stride, do_stride, dx_stride;
  float *dg, *dbeta, *dstate0;
  const float* dstate1;

  static constexpr int solved_size = chunk_rows * head_dim, D_size = head_dim * head_dim;
  // The numbers of q, k and v of a row before those of a value head.
  __device__ static int64_t value_at(const Call& c, int head) { return (2ll * c.kh + head) * head_dim; }
};

void backward_scan_128(Queue&, const Call&, const Backward128&);
void backward_chunks_128(Queue&, const Call&, const Backward128&);

}  // namespace furlong::cuda::delta
