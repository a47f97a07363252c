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

template <class S>
struct Memory {
  static constexpr int weights = S::groups * 64 * depth_step * 2, rows = S::rows * depth_step * 2;
  static constexpr int stage = weights + rows, out = 64 * 64 * 2;
  static constexpr int outs = S::stages * stage, barriers = outs + S::groups * out;
  using ring = Ring<S::stages, S::blocks, S::groups>;
  using dealer = Dealer<4 * S::groups + 1>;
  static constexpr int deals = barriers + static_cast<int>(ring::bytes),
                       table = deals + static_cast<int>(dealer::bytes);
  static size_t bytes(int experts) { return table + TileTable::bytes(experts); }
};

struct Job {
  half_t* y;
  int64_t y_stride;
  const int32_t* offsets;
  int experts, columns, depth;  // columns of y, length of the sums
  int weight_rows;              // of one expert
  int* counter;                 // of tiles dealt, for pairs of blocks
};

// One thread: loads the stages of one tile. `column` is the block's first output column.
template <class S, bool Across>
__device__ void load_tile(typename Memory<S>::ring& ring, uint32_t memory, const CUtensorMap& weights,
                          const CUtensorMap& rows64, const CUtensorMap& rows16, const Job& job, const RowTile& tile,
                          int column) {
  const int sixteens = (tile.rows + 15) / 16, boxes64 = sixteens / 4, boxes = boxes64 + sixteens % 4;
  const int rank = S::blocks > 1 ? static_cast<int>(cluster_rank()) : 0;
  const auto bytes = static_cast<uint32_t>(Memory<S>::weights + sixteens * 16 * 128);
  for (int k = 0; k < job.depth; k += depth_step, ring.advance()) {
    ring.wait_empty();
    const uint32_t a = memory + static_cast<uint32_t>(ring.stage() * Memory<S>::stage), b = a + Memory<S>::weights;
    barrier_expect(ring.full(), bytes);
    if constexpr (Across) {
      for (int g = 0; g < S::groups; g++) {
        load_box(a + static_cast<uint32_t>(g) * 8192, weights, ring.full(), column + 64 * g,
                 tile.expert * job.weight_rows + k);
      }
    } else {
      load_box(a, weights, ring.full(), k, tile.expert * job.weight_rows + column);
    }
    for (int i = rank; i < boxes; i += S::blocks) {
      const int at = i < boxes64 ? 64 * i : 64 * boxes64 + 16 * (i - boxes64);
      const CUtensorMap& map = i < boxes64 ? rows64 : rows16;
      if constexpr (S::blocks > 1) {
        load_box_to_pair(b + static_cast<uint32_t>(at) * 128, map, ring.full(), k, tile.first + at);
      } else {
        load_box(b + static_cast<uint32_t>(at) * 128, map, ring.full(), k, tile.first + at);
      }
    }
  }
}

// A group's sums (64 columns of y by Width rows) to y, 64 rows at a time through shared memory.
template <int Width>
__device__ void store_tile(const float (&d)[Width / 2], uint8_t* out, const Job& job, const RowTile& tile, int column,
                           int group) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % warp;
  const int row = lane / 16 * 8 + lane % 8, piece = thread / warp * 2 + lane / 8 % 2;
  const uint32_t to = shared_address(out) + static_cast<uint32_t>(row * 128 + (piece ^ (row % 8)) * 16);
#pragma unroll
  for (int base = 0; base < Width; base += 64) {
    group_sync(1 + group, 128);
#pragma unroll
    for (int i = base; i < Width && i < base + 64; i += 16) {
      const float* s = d + i / 2;
      store_transposed(to + static_cast<uint32_t>(i - base) * 128, pack(s[0], s[1]), pack(s[2], s[3]), pack(s[4], s[5]),
                       pack(s[6], s[7]));
    }
    group_sync(1 + group, 128);
    if (column >= job.columns) continue;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = i * 16 + thread / 8, c = thread % 8;
      if (base + r >= tile.rows) break;
      *reinterpret_cast<uint4*>(job.y + (tile.first + base + r) * job.y_stride + column + c * 8) =
          *reinterpret_cast<const uint4*>(out + r * 128 + (c ^ (r % 8)) * 16);
    }
  }
}

// One group: the sums of one tile.
template <class S, bool Across, int Width>
__device__ void multiply_tile(typename Memory<S>::ring& ring, uint8_t* memory, const Job& job, const RowTile& tile,
                              int column, int group) {
  float d[Width / 2] = {};
  const uint32_t stages = shared_address(memory);
  int last = 0;
  for (int k = 0; k < job.depth; k += depth_step, ring.advance()) {
    ring.wait_full();
    const uint32_t stage = stages + static_cast<uint32_t>(ring.stage() * Memory<S>::stage);
    uint64_t a = operand(stage + static_cast<uint32_t>(group) * 8192), b = operand(stage + Memory<S>::weights);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < depth_step / 16; i++, a += Across ? step_across : step_along, b += step_along) {
      Wgmma<Width, Across, 0>::add(d, a, b);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (k > 0) ring.release(last);
    last = ring.stage();
  }
  wgmma_wait<0>();
  hold(d);
  ring.release(last);
  store_tile<Width>(d, memory + Memory<S>::outs + group * Memory<S>::out, job, tile, column + 64 * group, group);
}

// y[r, c] = Σ_k x[r, k] w[e][c, k] for the rows r of expert e, or Σ_k x[r, k] w[e][k, c] when Across. A block takes
// tiles of up to S::rows rows by S::groups * 64 columns in turn: one warp loads stages of 64 k, the groups multiply.
template <class S, bool Across>
__global__ void __launch_bounds__((S::groups + 1) * 128, S::per_sm)
    rows_kernel(const __grid_constant__ CUtensorMap weights, const __grid_constant__ CUtensorMap rows64,
                const __grid_constant__ CUtensorMap rows16, const Job job) {
  using M = Memory<S>;
  extern __shared__ __align__(1024) uint8_t memory[];
  typename M::ring ring(shared_address(memory + M::barriers));
  TileTable table(reinterpret_cast<int32_t*>(memory + M::table), job.offsets, job.experts, S::rows);
  typename M::dealer dealer(memory + M::deals, job.counter);
  if (threadIdx.x == 0) {
    for (const CUtensorMap* map : {&weights, &rows64, &rows16}) prefetch_map(*map);
    ring.init();
    if constexpr (S::blocks > 1) dealer.init();
  }
  table.build();
  if constexpr (S::blocks > 1) cluster_sync();

  const int across = (job.columns + S::groups * 64 * S::blocks - 1) / (S::groups * 64 * S::blocks);
  const int tiles = table.tiles() * across, rank = S::blocks > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int group = uniform(static_cast<int>(threadIdx.x) / 128);
  const bool loads = threadIdx.x == S::groups * 128;
  const auto each_tile = [&](auto&& work) {
    const auto at = [&](int i) { work(table.at(i / across), (i % across * S::blocks + rank) * S::groups * 64); };
    if constexpr (S::blocks == 1) {
      for (int i = static_cast<int>(blockIdx.x); i < tiles; i += static_cast<int>(gridDim.x)) at(i);
    } else {
      if (loads) dealer.deal();
      for (int i = dealer.take(); i < tiles; i = dealer.take()) {
        if (loads) dealer.deal();
        at(i);
      }
    }
  };
  if (group < S::groups) {
    if constexpr (S::groups == 2) take_registers<232>();
    each_tile([&](const RowTile& tile, int column) {
      S::widths::pick(tile.rows,
                      [&]<int Width>() { multiply_tile<S, Across, Width>(ring, memory, job, tile, column, group); });
    });
  } else {
    if constexpr (S::groups == 2) leave_registers<40>();
    if (threadIdx.x / warp % 4 == 0) {
      each_tile([&](const RowTile& tile, int column) {
        if (loads) load_tile<S, Across>(ring, shared_address(memory), weights, rows64, rows16, job, tile, column);
        __syncwarp();
      });
    }
  }
  __syncwarp();
  if constexpr (S::blocks > 1) cluster_sync();  // the other block may still arrive at barriers here
}

template <class S, bool Across>
void launch(Stream& stream, const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& offsets) {
  Queue& queue = stream.queue();
  const int64_t experts = w.dim(0), n = w.dim(1), k = w.dim(2);
  const CUtensorMap weights = box_map(w.data(), DType::bf16, experts * n, k, k, Across ? 64 : 64 * S::groups);
  const CUtensorMap rows64 = box_map(x.data(), DType::bf16, x.rows(), x.dim(1), x.row_stride(), 64);
  const CUtensorMap rows16 = box_map(x.data(), DType::bf16, x.rows(), x.dim(1), x.row_stride(), 16);
  const Job job{data_of<half_t>(y),
                y.row_stride(),
                data_of<const int32_t>(offsets),
                static_cast<int>(experts),
                static_cast<int>(y.dim(1)),
                static_cast<int>(x.dim(1)),
                static_cast<int>(n),
                S::blocks > 1 ? zero_counter(queue) : nullptr};
  const auto kernel = rows_kernel<S, Across>;
  const size_t bytes = Memory<S>::bytes(job.experts);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "grouped_linear");
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {S::blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(queue.multiprocessors / S::blocks * S::blocks * S::per_sm));
  config.blockDim = dim3((S::groups + 1) * 128);
  config.dynamicSmemBytes = bytes;
  config.stream = queue.stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, weights, rows64, rows16, job), "grouped_linear");
}

}  // namespace

void tensor_rows(Stream& stream, Tensor y, Tensor x, Tensor w, Tensor offsets, bool across) {
  // Both shapes of tile add the products of one y in the same order with the same instruction: equal bits.
  if (x.rows() <= 32 * w.dim(0)) {
    across ? launch<Narrow, true>(stream, y, x, w, offsets) : launch<Narrow, false>(stream, y, x, w, offsets);
  } else {
    across ? launch<Wide, true>(stream, y, x, w, offsets) : launch<Wide, false>(stream, y, x, w, offsets);
  }
}

}  // namespace furlong::cuda::grouped
