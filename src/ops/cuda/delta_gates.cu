#include "ops/cuda/delta_gates.cuh"

namespace furlong::cuda {
namespace {

constexpr int threads = 256;
constexpr int lanes = 32;               // heads side by side
constexpr int parts = threads / lanes;  // rows side by side
constexpr int sum_tile = 16 * parts;    // rows of one partial sum

template <class T>
__global__ void __launch_bounds__(threads)
    gates_kernel(float* g, float* beta, const T* a, int64_t a_stride, const T* b, int64_t b_stride, const float* A_log,
                 const T* dt_bias, int64_t rows, int heads) {
  dependents_may_start();
  wait_for_earlier();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= rows * heads) return;
  const int64_t t = i / heads, h = i % heads;
  const float2 both = gates_of(A_log[h], a[t * a_stride + h], b[t * b_stride + h], dt_bias[h]);
  g[i] = both.x;
  beta[i] = both.y;
}

template <class T>
struct GatesBackward {
  T *da, *db;
  int64_t da_stride, db_stride;
  const float *dg, *dbeta, *g, *beta;
  const T* a;
  int64_t a_stride;
  const float* A_log;
  const T* dt_bias;
  int rows, heads;
};

// A block takes sum_tile rows of 32 heads; sums: (tiles, 2, heads), of dt_bias and of A_log.
template <class T>
__global__ void __launch_bounds__(threads) gates_backward_kernel(GatesBackward<T> p, float* sums) {
  __shared__ float shared[2][parts][lanes];
  const int lane = threadIdx.x % lanes, part = threadIdx.x / lanes, h = blockIdx.x * lanes + lane;
  float bias_sum = 0, rate_sum = 0;
  if (h < p.heads) {
    const float rate = -expf(p.A_log[h]), bias = widen(p.dt_bias[h]);
    const int end = min((static_cast<int>(blockIdx.y) + 1) * sum_tile, p.rows);
    for (int t = blockIdx.y * sum_tile + part; t < end; t += parts) {
      const int64_t i = static_cast<int64_t>(t) * p.heads + h;
      const float grad = p.dg[i], gate = p.beta[i];
      const float d = rate * grad * sigmoid_exact(widen(p.a[t * p.a_stride + h]) + bias);
      p.da[t * p.da_stride + h] = narrow<T>(d);
      p.db[t * p.db_stride + h] = narrow<T>(p.dbeta[i] * gate * (1 - gate));
      bias_sum += d;
      rate_sum += grad * p.g[i];
    }
  }
  shared[0][part][lane] = bias_sum;
  shared[1][part][lane] = rate_sum;
  __syncthreads();
  if (part < 2 && h < p.heads) {
    float sum = 0;
    for (int i = 0; i < parts; i++) sum += shared[part][i][lane];
    sums[(static_cast<int64_t>(blockIdx.y) * 2 + part) * p.heads + h] = sum;
  }
}

// A block takes 32 of the 2·heads sums; its rows of threads take the tiles in turn.
__global__ void __launch_bounds__(threads)
    gates_sum_kernel(float* ddt_bias, float* dA_log, const float* sums, int tiles, int heads) {
  __shared__ float shared[parts][lanes];
  const int lane = threadIdx.x % lanes, part = threadIdx.x / lanes, i = blockIdx.x * lanes + lane;
  float sum = 0;
  if (i < 2 * heads) {
    for (int tile = part; tile < tiles; tile += parts) sum += sums[static_cast<int64_t>(tile) * 2 * heads + i];
  }
  shared[part][lane] = sum;
  __syncthreads();
  if (part != 0 || i >= 2 * heads) return;
  sum = 0;
  for (int j = 0; j < parts; j++) sum += shared[j][lane];
  (i < heads ? ddt_bias[i] : dA_log[i - heads]) += sum;
}

}  // namespace

void delta_gates(Stream& stream, Tensor g, Tensor beta, Tensor a, Tensor b, Tensor A_log, Tensor dt_bias) {
  Queue& queue = stream.queue();
  dispatch(a.dtype(), [&]<class T>() {
    launch_early(stream, gates_kernel<T>, dim3(static_cast<unsigned>(blocks_for(g.numel(), threads))), threads, 0,
                 g.as<float>(), beta.as<float>(), data_of<T>(a), a.row_stride(), data_of<T>(b), b.row_stride(),
                 A_log.as<float>(), data_of<T>(dt_bias), g.rows(), static_cast<int>(g.dim(1)));
  });
  check_launch(queue, "delta_gates");
}

void delta_gates_backward(Stream& stream, Tensor da, Tensor db, Tensor dA_log, Tensor ddt_bias, Tensor dg, Tensor dbeta,
                          Tensor g, Tensor beta, Tensor a, Tensor A_log, Tensor dt_bias) {
  Queue& queue = stream.queue();
  dispatch(a.dtype(), [&]<class T>() {
    const int64_t heads = g.dim(1), tiles = blocks_for(g.rows(), sum_tile);
    float* sums = queue.scratch<float>(tiles * 2 * heads);
    const GatesBackward<T> p{data_of<T>(da),
                             data_of<T>(db),
                             da.row_stride(),
                             db.row_stride(),
                             dg.as<float>(),
                             dbeta.as<float>(),
                             g.as<float>(),
                             beta.as<float>(),
                             data_of<T>(a),
                             a.row_stride(),
                             A_log.as<float>(),
                             data_of<T>(dt_bias),
                             static_cast<int>(g.rows()),
                             static_cast<int>(heads)};
    const dim3 grid(static_cast<unsigned>(blocks_for(heads, lanes)), static_cast<unsigned>(tiles));
    gates_backward_kernel<T><<<grid, threads, 0, queue.stream>>>(p, sums);
    gates_sum_kernel<<<static_cast<unsigned>(blocks_for(2 * heads, lanes)), threads, 0, queue.stream>>>(
        ddt_bias.as<float>(), dA_log.as<float>(), sums, static_cast<int>(tiles), static_cast<int>(heads));
  });
  check_launch(queue, "delta_gates_backward");
}

}  // namespace furlong::cuda
