// combine and the norm of its result for the few rows of decoding: a block has a token's row, as both kernels would.
#include "ops/cuda/packs.cuh"

namespace furlong::cuda {
namespace {

constexpr int together = 8;  // rows of a token read at once
constexpr int64_t most_tokens = 64;

struct Operands {
  Rows<half_t> y, normed;
  float* r;
  Rows<const half_t> rows, shared, residual;
  const float* logit;
  int64_t logit_stride;
  const int32_t* row_of;
  const float* weights;
  int k;
  int64_t columns;
  Weights w;
  float eps;
};

// y = (Σ_choice weight · rows[row] + σ(logit) · shared, rounded) + residual, and normed = y · r · w, r = 1/rms(y).
__global__ void __launch_bounds__(block_threads) combine_norm_kernel(const __grid_constant__ Operands a) {
  __shared__ float shared[block_threads / warp];
  dependents_may_start();
  const int64_t t = blockIdx.x, column = threadIdx.x * int64_t{pack}, left = a.columns - column;
  float scale[pack];
  a.w.load<true>(scale, column, a.columns);
  wait_for_earlier();
  const Octet<half_t> from_shared = load_pack<true>(a.shared.at(t, column), left, true);
  const Octet<half_t> before = load_pack<true>(a.residual.at(t, column), left, true);
  const float gate = sigmoid(a.logit[t * a.logit_stride]);
  float sum[pack] = {}, v[pack];
  for (int first = 0; first < a.k; first += together) {
    Octet<half_t> in[together];
    float weight[together];
#pragma unroll
    for (int i = 0; i < together; i++) {
      if (first + i >= a.k) break;
      weight[i] = a.weights[t * a.k + first + i];
      in[i] = load_pack<true>(a.rows.at(a.row_of[t * a.k + first + i], column), left, true);
    }
#pragma unroll
    for (int i = 0; i < together; i++) {
      if (first + i >= a.k) break;
      widen_pack(in[i], v);
#pragma unroll
      for (int j = 0; j < pack; j++) sum[j] = fmaf(weight[i], v[j], sum[j]);
    }
  }
  widen_pack(from_shared, v);
#pragma unroll
  for (int j = 0; j < pack; j++) sum[j] = fmaf(gate, v[j], sum[j]);
  widen_pack(before, v);
#pragma unroll
  for (int j = 0; j < pack; j++) v[j] += widen(narrow<half_t>(sum[j]));
  Octet<half_t> y{};
  narrow_pack(v, y);
  if (left > 0) store_pack<true>(a.y.at(t, column), y, left, true);
  widen_pack(y, v);
  float squares[1] = {};
  add_squares(squares[0], v);
  team_sum<block_threads>(squares, shared);
  const float r = inverse_rms(squares[0], a.columns, a.eps);
  scale_pack(v, r, scale);
  if (left > 0) store_floats<true>(a.normed.at(t, column), v, left, true);
  if (threadIdx.x == 0) a.r[t] = r;
}

}  // namespace

void combine_norm(Stream& stream, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual,
                  const Routing& routing, const NormAfter& after) {
  const Weights w = weights_of(after.w, 1);
  // Rows of these lengths the norm gives to a whole block, a pack to each thread.
  bool fits = y.dtype() == DType::bf16 && shared_logit.dtype() == DType::f32 && y.rows() <= most_tokens &&
              y.dim(1) > warp * pack && y.dim(1) <= block_threads * pack && y.dim(1) % pack == 0 && w.aligned;
  for (const Tensor& t : {y, after.y, rows, shared, residual}) {
    fits = fits && t.dtype() == y.dtype() && rows_of<half_t>(t).aligned;
  }
  if (!fits) {
    cuda::combine(stream, y, rows, shared, shared_logit, residual, routing);
    cuda::rms_norm(stream, after.y, after.r, y, after.w, after.eps);
    return;
  }
  const Operands a{rows_of<half_t>(y),
                   rows_of<half_t>(after.y),
                   data_of<float>(after.r),
                   rows_of<const half_t>(rows),
                   rows_of<const half_t>(shared),
                   rows_of<const half_t>(residual),
                   data_of<const float>(shared_logit),
                   shared_logit.row_stride(),
                   data_of<const int32_t>(routing.row_of),
                   data_of<const float>(routing.weights),
                   static_cast<int>(routing.ids.dim(1)),
                   y.dim(1),
                   w,
                   static_cast<float>(after.eps)};
  launch_early(stream, combine_norm_kernel, dim3(static_cast<unsigned>(y.rows())), block_threads, 0, a);
  check_launch(stream.queue(), "combine_norm");
}

}  // namespace furlong::cuda
