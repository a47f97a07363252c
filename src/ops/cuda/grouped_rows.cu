#include "ops/cuda/grouped.h"
#include "ops/cuda/grouped_tiles.cuh"
#include "ops/cuda/grouped_wgmma.cuh"

namespace furlong::cuda::grouped {
namespace {

constexpr int depth_step = 64;  // numbers of the summed dimension per stage: one swizzled row of 128 bytes

template <int... W>
struct Widths {
  // Calls f<w>() for the least of the widths that holds n.
  template <class F>
  static __device__ __forceinline__ void pick(int n, F&& f) {
    static_cast<void>(((n <= W && (f.template operator()<W>(), true)) || ...));
  }
};

// Weights are the product's left operand, so that the rows of an expert, few in decoding, need only be padded to the
// next of many widths.
struct Wide {  // training: two groups of 64 output columns by up to 256 rows; a pair of blocks shares the rows' loads
  using widths = Widths<16, 32, 64, 96, 128, 144, 160, 192, 224, 256>;
  static constexpr int groups = 2, rows = 256, stages = 4, blocks = 2, per_sm = 1;
};
struct Narrow {  // decoding: weights stream through; small tiles so that all multiprocessors have some
  using widths = Widths<16, 32, 64>;
  static constexpr int groups = 1, rows = 64, stages = 6, blocks = 1, per_sm = 2;
};
struct Few {  // at most 16 rows in all: room for more stages
  using widths = Widths<16>;
  static constexpr int groups = 1, rows = 16, stages = 10, blocks = 1, per_sm = 2;
};

// What is final when a kernel starts, before the kernels ahead of it have ended (kernel.cuh).
enum class Known : uint8_t { nothing, offsets, inputs };

template <class S>
struct Memory {
  static constexpr int weights = S::groups * 64 * depth_step * 2, rows = S::rows * depth_step * 2;
  static constexpr int stage = weights + rows, out_box = 64 * 64 * 2, out = S::blocks * out_box;
  static constexpr int outs = S::stages * stage, barriers = outs + S::groups * out;
  using ring = Ring<S::stages, S::blocks, S::groups>;
  using dealer = Dealer<4 * S::groups + 1>;
  static constexpr int deals = barriers + static_cast<int>(ring::bytes),
                       table = deals + static_cast<int>(dealer::bytes);
  static constexpr int tables = S::blocks == 1 ? 2 : 1;  // the tiles, and the offsets where there is room
  static size_t bytes(int experts) { return table + tables * TileTable::bytes(experts); }
};

struct Job {
  half_t* y;
  int64_t y_stride;
  const int32_t* offsets;
  int experts, columns, depth;  // columns of y, length of the sums
  int weight_rows;              // of one expert
  half_t* act;                  // where gate and up are joined by swiglu
  int64_t act_stride;
  int* counter;  // of tiles dealt, for pairs of blocks
  Known known;
};

struct Maps {  // of boxes of 64 columns by the rows named
  CUtensorMap weights, x64, x16, y64, y16;
};

// How the weights lie: (columns, depth); (depth, columns); or as the first, a tile taking 32 columns of the first half,
// the gate, and the same of the second, the up, to be joined by swiglu.
enum class Form : uint8_t { along, across, both };

// One thread: announces the bytes of one stage of a tile and loads its weights.
template <class S, Form W>
__device__ void load_weights(const typename Memory<S>::ring& ring, uint32_t memory, const Maps& maps, const Job& job,
                             const RowTile& tile, int column, int k) {
  const auto load = [&](uint32_t to, int x, int y) { load_box(to, maps.weights, ring.full(), x, y); };
  const uint32_t a = memory + static_cast<uint32_t>(ring.stage() * Memory<S>::stage);
  barrier_expect(ring.full(), static_cast<uint32_t>(Memory<S>::weights + (tile.rows + 15) / 16 * 16 * 128));
  if constexpr (W == Form::both) {
    const int gate = tile.expert * job.weight_rows + column / 2;
    load(a, k, gate);
    load(a + 4096, k, gate + job.weight_rows / 2);
  } else if constexpr (W == Form::across) {
    for (int g = 0; g < S::groups; g++) {
      load(a + static_cast<uint32_t>(g) * 8192, column + 64 * g, tile.expert * job.weight_rows + k);
    }
  } else {
    load(a, k, tile.expert * job.weight_rows + column);
  }
}

// One thread: loads the stages of one tile, but for the weights of those `ahead` that are on their way. `column` is the
// block's first output column.
template <class S, Form W>
__device__ void load_tile(typename Memory<S>::ring& ring, uint32_t memory, const Maps& maps, const Job& job,
                          const RowTile& tile, int column, int ahead) {
  const int sixteens = (tile.rows + 15) / 16, boxes64 = sixteens / 4, boxes = boxes64 + sixteens % 4;
  const int rank = S::blocks > 1 ? static_cast<int>(cluster_rank()) : 0;
  for (int k = 0; k < job.depth; k += depth_step, ring.advance()) {
    const uint32_t b = memory + static_cast<uint32_t>(ring.stage() * Memory<S>::stage) + Memory<S>::weights;
    if (k >= ahead * depth_step) {
      ring.wait_empty();
      load_weights<S, W>(ring, memory, maps, job, tile, column, k);
    }
    for (int i = rank; i < boxes; i += S::blocks) {
      const int at = i < boxes64 ? 64 * i : 64 * boxes64 + 16 * (i - boxes64);
      const CUtensorMap& map = i < boxes64 ? maps.x64 : maps.x16;
      if constexpr (S::blocks > 1) {
        load_box_to_pair(b + static_cast<uint32_t>(at) * 128, map, ring.full(), k, tile.first + at);
      } else {
        load_box(b + static_cast<uint32_t>(at) * 128, map, ring.full(), k, tile.first + at);
      }
    }
  }
}

// One thread: starts the weights of a block's first tile before the kernels ahead have ended; returns of how many
// stages.
template <class S, Form W>
__device__ int load_ahead(typename Memory<S>::ring ring, uint32_t memory, const Maps& maps, const Job& job,
                          const RowTile& tile, int column) {
  int stages = 0;
  for (; stages < S::stages && stages * depth_step < job.depth; stages++, ring.advance()) {
    load_weights<S, W>(ring, memory, maps, job, tile, column, stages * depth_step);
  }
  return stages;
}

// Rows [base, base + 64) of a group's tile from shared memory to y. Whole sixteens leave by tensor copies when Copies.
template <bool Copies>
__device__ void send_rows(const uint8_t* box, const Maps& maps, const Job& job, const RowTile& tile, int column,
                          int base) {
  const int thread = static_cast<int>(threadIdx.x) % 128, left = min(tile.rows - base, 64);
  if (Copies && thread == 0) {
    const uint32_t from = shared_address(box);
    if (left == 64) {
      store_box(maps.y64, from, column, tile.first + base);
    } else {
      for (int r = 0; r + 16 <= left; r += 16) {
        store_box(maps.y16, from + static_cast<uint32_t>(r) * 128, column, tile.first + base + r);
      }
    }
  }
  for (int r = (Copies ? left / 16 * 16 : 0) + thread / 8, c = thread % 8; r < left; r += 16) {
    *reinterpret_cast<uint4*>(job.y + (tile.first + base + r) * job.y_stride + column + c * 8) =
        *reinterpret_cast<const uint4*>(box + r * 128 + (c ^ (r % 8)) * 16);
  }
}

// The same of a gate in the box's first 32 columns and an up in the rest, and swiglu of both.
__device__ inline void send_both(const uint8_t* box, const Job& job, const RowTile& tile, int column, int base) {
  const int thread = static_cast<int>(threadIdx.x) % 128, left = min(tile.rows - base, 64);
  for (int r = thread / 4, c = thread % 4; r < left; r += 32) {
    const int64_t row = tile.first + base + r, at = column / 2 + c * 8;
    const uint4 gate = *reinterpret_cast<const uint4*>(box + r * 128 + (c ^ (r % 8)) * 16);
    const uint4 up = *reinterpret_cast<const uint4*>(box + r * 128 + ((c + 4) ^ (r % 8)) * 16);
    const auto joined = [](uint32_t g, uint32_t u) {
      return pack(swiglu_of<half_t>(__uint_as_float(g << 16), __uint_as_float(u << 16)),
                  swiglu_of<half_t>(__uint_as_float(g & 0xffff0000u), __uint_as_float(u & 0xffff0000u)));
    };
    *reinterpret_cast<uint4*>(job.y + row * job.y_stride + at) = gate;
    *reinterpret_cast<uint4*>(job.y + row * job.y_stride + job.columns / 2 + at) = up;
    *reinterpret_cast<uint4*>(job.act + row * job.act_stride + at) =
        make_uint4(joined(gate.x, up.x), joined(gate.y, up.y), joined(gate.z, up.z), joined(gate.w, up.w));
  }
}

// A group's sums (64 columns of y by Width rows) to y, 64 rows at a time through shared memory, which holds `Boxes`
// such boxes; `turn` counts them.
template <int Boxes, int Width, Form W>
__device__ void store_tile(const float (&d)[Width / 2], uint8_t* out, int& turn, const Maps& maps, const Job& job,
                           const RowTile& tile, int column, int group) {
  constexpr bool copies = Boxes > 1;
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % warp;
  const int row = lane / 16 * 8 + lane % 8, piece = thread / warp * 2 + lane / 8 % 2;
#pragma unroll
  for (int base = 0; base < Width; base += 64) {
    uint8_t* box = out + turn++ % Boxes * 8192;
    const uint32_t to = shared_address(box) + static_cast<uint32_t>(row * 128 + (piece ^ (row % 8)) * 16);
    if (copies && thread == 0) bulk_wait_read<Boxes - 1>();
    group_sync(1 + group, 128);
#pragma unroll
    for (int i = base; i < Width && i < base + 64; i += 16) {
      const float* s = d + i / 2;
      store_transposed(to + static_cast<uint32_t>(i - base) * 128, pack(s[0], s[1]), pack(s[2], s[3]), pack(s[4], s[5]),
                       pack(s[6], s[7]));
    }
    if (copies) async_fence();
    group_sync(1 + group, 128);
    if (column < job.columns) {
      if constexpr (W == Form::both) {
        send_both(box, job, tile, column, base);
      } else {
        send_rows<copies>(box, maps, job, tile, column, base);
      }
    }
    if (copies && thread == 0) bulk_commit();
  }
}

// One group: the sums of one tile.
template <class S, Form W, int Width>
__device__ void multiply_tile(typename Memory<S>::ring& ring, uint8_t* memory, int& turn, const Maps& maps,
                              const Job& job, const RowTile& tile, int column, int group) {
  constexpr bool across = W == Form::across;
  float d[Width / 2] = {};
  const uint32_t stages = shared_address(memory);
  int last = 0;
  for (int k = 0; k < job.depth; k += depth_step, ring.advance()) {
    ring.wait_full();
    const uint32_t stage = stages + static_cast<uint32_t>(ring.stage() * Memory<S>::stage);
    uint64_t a = operand(stage + static_cast<uint32_t>(group) * 8192), b = operand(stage + Memory<S>::weights);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < depth_step / 16; i++, a += across ? step_across : step_along, b += step_along) {
      Wgmma<Width, across, 0>::add(d, a, b);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (k > 0) ring.release(last);
    last = ring.stage();
  }
  wgmma_wait<0>();
  hold(d);
  ring.release(last);
  store_tile<S::blocks, Width, W>(d, memory + Memory<S>::outs + group * Memory<S>::out, turn, maps, job, tile,
                                  column + 64 * group, group);
}

// y[r, c] = Σ_k x[r, k] w[e][c, k] for the rows r of expert e, or Σ_k x[r, k] w[e][k, c] when across. A block takes
// tiles of up to S::rows rows by S::groups * 64 columns in turn: one warp loads stages of 64 k, the groups multiply.
template <class S, Form W>
__global__ void __launch_bounds__((S::groups + 1) * 128, S::per_sm)
    rows_kernel(const __grid_constant__ Maps maps, const Job job) {
  using M = Memory<S>;
  extern __shared__ __align__(1024) uint8_t memory[];
  if constexpr (S::blocks == 1) dependents_may_start();
  typename M::ring ring(shared_address(memory + M::barriers));
  typename M::dealer dealer(memory + M::deals);
  auto* tables = reinterpret_cast<int32_t*>(memory + M::table);
  TileTable table(tables, job.offsets, job.experts, S::rows, M::tables > 1 ? tables + job.experts + 1 : nullptr);
  if (threadIdx.x == 0) {
    for (const CUtensorMap* map : {&maps.weights, &maps.x64, &maps.x16}) prefetch_map(*map);
    ring.init();
    if constexpr (S::blocks > 1) dealer.init();
  }
  if (job.known == Known::nothing) wait_for_earlier();
  table.build();
  if constexpr (S::blocks > 1) cluster_sync();

  const int parts = (job.columns + S::groups * 64 * S::blocks - 1) / (S::groups * 64 * S::blocks);
  const int rank = S::blocks > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int role = uniform(static_cast<int>(threadIdx.x) / warp) - 4 * S::groups;  // 0 loads, 1 deals, below 0 multiply
  const bool first = threadIdx.x % warp == 0;
  const auto each_tile = [&](auto&& work) {
    const auto next = [&](int i) {
      if constexpr (S::blocks > 1) return dealer.take(role == 0);
      return uniform(deal_at(table, parts, static_cast<int>(blockIdx.x + i * gridDim.x)));
    };
    Deal d = next(0);
    for (int i = 1; d.tile.rows > 0; d = next(i++)) work(d.tile, (d.part * S::blocks + rank) * S::groups * 64);
  };
  if (role < 0) {
    if constexpr (S::groups == 2) take_registers<224>();
    const int group = uniform(static_cast<int>(threadIdx.x) / 128);
    int turn = 0;
    if (job.known == Known::offsets) wait_for_earlier();
    each_tile([&](const RowTile& tile, int column) {
      S::widths::pick(tile.rows, [&]<int Width>() {
        multiply_tile<S, W, Width>(ring, memory, turn, maps, job, tile, column, group);
      });
    });
    if (threadIdx.x % 128 == 0) bulk_wait();
  } else {
    if constexpr (S::groups == 2) leave_registers<56>();
    if (role == 0) {
      const uint32_t stages = shared_address(memory);
      bool waits = job.known == Known::offsets;
      each_tile([&](const RowTile& tile, int column) {
        if (first) {
          const int ahead = waits ? load_ahead<S, W>(ring, stages, maps, job, tile, column) : 0;
          if (waits) wait_for_earlier();
          load_tile<S, W>(ring, stages, maps, job, tile, column, ahead);
          waits = false;
        }
        __syncwarp();
      });
    } else if (S::blocks > 1 && role == 1 && first && rank == 0) {
      dealer.deal_all(table, parts, job.counter);
    }
  }
  __syncwarp();
  if constexpr (S::blocks > 1) cluster_sync();  // the other block may still arrive at barriers here
  if (job.known != Known::nothing) wait_for_earlier();
}

template <class S, Form W>
void launch(Stream& stream, const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& offsets,
            const Tensor& act = {}, Known known = Known::nothing) {
  constexpr int box_rows = W == Form::across ? 64 : W == Form::both ? 32 : 64 * S::groups;
  Queue& queue = stream.queue();
  const int64_t experts = w.dim(0), n = w.dim(1), k = w.dim(2);
  const auto box = [](const Tensor& t, int rows) {
    return box_map(t.data(), DType::bf16, t.rows(), t.dim(1), t.row_stride(), rows);
  };
  const Maps maps{box_map(w.data(), DType::bf16, experts * n, k, k, box_rows), box(x, 64), box(x, 16), box(y, 64),
                  box(y, 16)};
  const Job job{data_of<half_t>(y),
                y.row_stride(),
                data_of<const int32_t>(offsets),
                static_cast<int>(experts),
                static_cast<int>(y.dim(1)),
                static_cast<int>(x.dim(1)),
                static_cast<int>(n),
                act.defined() ? data_of<half_t>(act) : nullptr,
                act.defined() ? act.row_stride() : 0,
                S::blocks > 1 ? zero_counter(queue) : nullptr,
                known};
  const auto kernel = rows_kernel<S, W>;
  const size_t bytes = Memory<S>::bytes(job.experts);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "grouped_linear");
  const dim3 grid(static_cast<unsigned>(queue.multiprocessors / S::blocks * S::blocks * S::per_sm));
  constexpr int threads = (S::groups + 1) * 128;
  if constexpr (S::blocks == 1) return launch_early(stream, kernel, grid, threads, bytes, maps, job);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {S::blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = queue.stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, maps, job), "grouped_linear");
}

}  // namespace

bool narrow_takes(const Tensor& x, const Tensor& w) { return x.rows() <= 32 * w.dim(0); }

void tensor_rows(Stream& stream, Tensor y, Tensor x, Tensor w, Tensor offsets, bool across) {
  // Both shapes of tile add the products of one y in the same order with the same instruction: equal bits.
  if (narrow_takes(x, w)) {
    across ? launch<Narrow, Form::across>(stream, y, x, w, offsets)
           : launch<Narrow, Form::along>(stream, y, x, w, offsets);
  } else {
    across ? launch<Wide, Form::across>(stream, y, x, w, offsets) : launch<Wide, Form::along>(stream, y, x, w, offsets);
  }
}

void tensor_swiglu(Stream& stream, Tensor act, Tensor y, Tensor x, Tensor w, Tensor offsets) {
  launch<Narrow, Form::both>(stream, y, x, w, offsets, act);
}

// All three shapes of tile give equal bits. The second kernel starts when the first has, and so when what the first was
// allowed to read is final.
void tensor_mlp(Stream& stream, const GroupedMlp& m) {
  const auto both = [&]<class S>() {
    launch<S, Form::both>(stream, m.gate_up, m.x, m.w_gate_up, m.offsets, m.act, Known::inputs);
    launch<S, Form::along>(stream, m.y, m.act, m.w_down, m.offsets, {}, Known::offsets);
  };
  if (m.x.rows() <= Few::rows) {
    both.operator()<Few>();
  } else {
    both.operator()<Narrow>();
  }
}

}  // namespace furlong::cuda::grouped
