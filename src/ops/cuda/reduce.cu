// Sums and tests over whole tensors, and the optimiser's step.
#include "ops/cuda/packs.cuh"

namespace furlong::cuda {
namespace {

constexpr int64_t sum_blocks = 4 * 132;  // fixed, so that the order of a sum is

// A tensor as packs: pack i lies in row i / packs.
template <class T>
struct Numbers {
  Rows<const T> rows;
  int64_t count, packs, n;

  __device__ Octet<T> load(int64_t i) const {
    const int64_t row = packs == count ? 0 : i / packs, c = (i - row * packs) * pack;
    return load_pack(rows.at(row, c), n - c, rows.aligned);
  }
};

template <class T>
Numbers<T> numbers_of(const Tensor& x) {
  const int64_t rows = x.contiguous() ? 1 : x.rows(), n = x.numel() / rows, packs = blocks_for(n, pack);
  return {rows_of<const T>(x), rows * packs, packs, n};
}

// The sum over a block in the order of its threads' tree; valid in thread 0.
__device__ inline double block_sum_of(double x, double* shared) {
#pragma unroll
  for (int d = warp / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  if (threadIdx.x % warp == 0) shared[threadIdx.x / warp] = x;
  __syncthreads();
  double sum = 0;
  for (int i = 0; i < block_threads / warp; i++) sum += shared[i];
  return sum;
}

// Each block: Σ x² of every sum_blocks-th pack row of threads.
template <class T>
__global__ void __launch_bounds__(block_threads) squares_kernel(double* partial, Numbers<T> x) {
  __shared__ double shared[block_threads / warp];
  double sum[2] = {};
  const int64_t step = static_cast<int64_t>(gridDim.x) * block_threads;
  int64_t i = blockIdx.x * static_cast<int64_t>(block_threads) + threadIdx.x;
  const auto add = [&](const Octet<T>& p) {
    float v[pack];
    widen_pack(p, v);
#pragma unroll
    for (int j = 0; j < pack; j++) {
      const double wide = v[j];
      sum[j % 2] += wide * wide;
    }
  };
  for (; i + 3 * step < x.count; i += 4 * step) {
    Octet<T> p[4];
#pragma unroll
    for (int k = 0; k < 4; k++) p[k] = x.load(i + k * step);
#pragma unroll
    for (int k = 0; k < 4; k++) add(p[k]);
  }
  for (; i < x.count; i += step) add(x.load(i));
  const double all = block_sum_of(sum[0] + sum[1], shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = all;
}

__global__ void __launch_bounds__(block_threads) sum_kernel(double* to, const double* partial, int64_t blocks) {
  __shared__ double shared[block_threads / warp];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += block_threads) sum += partial[i];
  sum = block_sum_of(sum, shared);
  if (threadIdx.x == 0) *to = sum;
}

// *bad = 1 where an exponent is all ones; whichever block writes, it writes the same.
template <class T>
__global__ void __launch_bounds__(block_threads) finite_kernel(int32_t* bad, Numbers<T> x) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * block_threads;
  bool any = false;
#pragma unroll 4
  for (int64_t i = blockIdx.x * static_cast<int64_t>(block_threads) + threadIdx.x; i < x.count; i += step) {
    float v[pack];
    widen_pack(x.load(i), v);
#pragma unroll
    for (int j = 0; j < pack; j++) any |= (__float_as_uint(v[j]) & 0x7f800000u) == 0x7f800000u;
  }
  if (__syncthreads_or(any) && threadIdx.x == 0) *bad = 1;
}

// What a kernel left at `from`, once the stream has come there.
template <class V>
V fetch(Stream& stream, const V* from, const char* op) {
  Queue& queue = stream.queue();
  auto* to = static_cast<V*>(queue.stage(sizeof(V)));
  check_launch(queue, op);
  check(cudaMemcpyAsync(to, from, sizeof(V), cudaMemcpyDeviceToHost, queue.stream), op);
  check(cudaStreamSynchronize(queue.stream), op);
  return *to;
}

struct Step {
  float keep, blend1, blend2, beta2, eps, rate, root2, scale;
};

// Numbers kept in f32 or bf16.
struct Kept {
  void* data;
  bool half;

  __device__ void load(float (&f)[pack], int64_t c, int64_t left, bool aligned) const {
    if (half) {
      load_floats(f, static_cast<const half_t*>(data) + c, left, aligned);
    } else {
      load_floats(f, static_cast<const float*>(data) + c, left, aligned);
    }
  }
  __device__ void store(const float (&f)[pack], int64_t c, int64_t left, bool aligned) const {
    if (half) {
      store_floats(static_cast<half_t*>(data) + c, f, left, aligned);
    } else {
      store_floats(static_cast<float*>(data) + c, f, left, aligned);
    }
  }
};

// In the order of the CPU's body: the moments, decay, one step with the bias corrections folded into scalars. Every
// operation is rounded by itself, so that the bits are the host's.
struct AdamW {
  Kept weight;  // no data where it is the master
  Kept master, m, v, grad;
  int64_t n;
  bool aligned;
  Step s;

  __device__ void operator()(int64_t, int64_t c) const {
    float w[pack], mean[pack], square[pack], g[pack];
    const int64_t left = n - c;
    grad.load(g, c, left, aligned);
    m.load(mean, c, left, aligned);
    v.load(square, c, left, aligned);
    master.load(w, c, left, aligned);
#pragma unroll
    for (int i = 0; i < pack; i++) {
      const float gi = __fmul_rn(g[i], s.scale);
      mean[i] = __fadd_rn(mean[i], __fmul_rn(__fsub_rn(gi, mean[i]), s.blend1));
      square[i] = __fadd_rn(__fmul_rn(square[i], s.beta2), __fmul_rn(__fmul_rn(s.blend2, gi), gi));
      const float below = __fadd_rn(__fdiv_rn(__fsqrt_rn(square[i]), s.root2), s.eps);
      w[i] = __fsub_rn(__fmul_rn(w[i], s.keep), __fdiv_rn(__fmul_rn(s.rate, mean[i]), below));
    }
    m.store(mean, c, left, aligned);
    v.store(square, c, left, aligned);
    master.store(w, c, left, aligned);
    if (weight.data != nullptr) weight.store(w, c, left, aligned);
  }
};

Kept kept(const Tensor& t) { return {t.data(), t.dtype() == DType::bf16}; }

}  // namespace

double sum_of_squares(Stream& stream, Tensor x) {
  Queue& queue = stream.queue();
  double* partial = queue.scratch<double>(sum_blocks + 1);
  dispatch(x.dtype(), [&]<class T>() {
    const auto numbers = numbers_of<T>(x);
    const int64_t blocks = std::min(blocks_for(numbers.count, block_threads), sum_blocks);
    squares_kernel<T><<<static_cast<uint32_t>(blocks), block_threads, 0, queue.stream>>>(partial, numbers);
    sum_kernel<<<1, block_threads, 0, queue.stream>>>(partial + sum_blocks, partial, blocks);
  });
  return fetch(stream, partial + sum_blocks, "sum_of_squares");
}

bool all_finite(Stream& stream, Tensor x) {
  Queue& queue = stream.queue();
  auto* bad = queue.scratch<int32_t>(1);
  check(cudaMemsetAsync(bad, 0, sizeof(int32_t), queue.stream), "all_finite");
  dispatch(x.dtype(), [&]<class T>() {
    const auto numbers = numbers_of<T>(x);
    const int64_t blocks = std::min(blocks_for(numbers.count, block_threads), sum_blocks);
    finite_kernel<T><<<static_cast<uint32_t>(blocks), block_threads, 0, queue.stream>>>(bad, numbers);
  });
  return fetch(stream, bad, "all_finite") == 0;
}

void adamw(Stream& stream, Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamParams& params) {
  const double correction1 = 1 - std::pow(params.beta1, static_cast<double>(params.step));
  const double correction2 = 1 - std::pow(params.beta2, static_cast<double>(params.step));
  const Step step{static_cast<float>(1 - params.lr * params.weight_decay),
                  static_cast<float>(1 - params.beta1),
                  static_cast<float>(1 - params.beta2),
                  static_cast<float>(params.beta2),
                  static_cast<float>(params.eps),
                  static_cast<float>(params.lr / correction1),
                  static_cast<float>(std::sqrt(correction2)),
                  static_cast<float>(params.grad_scale)};
  bool aligned = true;
  for (const auto& t : {weight, master, m, v, grad}) {
    aligned = aligned && reinterpret_cast<uintptr_t>(t.data()) % 16 == 0;
  }
  const int64_t n = master.numel();
  const Kept out = weight.data() == master.data() ? Kept{nullptr, false} : kept(weight);
  each_pack(stream, 1, n, AdamW{out, kept(master), kept(m), kept(v), kept(grad), n, aligned, step});
  check_launch(stream.queue(), "adamw");
}

}  // namespace furlong::cuda
