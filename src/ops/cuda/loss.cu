// Log-probabilities of targets and their gradient, over rows of logits.
#include "ops/cuda/softmax_row.cuh"

namespace furlong::cuda {
namespace {

// Each block: one part of one row.
__global__ void __launch_bounds__(block_threads, 4)
    row_parts_kernel(RowPart* out, Rows<const float> logits, int64_t n, uint32_t parts, float inverse) {
  __shared__ float shared[3][block_threads / warp];
  const uint32_t row = blockIdx.x / parts, part = blockIdx.x - row * parts;
  float x[quads][4];
  load_part(x, logits.at(row, 0), part, n, logits.aligned);
  const RowPart sums = part_sums(x, part_max(x, shared[0]), inverse, shared[1]);
  if (threadIdx.x == 0) out[blockIdx.x] = sums;
}

// Each warp: one row.
__global__ void __launch_bounds__(block_threads)
    log_prob_kernel(float* log_prob, float* lse, float* entropy, const RowPart* parts, int count,
                    Rows<const float> logits, const int32_t* targets, int64_t rows, float inverse) {
  const int64_t row = (blockIdx.x * static_cast<int64_t>(block_threads) + threadIdx.x) / warp;
  if (row >= rows) return;
  const RowSoftmax softmax = join_parts(parts + row * count, count);
  if (threadIdx.x % warp != 0) return;
  log_prob[row] = softmax.log_prob(targets[row] < 0 ? 0.0f : *logits.at(row, targets[row]), inverse);
  lse[row] = softmax.lse();
  if (entropy != nullptr) entropy[row] = softmax.entropy;
}

struct RowGradient {
  const float *d_log_prob, *d_entropy, *lse, *entropy;  // d_entropy and entropy may be null
  const int32_t* targets;
};

// Each block: one part of one row, l <- (d (onehot - p) - de p (log p + H)) / T.
__global__ void __launch_bounds__(block_threads, 4)
    log_prob_backward_kernel(Rows<float> logits, int64_t n, uint32_t parts, RowGradient g, float inverse) {
  const uint32_t row = blockIdx.x / parts, part = blockIdx.x - row * parts;
  float* l = logits.at(row, 0);
  float x[quads][4];
  load_part(x, l, part, n, logits.aligned);
  const float d = g.d_log_prob[row], top = g.lse[row];
  const float de = g.d_entropy != nullptr ? g.d_entropy[row] : 0, h = g.d_entropy != nullptr ? g.entropy[row] : 0;
  const int64_t target = g.targets[row];
#pragma unroll
  for (int k = 0; k < quads; k++) {
    const int64_t c = quad_column(part, k);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float log_p = __fmul_rn(x[k][i], inverse) - top, p = expf(log_p), slope = p == 0 ? 0 : p * (log_p + h);
      x[k][i] = -(d * p + de * slope) * inverse;
      if (c + i == target) x[k][i] += d * inverse;
    }
    if (logits.aligned && c + 4 <= n) {
      *reinterpret_cast<float4*>(l + c) = make_float4(x[k][0], x[k][1], x[k][2], x[k][3]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (c + i < n) l[c + i] = x[k][i];
      }
    }
  }
}

uint32_t part_blocks(int64_t rows, int64_t parts) {
  CHECK(rows * parts <= std::numeric_limits<int32_t>::max(), "{} rows of logits at once", rows);
  return static_cast<uint32_t>(rows * parts);
}

const float* optional(const Tensor& t) { return t.defined() ? data_of<const float>(t) : nullptr; }

}  // namespace

void log_prob(Stream& stream, Tensor log_prob, Tensor lse, Tensor entropy, Tensor logits, Tensor targets,
              double temperature) {
  const int64_t rows = logits.rows(), n = logits.dim(1), parts = parts_of(n);
  const float inverse = static_cast<float>(1 / temperature);
  auto* sums = stream.queue().scratch<RowPart>(rows * parts);
  row_parts_kernel<<<part_blocks(rows, parts), block_threads, 0, stream.queue().stream>>>(
      sums, rows_of<const float>(logits), n, static_cast<uint32_t>(parts), inverse);
  log_prob_kernel<<<static_cast<uint32_t>(blocks_for(rows, block_threads / warp)), block_threads, 0,
                    stream.queue().stream>>>(
      data_of<float>(log_prob), data_of<float>(lse), entropy.defined() ? data_of<float>(entropy) : nullptr, sums,
      static_cast<int>(parts), rows_of<const float>(logits), data_of<const int32_t>(targets), rows, inverse);
  check_launch(stream.queue(), "log_prob");
}

void log_prob_backward(Stream& stream, Tensor logits, Tensor d_log_prob, Tensor d_entropy, Tensor lse, Tensor entropy,
                       Tensor targets, double temperature) {
  const int64_t rows = logits.rows(), n = logits.dim(1), parts = parts_of(n);
  const RowGradient g{data_of<const float>(d_log_prob), optional(d_entropy), data_of<const float>(lse),
                      optional(entropy), data_of<const int32_t>(targets)};
  log_prob_backward_kernel<<<part_blocks(rows, parts), block_threads, 0, stream.queue().stream>>>(
      rows_of<float>(logits), n, static_cast<uint32_t>(parts), g, static_cast<float>(1 / temperature));
  check_launch(stream.queue(), "log_prob_backward");
}

}  // namespace furlong::cuda
