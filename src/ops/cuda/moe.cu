// The movement of rows to experts and back. All of it is bound by memory: numbers go in packs of 16 bytes, and a
// token's rows are on their way together.
#include "ops/cuda/kernel.cuh"

namespace furlong::cuda {
namespace {

constexpr int together = 8;  // rows of a token read at once

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T x[V];
};

template <class T, int V>
__device__ Pack<T, V> load(const T* p) {
  return *reinterpret_cast<const Pack<T, V>*>(p);
}
template <class T, int V>
__device__ void store(T* p, const float (&x)[V]) {
  Pack<T, V> out;
#pragma unroll
  for (int j = 0; j < V; j++) out.x[j] = narrow<T>(x[j]);
  *reinterpret_cast<Pack<T, V>*>(p) = out;
}

// Rows of numbers, `stride` apart.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  __device__ T* at(int64_t row, int64_t column) const { return data + row * stride + column; }
};
template <class T>
Rows<T> rows_of(const Tensor& t) {
  return {data_of<std::remove_const_t<T>>(t), t.row_stride()};
}

// One number a row, in f32 or bf16.
struct Column {
  explicit Column(const Tensor& t) : data(t.data()), stride(t.row_stride()), half(t.dtype() == DType::bf16) {}
  __device__ float get(int64_t i) const {
    return half ? widen(static_cast<half_t*>(data)[i * stride]) : static_cast<float*>(data)[i * stride];
  }
  __device__ void set(int64_t i, float x) const {
    if (half) {
      static_cast<half_t*>(data)[i * stride] = narrow<half_t>(x);
    } else {
      static_cast<float*>(data)[i * stride] = x;
    }
  }
  void* data;
  int64_t stride;
  bool half;
};

// Calls f.template operator()<T, V>() with the widest pack that fits every tensor.
template <class F>
void in_packs(std::initializer_list<Tensor> tensors, F&& f) {
  dispatch(tensors.begin()->dtype(), [&]<class T>() {
    constexpr int whole = 16 / static_cast<int>(sizeof(T));
    bool fits = true;
    for (const Tensor& t : tensors) {
      fits = fits && reinterpret_cast<uintptr_t>(t.data()) % 16 == 0 && t.dim(1) % whole == 0 &&
             (t.rows() <= 1 || t.row_stride() % whole == 0);
    }
    fits ? f.template operator()<T, whole>() : f.template operator()<T, 1>();
  });
}

// Blocks walk over the tokens, each with the run of columns that one pack a thread covers.
constexpr int most_threads = 256;

struct Launch {
  // `walkers`: blocks that run at once.
  Launch(int64_t tokens, int64_t columns, int v, int64_t walkers) {
    const int64_t packs = blocks_for(columns, v);
    threads = static_cast<unsigned>(std::min<int64_t>(blocks_for(packs, warp) * warp, most_threads));
    const int64_t across = blocks_for(packs, threads);
    grid = dim3(static_cast<unsigned>(std::min(tokens, blocks_for(walkers, across))), static_cast<unsigned>(across));
  }
  unsigned threads;
  dim3 grid;
};

template <int V>
__device__ int64_t my_column() {
  return (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * V;
}

// Rows and weights of `together` choices of a token.
struct Choices {
  Choices() = default;
  __device__ Choices(const int32_t* row_of, const float* weights) {
#pragma unroll
    for (int c = 0; c < together; c++) {
      row[c] = row_of[c];
      weight[c] = weights != nullptr ? weights[c] : 1.0f;
    }
  }
  int row[together];
  float weight[together];
};

// Calls f(t, its first choices, read while the token before is at work) for the tokens of this block.
template <class F>
__device__ void each_token(const int32_t* row_of, const float* weights, int64_t tokens, int k, F&& f) {
  const auto read = [&](int64_t t) {
    return k >= together ? Choices(row_of + t * k, weights == nullptr ? weights : weights + t * k) : Choices();
  };
  Choices next = read(blockIdx.x);
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const Choices now = next;
    if (t + gridDim.x < tokens) next = read(t + gridDim.x);
    f(t, now);
  }
}

// Calls f(pack, weight, row) for the rows of token t's choices in order, `together` of them on their way at once.
// Choices without a row are passed over.
template <class T, int V, class F>
__device__ void each_row(const Rows<T>& rows, const int32_t* row_of, const float* weights, int64_t t, int k,
                         int64_t column, Choices choices, F&& f) {
  using E = std::remove_const_t<T>;
  int c = 0;
  for (; c + together <= k; c += together) {
    if (c > 0) choices = Choices(row_of + t * k + c, weights == nullptr ? weights : weights + t * k + c);
    Pack<E, V> in[together];
#pragma unroll
    for (int i = 0; i < together; i++) {
      if (choices.row[i] >= 0) in[i] = load<E, V>(rows.at(choices.row[i], column));
    }
#pragma unroll
    for (int i = 0; i < together; i++) {
      if (choices.row[i] >= 0) f(in[i], choices.weight[i], choices.row[i]);
    }
  }
  for (; c < k; c++) {
    const int row = row_of[t * k + c];
    if (row < 0) continue;
    f(load<E, V>(rows.at(row, column)), weights == nullptr ? 1.0f : weights[t * k + c], row);
  }
}

// rows[row_of[t]] = x[t]: a token is read once and written to all its rows.
template <class T, int V>
__global__ __launch_bounds__(most_threads) void gather_kernel(Rows<T> rows, Rows<const T> x, const int32_t* row_of,
                                                              int64_t tokens, int k, int64_t columns) {
  dependents_may_start();
  wait_for_earlier();
  const int64_t column = my_column<V>();
  if (column >= columns) return;
  for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
    const auto in = load<T, V>(x.at(t, column));
#pragma unroll 8
    for (int c = 0; c < k; c++) {
      const int row = row_of[t * k + c];
      if (row >= 0) *reinterpret_cast<Pack<T, V>*>(rows.at(row, column)) = in;
    }
  }
}

// dx[t] += Σ_choice drows[row]
template <class T, int V>
__global__ __launch_bounds__(most_threads, 2) void gather_backward_kernel(Rows<T> dx, Rows<const T> drows,
                                                                          const int32_t* row_of, int64_t tokens, int k,
                                                                          int64_t columns) {
  const int64_t column = my_column<V>();
  if (column >= columns) return;
  each_token(row_of, nullptr, tokens, k, [&](int64_t t, const Choices& choices) {
    const auto before = load<T, V>(dx.at(t, column));
    float sum[V] = {};
    each_row<const T, V>(drows, row_of, nullptr, t, k, column, choices, [&](const Pack<T, V>& in, float, int) {
#pragma unroll
      for (int j = 0; j < V; j++) sum[j] += widen(in.x[j]);
    });
#pragma unroll
    for (int j = 0; j < V; j++) sum[j] += widen(before.x[j]);
    store<T, V>(dx.at(t, column), sum);
  });
}

// y[t] = Σ_choice weight · rows[row] + σ(logit) · shared[t], rounded, + residual[t] where there is one
template <class T, int V>
__global__ __launch_bounds__(most_threads, 2) void combine_kernel(Rows<T> y, Rows<const T> rows, Rows<const T> shared,
                                                                  Rows<const T> residual, Column logit,
                                                                  const int32_t* row_of, const float* weights,
                                                                  int64_t tokens, int k, int64_t columns) {
  dependents_may_start();
  wait_for_earlier();
  const int64_t column = my_column<V>();
  if (column >= columns) return;
  each_token(row_of, weights, tokens, k, [&](int64_t t, const Choices& choices) {
    const bool joined = shared.data != nullptr;
    Pack<T, V> sh{};
    if (joined) sh = load<T, V>(shared.at(t, column));
    const auto before = residual.data != nullptr ? load<T, V>(residual.at(t, column)) : Pack<T, V>{};
    const float gate = joined ? sigmoid(logit.get(t)) : 0.0f;
    float sum[V] = {};
    each_row<const T, V>(rows, row_of, weights, t, k, column, choices, [&](const Pack<T, V>& in, float weight, int) {
#pragma unroll
      for (int j = 0; j < V; j++) sum[j] = fmaf(weight, widen(in.x[j]), sum[j]);
    });
    if (joined) {
#pragma unroll
      for (int j = 0; j < V; j++) sum[j] = fmaf(gate, widen(sh.x[j]), sum[j]);
    }
    if (residual.data != nullptr) {
#pragma unroll
      for (int j = 0; j < V; j++) sum[j] = widen(narrow<T>(sum[j])) + widen(before.x[j]);
    }
    store<T, V>(y.at(t, column), sum);
  });
}

// dshared[t] = σ dy[t];  dlogit[t] = <dy[t], shared[t]> σ(1-σ): a block for each token.
template <class T, int V>
__global__ __launch_bounds__(most_threads) void combine_backward_kernel(Rows<T> dshared, Column dlogit,
                                                                        Rows<const T> dy, Rows<const T> shared,
                                                                        Column logit, int64_t columns) {
  __shared__ float sums[most_threads / warp];
  const int64_t t = blockIdx.x;
  const float gate = sigmoid(logit.get(t));
  float dot = 0;
  for (int64_t i = threadIdx.x * V; i < columns; i += most_threads * V) {
    const auto d = load<T, V>(dy.at(t, i)), sh = load<T, V>(shared.at(t, i));
    float out[V];
#pragma unroll
    for (int j = 0; j < V; j++) {
      dot = fmaf(widen(d.x[j]), widen(sh.x[j]), dot);
      out[j] = gate * widen(d.x[j]);
    }
    store<T, V>(dshared.at(t, i), out);
  }
  dot = block_sum<most_threads>(dot, sums);
  if (threadIdx.x == 0) dlogit.set(t, dot * gate * (1.0f - gate));
}

constexpr int dot_warps = 8;

// dweights[i] = <da[row], a[row]> of choice i: a warp for each.
template <class T, int V>
__global__ __launch_bounds__(dot_warps* warp) void dot_kernel(float* dweights, Rows<const T> da, Rows<const T> a,
                                                              const int32_t* row_of, int64_t choices, int64_t columns) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * dot_warps + threadIdx.x / warp;
  const int lane = threadIdx.x % warp;
  if (i >= choices) return;
  const int64_t row = row_of[i];
  if (row < 0) {
    if (lane == 0) dweights[i] = 0;
    return;
  }
  float sum = 0;
#pragma unroll 2
  for (int64_t c = lane * V; c < columns; c += warp * V) {
    const auto x = load<T, V>(da.at(row, c)), y = load<T, V>(a.at(row, c));
#pragma unroll
    for (int j = 0; j < V; j++) sum = fmaf(widen(x.x[j]), widen(y.x[j]), sum);
  }
  sum = warp_sum(sum);
  if (lane == 0) dweights[i] = sum;
}

// rows[row] *= weight, for the rows of the tokens' choices
template <class T, int V>
__global__ __launch_bounds__(most_threads, 2) void scale_kernel(Rows<T> rows, const int32_t* row_of,
                                                                const float* weights, int64_t tokens, int k,
                                                                int64_t columns) {
  const int64_t column = my_column<V>();
  if (column >= columns) return;
  each_token(row_of, weights, tokens, k, [&](int64_t t, const Choices& choices) {
    each_row<T, V>(rows, row_of, weights, t, k, column, choices, [&](const Pack<T, V>& in, float weight, int row) {
      float out[V];
#pragma unroll
      for (int j = 0; j < V; j++) out[j] = widen(in.x[j]) * weight;
      store<T, V>(rows.at(row, column), out);
    });
  });
}

int choices_of(const Routing& r) { return static_cast<int>(r.row_of.dim(1)); }
int64_t walkers_of(const Queue& queue) { return int64_t{queue.multiprocessors} * 8; }

__global__ __launch_bounds__(most_threads) void route_to_ranks_kernel(int32_t* row_of, float* weights, int64_t tokens,
                                                                      int64_t ranks) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * most_threads + threadIdx.x;
  if (i >= tokens * ranks) return;
  row_of[i] = static_cast<int32_t>(i % ranks * tokens + i / ranks);
  weights[i] = 1;
}

}  // namespace

void gather_rows(Stream& stream, Tensor rows, Tensor x, const Routing& routing) {
  Queue& queue = stream.queue();
  in_packs({x, rows}, [&]<class T, int V>() {
    const Launch l(x.rows(), x.dim(1), V, x.rows());
    launch_early(stream, gather_kernel<T, V>, l.grid, static_cast<int>(l.threads), 0, rows_of<T>(rows),
                 rows_of<const T>(x), data_of<int32_t>(routing.row_of), x.rows(), choices_of(routing), x.dim(1));
  });
  check_launch(queue, "gather_rows");
}

void gather_rows_backward(Stream& stream, Tensor dx, Tensor drows, const Routing& routing) {
  Queue& queue = stream.queue();
  in_packs({dx, drows}, [&]<class T, int V>() {
    const Launch l(dx.rows(), dx.dim(1), V, walkers_of(queue));
    gather_backward_kernel<T, V><<<l.grid, l.threads, 0, queue.stream>>>(rows_of<T>(dx), rows_of<const T>(drows),
                                                                         data_of<int32_t>(routing.row_of), dx.rows(),
                                                                         choices_of(routing), dx.dim(1));
  });
  check_launch(queue, "gather_rows_backward");
}

void combine(Stream& stream, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual,
             const Routing& routing) {
  Queue& queue = stream.queue();
  in_packs({y, rows, shared.defined() ? shared : y, residual.defined() ? residual : y}, [&]<class T, int V>() {
    const Launch l(y.rows(), y.dim(1), V, walkers_of(queue));
    launch_early(stream, combine_kernel<T, V>, l.grid, static_cast<int>(l.threads), 0, rows_of<T>(y),
                 rows_of<const T>(rows), shared.defined() ? rows_of<const T>(shared) : Rows<const T>{},
                 residual.defined() ? rows_of<const T>(residual) : Rows<const T>{}, Column(shared_logit),
                 data_of<int32_t>(routing.row_of), data_of<float>(routing.weights), y.rows(), choices_of(routing),
                 y.dim(1));
  });
  check_launch(queue, "combine");
}

void combine_backward(Stream& stream, Tensor dshared, Tensor dshared_logit, Tensor dy, Tensor shared,
                      Tensor shared_logit) {
  Queue& queue = stream.queue();
  in_packs({dy, dshared, shared}, [&]<class T, int V>() {
    combine_backward_kernel<T, V><<<static_cast<unsigned>(dy.rows()), most_threads, 0, queue.stream>>>(
        rows_of<T>(dshared), Column(dshared_logit), rows_of<const T>(dy), rows_of<const T>(shared),
        Column(shared_logit), dy.dim(1));
  });
  check_launch(queue, "combine_backward");
}

void routing_weight_gradient(Stream& stream, Tensor dweights, Tensor da, Tensor a, const Routing& routing) {
  Queue& queue = stream.queue();
  const int64_t choices = dweights.numel();
  in_packs({a, da}, [&]<class T, int V>() {
    dot_kernel<T, V><<<static_cast<unsigned>(blocks_for(choices, dot_warps)), dot_warps * warp, 0, queue.stream>>>(
        data_of<float>(dweights), rows_of<const T>(da), rows_of<const T>(a), data_of<int32_t>(routing.row_of), choices,
        a.dim(1));
  });
  check_launch(queue, "routing_weight_gradient");
}

void scale_rows(Stream& stream, Tensor rows, const Routing& routing) {
  Queue& queue = stream.queue();
  in_packs({rows}, [&]<class T, int V>() {
    const Launch l(routing.row_of.rows(), rows.dim(1), V, walkers_of(queue));
    scale_kernel<T, V><<<l.grid, l.threads, 0, queue.stream>>>(rows_of<T>(rows), data_of<int32_t>(routing.row_of),
                                                               data_of<float>(routing.weights), routing.row_of.rows(),
                                                               choices_of(routing), rows.dim(1));
  });
  check_launch(queue, "scale_rows");
}

void route_to_ranks(Stream& stream, Tensor row_of, Tensor weights) {
  Queue& queue = stream.queue();
  const int64_t choices = row_of.numel();
  route_to_ranks_kernel<<<static_cast<unsigned>(blocks_for(choices, most_threads)), most_threads, 0, queue.stream>>>(
      data_of<int32_t>(row_of), data_of<float>(weights), row_of.rows(), row_of.dim(1));
  check_launch(queue, "route_to_ranks");
}

}  // namespace furlong::cuda
