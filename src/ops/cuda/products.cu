#include "ops/cuda/kernel.cuh"
#include "ops/cuda/products.h"

namespace furlong::cuda {
namespace {

constexpr int tile = 64, depth = 16, side = 16, per_thread = tile / side;

// Where entry (i, j) of an operand lies: a stride for each index.
template <class T>
struct Grid {
  T* data;
  int64_t row, column;
  __device__ T& at(int64_t i, int64_t j) const { return data[i * row + j * column]; }
};

// c (m,n) (+)= a (m,k) · b (k,n). A block computes a tile of 64 x 64; a thread 4 x 4 of it, each number one sum of
// fused multiply-adds in the order of k.
template <class A, class B, class C>
__global__ __launch_bounds__(side* side) void plain_kernel(Grid<C> c, Grid<const A> a, Grid<const B> b, int64_t m,
                                                           int64_t n, int64_t k, bool accumulate) {
  __shared__ float as[depth][tile + 1], bs[depth][tile + 1];
  const int tx = threadIdx.x % side, ty = threadIdx.x / side;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * tile;
  for (int64_t column0 = static_cast<int64_t>(blockIdx.y) * tile; column0 < n; column0 += int64_t{gridDim.y} * tile) {
    float sum[per_thread][per_thread] = {};
    for (int64_t k0 = 0; k0 < k; k0 += depth) {
      for (int i = threadIdx.x; i < tile * depth; i += side * side) {
        // Neighbouring threads read neighbouring numbers.
        const int ar = a.column == 1 ? i / depth : i % tile, ak = a.column == 1 ? i % depth : i / tile;
        as[ak][ar] = row0 + ar < m && k0 + ak < k ? widen(a.at(row0 + ar, k0 + ak)) : 0.0f;
        const int bc = b.column == 1 ? i % tile : i / depth, bk = b.column == 1 ? i / tile : i % depth;
        bs[bk][bc] = column0 + bc < n && k0 + bk < k ? widen(b.at(k0 + bk, column0 + bc)) : 0.0f;
      }
      __syncthreads();
#pragma unroll
      for (int d = 0; d < depth; d++) {
#pragma unroll
        for (int i = 0; i < per_thread; i++) {
#pragma unroll
          for (int j = 0; j < per_thread; j++) {
            sum[i][j] = fmaf(as[d][ty + i * side], bs[d][tx + j * side], sum[i][j]);
          }
        }
      }
      __syncthreads();
    }
    for (int i = 0; i < per_thread; i++) {
      for (int j = 0; j < per_thread; j++) {
        const int64_t r = row0 + ty + i * side, col = column0 + tx + j * side;
        if (r >= m || col >= n) continue;
        C& out = c.at(r, col);
        out = narrow<C>(accumulate ? widen(out) + sum[i][j] : sum[i][j]);
      }
    }
  }
}

template <class T>
Grid<T> grid_of(const Matrix& m) {
  return {static_cast<T*>(m.data), m.transposed ? 1 : m.stride, m.transposed ? m.stride : 1};
}

template <class A, class B, class C>
void launch_plain(Queue& queue, const Product& p) {
  const dim3 blocks(static_cast<unsigned>(blocks_for(p.m, tile)),
                    static_cast<unsigned>(std::min<int64_t>(blocks_for(p.n, tile), 65535)));
  plain_kernel<A, B, C><<<blocks, side * side, 0, queue.stream>>>(grid_of<C>(p.c), grid_of<const A>(p.a),
                                                                  grid_of<const B>(p.b), p.m, p.n, p.k, p.accumulate);
}

constexpr int narrow_threads = 256, narrow_warps = narrow_threads / warp;

// V neighbouring numbers, one load where V fills 16 bytes.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T x[V];
};
template <class T>
constexpr int whole = 16 / static_cast<int>(sizeof(T));

template <class T, int V>
__device__ Pack<T, V> load(const T* p) {
  return *reinterpret_cast<const Pack<T, V>*>(p);
}

// y[t] = <x[t], w>: a warp for each row t, a lane's share of the sum in order.
template <class T, int V, class Y>
__global__ __launch_bounds__(narrow_threads) void narrow_kernel(Y* y, int64_t y_stride, const T* x, int64_t x_stride,
                                                                const T* w, int64_t rows, int64_t k) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * narrow_warps + threadIdx.x / warp;
  if (t >= rows) return;
  const float sum = warp_dot<T, V>(x + t * x_stride, w, k);
  if (threadIdx.x % warp == 0) y[t * y_stride] = narrow<Y>(sum);
}

// dx[t] (+)= dy[t] w: V columns a thread, a block for each row.
template <class T, int V, class D>
__global__ __launch_bounds__(narrow_threads) void narrow_dx_kernel(T* dx, int64_t dx_stride, const D* dy,
                                                                   int64_t dy_stride, const T* w, int64_t k,
                                                                   bool accumulate) {
  const int64_t t = blockIdx.x;
  const float g = widen(dy[t * dy_stride]);
  for (int64_t i = threadIdx.x * V; i < k; i += narrow_threads * V) {
    T* out = dx + t * dx_stride + i;
    const auto b = load<T, V>(w + i);
    Pack<T, V> to;
    if (accumulate) to = load<T, V>(out);
#pragma unroll
    for (int j = 0; j < V; j++)
      to.x[j] = narrow<T>(accumulate ? fmaf(g, widen(b.x[j]), widen(to.x[j])) : g * widen(b.x[j]));
    *reinterpret_cast<Pack<T, V>*>(out) = to;
  }
}

constexpr int64_t narrow_rows = 16;  // rows of a partial sum

// parts[block] = Σ dy[t] x[t] over the block's rows, V columns a thread, rows in order.
template <class T, int V, class D>
__global__ __launch_bounds__(narrow_threads) void narrow_dw_kernel(float* parts, const D* dy, int64_t dy_stride,
                                                                   const T* x, int64_t x_stride, int64_t rows,
                                                                   int64_t k) {
  const int64_t i = (static_cast<int64_t>(blockIdx.y) * narrow_threads + threadIdx.x) * V;
  if (i >= k) return;
  const int64_t begin = blockIdx.x * narrow_rows, end = min(rows, begin + narrow_rows);
  float sum[V] = {};
#pragma unroll 8
  for (int64_t t = begin; t < end; t++) {
    const float g = widen(dy[t * dy_stride]);
    const auto a = load<T, V>(x + t * x_stride + i);
#pragma unroll
    for (int j = 0; j < V; j++) sum[j] = fmaf(g, widen(a.x[j]), sum[j]);
  }
#pragma unroll
  for (int j = 0; j < V; j++) parts[blockIdx.x * k + i + j] = sum[j];
}

constexpr int sum_groups = 32;

// dw += the partial sums: a block takes 32 columns, each of its warps an equal share of the parts in order, then the
// shares are added in order.
__global__ __launch_bounds__(warp* sum_groups) void narrow_sum_kernel(float* dw, const float* parts, int64_t count,
                                                                      int64_t k) {
  __shared__ float shares[sum_groups][warp];
  const int lane = threadIdx.x % warp, group = threadIdx.x / warp;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * warp + lane;
  float sum = 0;
  if (i < k) {
    const int64_t begin = count * group / sum_groups, end = count * (group + 1) / sum_groups;
#pragma unroll 8
    for (int64_t c = begin; c < end; c++) sum += parts[c * k + i];
  }
  shares[group][lane] = sum;
  __syncthreads();
  if (group > 0 || i >= k) return;
  sum = 0;
  for (int g = 0; g < sum_groups; g++) sum += shares[g][lane];
  dw[i] += sum;
}

template <class T>
bool in_packs(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.data()) % 16 == 0 && t.dim(1) % whole<T> == 0 &&
         (t.rows() <= 1 || t.row_stride() % whole<T> == 0);
}

// Calls f.template operator()<T, V, D>() for the element type of x, the pack and the element type of y or dy.
template <class F>
void narrow_dispatch(const Tensor& x, const Tensor& y, std::initializer_list<Tensor> packed, F&& f) {
  dispatch(x.dtype(), [&]<class T>() {
    bool packs = true;
    for (const Tensor& t : packed) packs = packs && in_packs<T>(t);
    dispatch(y.dtype(), [&]<class D>() {
      if constexpr (std::is_same_v<T, half_t> || std::is_same_v<D, float>) {
        packs ? f.template operator()<T, whole<T>, D>() : f.template operator()<T, 1, D>();
      } else {
        CHECK(false, "{} beside {}", name_of(y.dtype()), name_of(x.dtype()));
      }
    });
  });
}

}  // namespace

void plain_product(Queue& queue, const Product& p) {
  dispatch(p.a.dtype, [&]<class A>() {
    dispatch(p.b.dtype, [&]<class B>() {
      dispatch(p.c.dtype, [&]<class C>() {
        if constexpr (std::is_same_v<B, half_t> || (std::is_same_v<A, float> && std::is_same_v<C, float>)) {
          launch_plain<A, B, C>(queue, p);
        } else {
          CHECK(false, "{} by {} to {}", name_of(p.a.dtype), name_of(p.b.dtype), name_of(p.c.dtype));
        }
      });
    });
  });
}

void narrow_linear(Queue& queue, const Tensor& y, const Tensor& x, const Tensor& w) {
  narrow_dispatch(x, y, {x, w}, [&]<class T, int V, class Y>() {
    narrow_kernel<T, V, Y>
        <<<static_cast<unsigned>(blocks_for(x.rows(), narrow_warps)), narrow_threads, 0, queue.stream>>>(
            data_of<Y>(y), y.row_stride(), data_of<T>(x), x.row_stride(), data_of<T>(w), x.rows(), w.dim(1));
  });
}

void narrow_linear_dx(Queue& queue, const Tensor& dx, const Tensor& dy, const Tensor& w, bool accumulate) {
  narrow_dispatch(w, dy, {dx, w}, [&]<class T, int V, class D>() {
    narrow_dx_kernel<T, V, D><<<static_cast<unsigned>(dx.rows()), narrow_threads, 0, queue.stream>>>(
        data_of<T>(dx), dx.row_stride(), data_of<D>(dy), dy.row_stride(), data_of<T>(w), w.dim(1), accumulate);
  });
}

void narrow_linear_dw(Queue& queue, const Tensor& dw, const Tensor& dy, const Tensor& x) {
  const int64_t k = x.dim(1), count = blocks_for(x.rows(), narrow_rows);
  float* parts = queue.scratch<float>(count * k);
  narrow_dispatch(x, dy, {x}, [&]<class T, int V, class D>() {
    const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(blocks_for(k, narrow_threads * V)));
    narrow_dw_kernel<T, V, D><<<grid, narrow_threads, 0, queue.stream>>>(parts, data_of<D>(dy), dy.row_stride(),
                                                                         data_of<T>(x), x.row_stride(), x.rows(), k);
  });
  narrow_sum_kernel<<<static_cast<unsigned>(blocks_for(k, warp)), warp * sum_groups, 0, queue.stream>>>(
      data_of<float>(dw), parts, count, k);
}

}  // namespace furlong::cuda
