// y = x · wᵀ for the few rows of decoding, for one or several w. The time is that of reading w once: a block takes a
// strip of rows of a w, narrow enough that the strips fill the machine, and keeps as much of it on the way as shared
// memory holds. The rows of x are the 64 rows of the left operand of wgmma, of which those above the rows of x are
// computed from whatever lies there and dropped. Every number is one chain of sums over k in steps of 16, as in the
// library's kernels for many rows, so that a row has the same bits in a batch of any size.
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
// With few rows of x the stages are nearly all weights: less memory keeps enough on the way, and what is left lets the
// next kernels of a recorded step start beside this one. But two blocks that read more than that must not share a
// multiprocessor, as they would where the kernels ahead leave some of these sooner than others.
constexpr int64_t few_rows = 16;
constexpr size_t few_rows_space = size_t{108} << 10, alone = size_t{115} << 10;

// One of the products, or two: those of a gate and an up, whose strips hold half of each.
struct Part {
  void* y;  // of two: (gate, up)
  int64_t y_stride;
  const half_t* w;
  int n;             // rows of w
  int first;         // its first strip
  int map;           // of w; that of the up is the next one
  bool half, pairs;  // y is bf16; two neighbouring numbers of it may be stored as one
  half_t* act;       // of two: swiglu of both
  int64_t act_stride;
};

struct Shape {
  const half_t* x;
  int64_t x_stride, k;
  int rows, x_rows;    // of x, and those of its boxes
  int strips, chunks;  // of Width rows of a w; of Boxes * 64 numbers along k
  int stages, stage_bytes;
  bool early;  // weights are read before earlier kernels have ended
  bool holds;  // the next kernel starts only when these have
  int parts;
  Part part[most_skinny];
};

struct Maps {
  CUtensorMap x, w[most_skinny];
};

__device__ inline int part_of(const Shape& s, int strip) {
  int p = 0;
  while (p + 1 < s.parts && strip >= s.part[p + 1].first) p++;
  return p;
}

// A w of one row has strips of four rows of x each, for whole warps (as narrow_linear).
constexpr int narrow_rows = consumers / warp;
__device__ inline bool is_narrow(const Part& part) { return part.n == 1 && part.act == nullptr; }

__device__ inline void store_one(const Part& part, int64_t at, float a) {
  if (part.half) {
    static_cast<half_t*>(part.y)[at] = narrow<half_t>(a);
  } else {
    static_cast<float*>(part.y)[at] = a;
  }
}

__device__ inline void store_two(const Part& part, int64_t at, float a, float b, bool both) {
  if (both && part.pairs) {
    if (part.half) {
      *reinterpret_cast<__nv_bfloat162*>(static_cast<half_t*>(part.y) + at) = __floats2bfloat162_rn(a, b);
    } else {
      *reinterpret_cast<float2*>(static_cast<float*>(part.y) + at) = make_float2(a, b);
    }
  } else {
    store_one(part, at, a);
    if (both) store_one(part, at + 1, b);
  }
}

// The sums of a strip: sum[i] of a thread is at row 16 · warp + lane / 4 + i % 4 / 2 * 8 and column i / 4 * 8 +
// lane % 4 * 2 + i % 2 of it.
template <int N>
__device__ inline void store_strip(const Part& part, const float (&sum)[N], int strip, int rows) {
  const int lane = threadIdx.x % warp;
#pragma unroll
  for (int i = 0; i < N; i += 2) {
    const int row = threadIdx.x / warp * 16 + lane / 4 + i % 4 / 2 * 8;
    const int column = strip * 2 * N + i / 4 * 8 + lane % 4 * 2;
    if (row < rows && column < part.n) {
      store_two(part, row * part.y_stride + column, sum[i], sum[i + 1], column + 1 < part.n);
    }
  }
}

// The same of a gate, in the first half of the strip, and an up; and swiglu of what was stored.
template <int N>
__device__ inline void store_both(const Part& part, const float (&sum)[N], int strip, int rows) {
  const int lane = threadIdx.x % warp;
  auto* y = static_cast<half_t*>(part.y);
#pragma unroll
  for (int i = 0; i < N / 2; i++) {
    const int64_t row = threadIdx.x / warp * 16 + lane / 4 + i % 4 / 2 * 8;
    const int column = strip * N + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row >= rows || column >= part.n) continue;
    const half_t gate = narrow<half_t>(sum[i]), up = narrow<half_t>(sum[i + N / 2]);
    y[row * part.y_stride + column] = gate;
    y[row * part.y_stride + part.n + column] = up;
    part.act[row * part.act_stride + column] = narrow<half_t>(swiglu_of<half_t>(widen(gate), widen(up)));
  }
}

// The stages that a block fills, in order.
struct Walk {
  const Shape& s;
  int strip = blockIdx.x, chunk = 0;

  __device__ explicit Walk(const Shape& shape) : s(shape) { skip(); }
  __device__ bool more() const { return strip < s.strips; }
  __device__ void next() {
    if (++chunk < s.chunks) return;
    chunk = 0;
    strip += gridDim.x;
    skip();
  }

 private:
  __device__ void skip() {
    while (more() && is_narrow(s.part[part_of(s, strip)])) strip += gridDim.x;
  }
};

struct Stages {
  uint64_t full[most_stages], empty[most_stages];
};

// One thread: fills stages, each with Boxes boxes of w, then as many of x.
template <int Width, int Boxes>
__device__ void fill(const Maps& maps, const Shape& s, Stages& stages, uint32_t base) {
  constexpr uint32_t w_box = Width * row_bytes;
  const uint32_t x_box = s.x_rows * row_bytes;
  const auto load_weights = [&](const Walk& at, int stage) {
    const uint32_t ready = shared_address(&stages.full[stage]), to = base + stage * s.stage_bytes;
    const Part& part = s.part[part_of(s, at.strip)];
    const int strip = at.strip - part.first;
    barrier_expect(ready, s.stage_bytes);
#pragma unroll
    for (int b = 0; b < Boxes; b++) {
      const int k = (at.chunk * Boxes + b) * box;
      if (part.act == nullptr) {
        load_box(to + b * w_box, maps.w[part.map], ready, k, strip * Width);
      } else {
        load_box(to + b * w_box, maps.w[part.map], ready, k, strip * (Width / 2));
        load_box(to + b * w_box + w_box / 2, maps.w[part.map + 1], ready, k, strip * (Width / 2));
      }
    }
  };
  const auto load_rows = [&](const Walk& at, int stage) {
    const uint32_t ready = shared_address(&stages.full[stage]), to = base + stage * s.stage_bytes + Boxes * w_box;
#pragma unroll
    for (int b = 0; b < Boxes; b++) load_box(to + b * x_box, maps.x, ready, (at.chunk * Boxes + b) * box, 0);
  };
  int ahead = 0;
  if (s.early) {
    for (Walk at(s); ahead < s.stages && at.more(); at.next()) load_weights(at, ahead++);
  }
  wait_for_earlier();
  int stage = 0;
  uint32_t phase = 0;
  for (Walk at(s); at.more(); at.next()) {
    if (ahead > 0) {
      ahead--;
    } else {
      barrier_wait(shared_address(&stages.empty[stage]), phase ^ 1);
      load_weights(at, stage);
    }
    load_rows(at, stage);
    if (++stage == s.stages) {
      stage = 0;
      phase ^= 1;
    }
  }
}

// One warp fills stages, four multiply and store.
template <int Width, int Boxes>
__global__ __launch_bounds__(threads, 1) void skinny_kernel(const __grid_constant__ Maps maps,
                                                            const __grid_constant__ Shape s) {
  extern __shared__ uint8_t dynamic[];
  __shared__ Stages stages;
  if (!s.holds) dependents_may_start();
  const uint32_t base = (shared_address(dynamic) + page - 1) / page * page;
  const int wi = uniform(threadIdx.x / warp), lane = threadIdx.x % warp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < s.stages; i++) {
      barrier_init(shared_address(&stages.full[i]), 1);
      barrier_init(shared_address(&stages.empty[i]), consumers / warp);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (wi == consumers / warp) {
    if (lane == 0) fill<Width, Boxes>(maps, s, stages, base);
    return;
  }

  wait_for_earlier();
  if (s.holds) dependents_may_start();
  constexpr uint32_t w_box = Width * row_bytes;
  const uint32_t x_box = s.x_rows * row_bytes;
  int stage = 0;
  uint32_t phase = 0;
  for (int strip = blockIdx.x; strip < s.strips; strip += gridDim.x) {
    const Part& part = s.part[part_of(s, strip)];
    if (is_narrow(part)) {
      const int64_t row = int64_t{strip - part.first} * narrow_rows + wi;
      if (row < s.rows) {
        const float dot = warp_dot<half_t, 8>(s.x + row * s.x_stride, part.w, s.k);
        if (lane == 0) store_one(part, row * part.y_stride, dot);
      }
      continue;
    }
    float sum[Width / 2] = {};
    int before = -1;  // the stage that the products on their way before the last still read
    for (int c = 0; c < s.chunks; c++) {
      barrier_wait(shared_address(&stages.full[stage]), phase);
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
      if (before >= 0 && lane == 0) barrier_arrive(shared_address(&stages.empty[before]));
      before = stage;
      if (++stage == s.stages) {
        stage = 0;
        phase ^= 1;
      }
    }
    wgmma_wait<0>();
    hold(sum);
    if (lane == 0) barrier_arrive(shared_address(&stages.empty[before]));
    if (part.act == nullptr) {
      store_strip(part, sum, strip - part.first, s.rows);
    } else {
      store_both(part, sum, strip - part.first, s.rows);
    }
  }
}

// What a launch computes.
struct Work {
  const Tensor& x;
  std::initializer_list<LinearOf> products;
  const SkinnySwiglu* both = nullptr;
  bool holds = false;

  int64_t strips(int64_t width) const {
    int64_t sum = both == nullptr ? 0 : blocks_for(both->w_gate.rows(), width / 2);
    for (const auto& p : products) sum += strips_of(p.w.rows(), width);
    return sum;
  }
  int64_t strips_of(int64_t n, int64_t width) const {
    return n == 1 ? blocks_for(x.rows(), narrow_rows) : blocks_for(n, width);
  }
};

template <int Width>
void launch(Stream& stream, const Work& work) {
  const Tensor& x = work.x;
  constexpr int boxes = 64 / Width;
  Queue& queue = stream.queue();
  Shape s{};
  s.x = data_of<const half_t>(x);
  s.x_stride = x.row_stride();
  s.k = x.dim(1);
  s.rows = static_cast<int>(x.rows());
  s.x_rows = static_cast<int>(blocks_for(x.rows(), 8) * 8);
  s.chunks = static_cast<int>(blocks_for(s.k, boxes * box));
  s.stage_bytes = (Width + s.x_rows) * boxes * row_bytes;
  const size_t space = x.rows() <= few_rows ? few_rows_space : stage_space;
  s.early = queue.recording;
  s.holds = work.holds;
  const int64_t x_stride = x.rows() > 1 ? x.row_stride() : blocks_for(s.k, 8) * 8;
  Maps maps{};
  maps.x = box_map(x.data(), DType::bf16, x.rows(), s.k, x_stride, s.x_rows);
  int map = 0;
  const auto map_of = [&](const Tensor& w, int width) {
    maps.w[map] = box_map(w.data(), DType::bf16, w.rows(), s.k, s.k, width);
    return map++;
  };
  if (work.both != nullptr) {
    Part& part = s.part[s.parts++];
    part.y = work.both->gate_up.data();
    part.y_stride = work.both->gate_up.row_stride();
    part.n = static_cast<int>(work.both->w_gate.rows());
    part.half = true;
    part.act = data_of<half_t>(work.both->act);
    part.act_stride = work.both->act.row_stride();
    part.map = map_of(work.both->w_gate, Width / 2);
    map_of(work.both->w_up, Width / 2);
    s.strips = static_cast<int>(blocks_for(part.n, Width / 2));
  }
  for (const auto& [y, w] : work.products) {
    const bool half = y.dtype() == DType::bf16;
    const bool pairs = reinterpret_cast<uintptr_t>(y.data()) % (2 * size_of(y.dtype())) == 0 && y.row_stride() % 2 == 0;
    s.part[s.parts++] = {.y = y.data(),
                         .y_stride = y.row_stride(),
                         .w = data_of<const half_t>(w),
                         .n = static_cast<int>(w.rows()),
                         .first = s.strips,
                         .map = map_of(w, Width),
                         .half = half,
                         .pairs = pairs,
                         .act = nullptr,
                         .act_stride = 0};
    s.strips += static_cast<int>(work.strips_of(w.rows(), Width));
  }
  static const bool allowed [[maybe_unused]] = [] {
    check(cudaFuncSetAttribute(skinny_kernel<Width, boxes>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(page + stage_space + overread)),
          "linear");
    return true;
  }();
  const int64_t fills = blocks_for(s.strips, queue.multiprocessors) * s.chunks;  // of stages, by a block
  const int64_t fit = std::min<int64_t>(most_stages, static_cast<int64_t>(space / s.stage_bytes));
  s.stages = static_cast<int>(std::min(fit, fills));
  size_t shared = page + static_cast<size_t>(s.stages) * s.stage_bytes + overread;
  if (fills > fit) shared = std::max(shared, alone);
  launch_early(stream, skinny_kernel<Width, boxes>,
               dim3(static_cast<unsigned>(std::min(s.strips, queue.multiprocessors))), threads, shared, maps, s);
}

// The time of a width is that of the rows of w a block reads; the widest of almost equal ones has the least overhead.
void run(Stream& stream, const Work& work) {
  const auto cost = [&](int64_t width) {
    return blocks_for(work.strips(width), stream.queue().multiprocessors) * width;
  };
  const int64_t wide = cost(64), middle = cost(32), thin = cost(16);
  if (wide * 19 <= std::min(middle, thin) * 20) {
    launch<64>(stream, work);
  } else if (middle * 19 <= thin * 20) {
    launch<32>(stream, work);
  } else {
    launch<16>(stream, work);
  }
}

}  // namespace

bool is_skinny(const Tensor& y, const Tensor& x, const Tensor& w) {
  const auto aligned = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data()) % 16 == 0; };
  return w.dtype() == DType::bf16 && y.rows() <= most_rows && w.dim(1) % 8 == 0 && aligned(x) && aligned(w) &&
         (x.rows() == 1 || x.row_stride() % 8 == 0) && w.rows() < INT32_MAX && w.dim(1) < INT32_MAX;
}

void skinny_linear(Stream& stream, const Tensor& x, std::initializer_list<LinearOf> products) {
  run(stream, {.x = x, .products = products});
}

void skinny_linear_ahead(Stream& stream, const Tensor& y, const Tensor& x, const Tensor& w) {
  run(stream, {.x = x, .products = {{y, w}}, .holds = true});
}

void skinny_swiglu(Stream& stream, const Tensor& x, const SkinnySwiglu& both, std::initializer_list<LinearOf> others) {
  run(stream, {.x = x, .products = others, .both = &both});
}

}  // namespace furlong::cuda
