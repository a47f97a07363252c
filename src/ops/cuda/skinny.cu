// y = x · wᵀ for the few rows of decoding. The time is that of reading w once: a block takes a strip of rows of w,
// narrow enough that the strips fill the machine, and keeps as much of it on the way as shared memory holds. The rows
// of x are the 64 rows of the left operand of wgmma, of which those above the rows of x are computed from whatever lies
// there and dropped. Every number is one chain of sums over k in steps of 16, as in the library's kernels for many
// rows, so that a row has the same bits in a batch of any size.
#include "ops/cuda/grouped.h"
#include "ops/cuda/grouped_hopper.cuh"
#include "ops/cuda/grouped_wgmma.cuh"
#include "ops/cuda/kernel.cuh"
#include "ops/cuda/products.h"

namespace furlong::cuda {
namespace {

using namespace grouped;

constexpr int64_t most_rows = 64;
constexpr int consumers = 128, threads = consumers + warp;
constexpr int box = 64, row_bytes = 128;  // numbers and bytes of a row of a box
constexpr int most_stages = 32;
constexpr size_t shared_limit = size_t{227} << 10, page = 1024, overread = most_rows * row_bytes;
constexpr size_t stage_space = shared_limit - page - overread - 2 * most_stages * sizeof(uint64_t);

struct Shape {
  int rows, x_rows;  // of x, and those of its boxes
  int64_t n;
  int strips, chunks;  // of Width rows of w; of Boxes * 64 numbers along k
  int stages, stage_bytes;
  bool pairs;  // two neighbouring numbers of y may be stored as one
};

template <class Y>
__device__ void store_two(Y* to, float a, float b, bool both, bool pairs) {
  if (both && pairs) {
    if constexpr (std::is_same_v<Y, float>) {
      *reinterpret_cast<float2*>(to) = make_float2(a, b);
    } else {
      *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(a, b);
    }
  } else {
    to[0] = narrow<Y>(a);
    if (both) to[1] = narrow<Y>(b);
  }
}

// A stage holds Boxes boxes of w, then as many of x. One warp fills stages, four multiply and store.
template <int Width, int Boxes, class Y>
__global__ __launch_bounds__(threads, 1) void skinny_kernel(const __grid_constant__ CUtensorMap x_map,
                                                            const __grid_constant__ CUtensorMap w_map, Y* y,
                                                            int64_t y_stride, Shape s) {
  extern __shared__ uint8_t dynamic[];
  __shared__ uint64_t full[most_stages], empty[most_stages];
  const uint32_t base = (shared_address(dynamic) + page - 1) / page * page;
  const int wi = uniform(threadIdx.x / warp);
  if (threadIdx.x == 0) {
    for (int i = 0; i < s.stages; i++) {
      barrier_init(shared_address(&full[i]), 1);
      barrier_init(shared_address(&empty[i]), consumers / warp);
    }
    barrier_init_fence();
  }
  __syncthreads();
  constexpr uint32_t w_box = Width * row_bytes;
  const uint32_t x_box = s.x_rows * row_bytes;

  int stage = 0;
  uint32_t phase = 0;
  const auto advance = [&] {
    if (++stage == s.stages) {
      stage = 0;
      phase ^= 1;
    }
  };
  if (wi == consumers / warp) {
    if (threadIdx.x % warp > 0) return;
    for (int strip = blockIdx.x; strip < s.strips; strip += gridDim.x) {
      for (int c = 0; c < s.chunks; c++, advance()) {
        barrier_wait(shared_address(&empty[stage]), phase ^ 1);
        const uint32_t ready = shared_address(&full[stage]), at = base + stage * s.stage_bytes;
        barrier_expect(ready, s.stage_bytes);
#pragma unroll
        for (int b = 0; b < Boxes; b++) {
          load_box(at + b * w_box, w_map, ready, (c * Boxes + b) * box, strip * Width);
          load_box(at + Boxes * w_box + b * x_box, x_map, ready, (c * Boxes + b) * box, 0);
        }
      }
    }
    return;
  }

  const int lane = threadIdx.x % warp;
  for (int strip = blockIdx.x; strip < s.strips; strip += gridDim.x) {
    float sum[Width / 2] = {};
    int before = -1;  // the stage that the products on their way before the last still read
    for (int c = 0; c < s.chunks; c++, advance()) {
      barrier_wait(shared_address(&full[stage]), phase);
      const uint32_t at = base + stage * s.stage_bytes;
      hold(sum);
      wgmma_fence();
#pragma unroll
      for (int b = 0; b < Boxes; b++) {
        const uint64_t x = operand(at + Boxes * w_box + b * x_box), w = operand(at + b * w_box);
#pragma unroll
        for (int i = 0; i < box / 16; i++) Wgmma<Width, 0, 0>::add(sum, x + i * step_along, w + i * step_along);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (before >= 0 && lane == 0) barrier_arrive(shared_address(&empty[before]));
      before = stage;
    }
    wgmma_wait<0>();
    hold(sum);
    if (lane == 0) barrier_arrive(shared_address(&empty[before]));
#pragma unroll
    for (int i = 0; i < Width / 2; i += 2) {
      const int row = wi * 16 + lane / 4 + i % 4 / 2 * 8;
      const int64_t column = static_cast<int64_t>(strip) * Width + i / 4 * 8 + lane % 4 * 2;
      if (row < s.rows && column < s.n) {
        store_two(y + row * y_stride + column, sum[i], sum[i + 1], column + 1 < s.n, s.pairs);
      }
    }
  }
}

template <int Width, class Y>
void launch(Queue& queue, const Tensor& y, const Tensor& x, const Tensor& w) {
  constexpr int boxes = 64 / Width;
  const int64_t k = w.dim(1);
  Shape s{};
  s.rows = static_cast<int>(x.rows());
  s.x_rows = static_cast<int>(blocks_for(x.rows(), 8) * 8);
  s.n = w.rows();
  s.strips = static_cast<int>(blocks_for(w.rows(), Width));
  s.chunks = static_cast<int>(blocks_for(k, boxes * box));
  s.stage_bytes = (Width + s.x_rows) * boxes * row_bytes;
  s.stages = std::min(most_stages, static_cast<int>(stage_space / s.stage_bytes));
  s.pairs = reinterpret_cast<uintptr_t>(y.data()) % (2 * sizeof(Y)) == 0 && y.row_stride() % 2 == 0;
  const int64_t x_stride = x.rows() > 1 ? x.row_stride() : blocks_for(k, 8) * 8;
  const CUtensorMap x_map = box_map(x.data(), DType::bf16, x.rows(), k, x_stride, s.x_rows);
  const CUtensorMap w_map = box_map(w.data(), DType::bf16, w.rows(), k, k, Width);
  static const bool allowed [[maybe_unused]] = [] {
    check(cudaFuncSetAttribute(skinny_kernel<Width, boxes, Y>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(page + stage_space + overread)),
          "linear");
    return true;
  }();
  const size_t shared = page + static_cast<size_t>(s.stages) * s.stage_bytes + overread;
  skinny_kernel<Width, boxes, Y><<<std::min(s.strips, queue.multiprocessors), threads, shared, queue.stream>>>(
      x_map, w_map, data_of<Y>(y), y.row_stride(), s);
}

// The time of a width in rows of w a block reads; the widest of almost equal ones has the least overhead.
int64_t cost(const Queue& queue, int64_t n, int64_t width) {
  return blocks_for(blocks_for(n, width), queue.multiprocessors) * width;
}

}  // namespace

bool is_skinny(const Tensor& y, const Tensor& x, const Tensor& w) {
  const auto aligned = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data()) % 16 == 0; };
  return w.dtype() == DType::bf16 && y.rows() <= most_rows && w.dim(1) % 8 == 0 && aligned(x) && aligned(w) &&
         (x.rows() == 1 || x.row_stride() % 8 == 0) && w.rows() < INT32_MAX && w.dim(1) < INT32_MAX;
}

void skinny_linear(Queue& queue, const Tensor& y, const Tensor& x, const Tensor& w) {
  const int64_t n = w.rows(), wide = cost(queue, n, 64), middle = cost(queue, n, 32), thin = cost(queue, n, 16);
  dispatch(y.dtype(), [&]<class Y>() {
    if (wide * 19 <= std::min(middle, thin) * 20) {
      launch<64, Y>(queue, y, x, w);
    } else if (middle * 19 <= thin * 20) {
      launch<32, Y>(queue, y, x, w);
    } else {
      launch<16, Y>(queue, y, x, w);
    }
  });
}

}  // namespace furlong::cuda
