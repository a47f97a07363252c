#include "ops/cuda/grouped.h"
#include "ops/cuda/kernel.cuh"

namespace furlong::cuda::grouped {
namespace {

constexpr int tile = 64, depth = 16, threads = 256;

// Entry (i, j) of an operand lies at i * down + j * along; it is zero outside rows x columns.
template <class T>
struct Operand {
  const T* data;
  int64_t down, along;
  int64_t rows, columns;
  __device__ float at(int64_t i, int64_t j) const {
    return i < rows && j < columns ? widen(data[i * down + j * along]) : 0.0f;
  }
};

// Σ_k a(i0 + i, k) b(j0 + j, k) of a tile: thread (16 ti + tj) forms i = 4 ti.., j = 4 tj... Loads walk the operand
// along its contiguous dimension.
template <class A, class B>
__device__ void multiply(float (&sum)[4][4], const Operand<A>& a, const Operand<B>& b, int64_t i0, int64_t j0) {
  __shared__ float left[depth][tile + 4], right[depth][tile + 4];
  const int t = static_cast<int>(threadIdx.x), ti = t / 16, tj = t % 16;
  for (int64_t k = 0; k < a.columns; k += depth) {
    __syncthreads();
    for (int i = t; i < tile * depth; i += threads) {
      const int ra = a.along == 1 ? i / depth : i % tile, ka = a.along == 1 ? i % depth : i / tile;
      const int rb = b.along == 1 ? i / depth : i % tile, kb = b.along == 1 ? i % depth : i / tile;
      left[ka][ra] = a.at(i0 + ra, k + ka);
      right[kb][rb] = b.at(j0 + rb, k + kb);
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < depth; d++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] += left[d][4 * ti + i] * right[d][4 * tj + j];
      }
    }
  }
}

struct RowRange {
  int expert;
  int64_t first, rows;
};

// Finds tile number `index` among the experts' tiles of 64 rows; expert -1 when there are fewer.
__device__ RowRange find_tile(const int32_t* offsets, int experts, int64_t index) {
  for (int e = 0; e < experts; e++) {
    const int64_t first = offsets[e], rows = offsets[e + 1] - first, count = (rows + tile - 1) / tile;
    if (index < count) return {e, first + index * tile, min(rows - index * tile, static_cast<int64_t>(tile))};
    index -= count;
  }
  return {-1, 0, 0};
}

struct RowsJob {
  int64_t y_stride, x_stride;
  const int32_t* offsets;
  int experts;
  int64_t columns, depth;
  bool across;
};

// y[r, c] = Σ_k x[r, k] w[e][c, k], or w[e][k, c] when across: a block forms 64 columns of 64 rows of one expert.
template <class Y, class X, class W>
__global__ void __launch_bounds__(threads) rows_kernel(Y* y, const X* x, const W* w, const RowsJob job) {
  __shared__ RowRange range;
  if (threadIdx.x == 0) range = find_tile(job.offsets, job.experts, blockIdx.y);
  __syncthreads();
  if (range.expert < 0) return;
  const W* own = w + range.expert * job.columns * job.depth;
  const Operand<X> a{x + range.first * job.x_stride, job.x_stride, 1, range.rows, job.depth};
  const Operand<W> b{own, job.across ? 1 : job.depth, job.across ? job.columns : 1, job.columns, job.depth};
  const int64_t c0 = static_cast<int64_t>(blockIdx.x) * tile + threadIdx.x % 16 * 4;
  float sum[4][4] = {};
  multiply(sum, a, b, 0, static_cast<int64_t>(blockIdx.x) * tile);
  for (int i = 0; i < 4; i++) {
    const int64_t r = threadIdx.x / 16 * 4 + i;
    if (r >= range.rows) break;
    for (int j = 0; j < 4 && c0 + j < job.columns; j++) {
      y[(range.first + r) * job.y_stride + c0 + j] = narrow<Y>(sum[i][j]);
    }
  }
}

// dw[e][n, k] += Σ_r dy[r, n] x[r, k] over the rows of expert e: a block forms 64 x 64 of one expert.
template <class Y, class X>
__global__ void __launch_bounds__(threads)
    dw_kernel(float* dw, const Y* dy, const X* x, int64_t dy_stride, int64_t x_stride, const int32_t* offsets,
              int64_t across, int64_t n, int64_t k) {
  const int64_t e = blockIdx.y, first = offsets[e], rows = offsets[e + 1] - first;
  if (rows == 0) return;
  const int64_t n0 = blockIdx.x / across * tile, k0 = blockIdx.x % across * tile;
  const Operand<Y> a{dy + first * dy_stride, 1, dy_stride, n, rows};
  const Operand<X> b{x + first * x_stride, 1, x_stride, k, rows};
  float sum[4][4] = {};
  multiply(sum, a, b, n0, k0);
  for (int i = 0; i < 4; i++) {
    const int64_t row = n0 + threadIdx.x / 16 * 4 + i, column = k0 + threadIdx.x % 16 * 4;
    for (int j = 0; j < 4 && row < n && column + j < k; j++) dw[(e * n + row) * k + column + j] += sum[i][j];
  }
}

}  // namespace

void generic_rows(Stream& stream, Tensor y, Tensor x, Tensor w, Tensor offsets, bool across) {
  const int64_t experts = w.dim(0), columns = y.dim(1);
  const RowsJob job{y.row_stride(), x.row_stride(), data_of<const int32_t>(offsets), static_cast<int>(experts), columns,
                    x.dim(1),       across};
  const dim3 grid(static_cast<unsigned>(blocks_for(columns, tile)), static_cast<unsigned>(x.rows() / tile + experts));
  dispatch(y.dtype(), [&]<class Y>() {
    dispatch(x.dtype(), [&]<class X>() {
      dispatch(w.dtype(), [&]<class W>() {
        rows_kernel<<<grid, threads, 0, stream.queue().stream>>>(data_of<Y>(y), data_of<const X>(x),
                                                                 data_of<const W>(w), job);
      });
    });
  });
}

void generic_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x, Tensor offsets) {
  const int64_t n = dw.dim(1), k = dw.dim(2), across = blocks_for(k, tile);
  const dim3 grid(static_cast<unsigned>(blocks_for(n, tile) * across), static_cast<unsigned>(dw.dim(0)));
  dispatch(dy.dtype(), [&]<class Y>() {
    dispatch(x.dtype(), [&]<class X>() {
      dw_kernel<<<grid, threads, 0, stream.queue().stream>>>(data_of<float>(dw), data_of<const Y>(dy),
                                                             data_of<const X>(x), dy.row_stride(), x.row_stride(),
                                                             data_of<const int32_t>(offsets), across, n, k);
    });
  });
}

}  // namespace furlong::cuda::grouped
