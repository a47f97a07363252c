#include "ops/cuda/grouped.h"
#include "ops/cuda/grouped_tiles.cuh"
#include "ops/cuda/grouped_wgmma.cuh"

namespace furlong::cuda::grouped {
namespace {

// A block's tile of dw is 128 rows (n) by 256 columns (k): two groups of 64 rows. A pair of blocks, one above the
// other, shares the loads of x. A stage holds 32 rows of dy and x in boxes of 64 columns.
constexpr int groups = 2, width = 256, blocks = 2, depth_step = 32;
constexpr int box_bytes = depth_step * 128, left_bytes = groups * box_bytes, right_bytes = width / 64 * box_bytes;
constexpr int stage_bytes = left_bytes + right_bytes, out_box = 64 * 128, out_bytes = width / 32 * out_box;
constexpr int threads = groups * 128 + warp + groups * warp + warp, takers = threads / warp - 1;
using TileDealer = Dealer<takers>;

// Few rows to an expert: time goes to reading and writing dw. The tile of dw comes to shared memory while the products
// are summed, in boxes of 32 columns, and leaves during the next tile: a warp for each group carries it.
struct Carried {
  static constexpr bool carries = true;
  static constexpr int stages = 4;
};
// Many rows: time goes to the products, which need the memory for stages.
struct Direct {
  static constexpr bool carries = false;
  static constexpr int stages = 9;
};

template <class S>
struct Memory {
  using ring = Ring<S::stages, blocks, groups>;
  static constexpr int outs = S::stages * stage_bytes, barriers = outs + (S::carries ? groups * out_bytes : 0);
  static constexpr int deals = barriers + 16 * S::stages, carries = deals + static_cast<int>(TileDealer::bytes);
  static constexpr int table = carries + groups * 16;
};

struct Job {
  const int32_t* offsets;
  int experts, n, k;
  int* counter;  // of tiles dealt
  float* dw;
};

// Where a tile lies.
struct Place {
  int n, k;
};

template <class Stages>
__device__ void load_tile(Stages& ring, uint32_t memory, const CUtensorMap& dy, const CUtensorMap& x,
                          const RowTile& tile, const Place& at) {
  const auto rank = static_cast<int>(cluster_rank());
  for (int r = 0; r < tile.rows; r += depth_step, ring.advance()) {
    ring.wait_empty();
    const uint32_t a = memory + static_cast<uint32_t>(ring.stage() * stage_bytes), b = a + left_bytes;
    barrier_expect(ring.full(), stage_bytes);
    for (int g = 0; g < groups; g++) {
      load_box(a + static_cast<uint32_t>(g * box_bytes), dy, ring.full(), at.n + 64 * g, tile.first + r);
    }
    for (int i = rank; i < width / 64; i += blocks) {
      load_box_to_pair(b + static_cast<uint32_t>(i * box_bytes), x, ring.full(), at.k + 64 * i, tile.first + r);
    }
  }
}

// By a whole group: the rows from `from` on of its box on the left and of all boxes on the right become zero, for they
// belong to another expert. Both groups write the same zeros on the right.
__device__ void clear_rows(uint8_t* stage, int group, int from) {
  const int thread = static_cast<int>(threadIdx.x) % 128, piece = thread % 8;
  for (int r = from + thread / 8; r < depth_step; r += 16) {
    const uint4 zero{};
    *reinterpret_cast<uint4*>(stage + group * box_bytes + r * 128 + piece * 16) = zero;
    for (int i = 0; i < width / 64; i++) {
      *reinterpret_cast<uint4*>(stage + left_bytes + i * box_bytes + r * 128 + piece * 16) = zero;
    }
  }
  async_fence();
  group_sync(1 + group, 128);
}

// The two barriers between a group and the warp that carries its part of dw.
struct Carry {
  uint32_t come, added, parity = 0;
  __device__ Carry(uint8_t* memory, int group)
      : come(shared_address(memory) + 16 * static_cast<uint32_t>(group)), added(come + 8) {}
  __device__ void init() const {
    barrier_init(come, 1);
    barrier_init(added, 4);
  }
};

// One thread: brings a group's part of dw, its first entry at (row, k), and takes it away.
__device__ void carry_tile(Carry& carry, uint8_t* out, const CUtensorMap& dw, int row, int k, const Job& job) {
  const uint32_t boxes = shared_address(out);
  bulk_wait_read<0>();
  barrier_expect(carry.come, out_bytes);
  for (int c = 0; c < width / 32; c++)
    load_box(boxes + static_cast<uint32_t>(c * out_box), dw, carry.come, k + 32 * c, row);
  barrier_wait(carry.added, carry.parity);
  for (int c = 0; c < width / 32 && k + 32 * c < job.k; c++) {
    store_box(dw, boxes + static_cast<uint32_t>(c * out_box), k + 32 * c, row);
  }
  bulk_commit();
  carry.parity ^= 1;
}

// Adds a group's sums to its part of dw in shared memory.
__device__ void add_tile(const float (&d)[width / 2], Carry& carry, uint8_t* out) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % warp;
  const int r = thread / warp * 16 + lane / 4;
  barrier_wait(carry.come, carry.parity);
#pragma unroll
  for (int c = 0; c < width / 32; c++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float* s = d + (c * 4 + j) * 4;
      auto* high = reinterpret_cast<float2*>(out + c * out_box + r * 128 + ((j * 2 + lane % 4 / 2) ^ (r % 8)) * 16 +
                                             lane % 2 * 8);
      float2* low = high + 8 * 128 / sizeof(float2);
      const float2 a = *high, b = *low;
      *high = {a.x + s[0], a.y + s[1]};
      *low = {b.x + s[2], b.y + s[3]};
    }
  }
  async_fence();
  __syncwarp();
  if (lane == 0) barrier_arrive(carry.added);
  carry.parity ^= 1;
}

// Adds a group's sums to its part of dw, its first entry at (row, k), in device memory.
__device__ void add_tile(const float (&d)[width / 2], int64_t row, int k, const Job& job) {
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % warp;
  float* high = job.dw + (row + thread / warp * 16 + lane / 4) * job.k + k + lane % 4 * 2;
  float* low = high + static_cast<int64_t>(8) * job.k;
#pragma unroll
  for (int c = 0; c < width; c += 128) {
    float2 old[32];
#pragma unroll
    for (int j = 0; j < 16; j++) {
      if (k + c + j / 8 * 64 >= job.k) continue;
      old[2 * j] = *reinterpret_cast<const float2*>(high + c + 8 * j);
      old[2 * j + 1] = *reinterpret_cast<const float2*>(low + c + 8 * j);
    }
#pragma unroll
    for (int j = 0; j < 16; j++) {
      if (k + c + j / 8 * 64 >= job.k) continue;
      const float* s = d + (c / 8 + j) * 4;
      *reinterpret_cast<float2*>(high + c + 8 * j) = {old[2 * j].x + s[0], old[2 * j].y + s[1]};
      *reinterpret_cast<float2*>(low + c + 8 * j) = {old[2 * j + 1].x + s[2], old[2 * j + 1].y + s[3]};
    }
  }
}

template <class S>
__device__ void multiply_tile(typename Memory<S>::ring& ring, uint8_t* memory, Carry& carry, const RowTile& tile,
                              const Place& at, int group, const Job& job) {
  float d[width / 2] = {};
  int last = 0;
  for (int r = 0; r < tile.rows; r += depth_step, ring.advance()) {
    ring.wait_full();
    uint8_t* stage = memory + ring.stage() * stage_bytes;
    if (tile.rows - r < depth_step) clear_rows(stage, group, tile.rows - r);
    uint64_t a = operand(shared_address(stage) + static_cast<uint32_t>(group * box_bytes));
    uint64_t b = operand(shared_address(stage) + left_bytes, box_bytes);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < depth_step; i += 16, a += step_across, b += step_across) Wgmma<width, 1, 1>::add(d, a, b);
    wgmma_commit();
    wgmma_wait<1>();
    if (r > 0) ring.release(last);
    last = ring.stage();
  }
  wgmma_wait<0>();
  hold(d);
  ring.release(last);
  const int n = at.n + 64 * group;
  if (n >= job.n) return;
  if constexpr (S::carries) {
    add_tile(d, carry, memory + Memory<S>::outs + group * out_bytes);
  } else {
    add_tile(d, static_cast<int64_t>(tile.expert) * job.n + n, at.k, job);
  }
}

// dw[e][n, k] += Σ_r dy[r, n] x[r, k] over the rows r of expert e. A block takes tiles of 128 x 256 of the experts that
// have rows as they are dealt: one warp loads stages of rows, the groups multiply and add.
template <class S>
__global__ void __launch_bounds__(threads, 1)
    dw_kernel(const __grid_constant__ CUtensorMap dw, const __grid_constant__ CUtensorMap dy,
              const __grid_constant__ CUtensorMap x, const Job job) {
  using M = Memory<S>;
  extern __shared__ __align__(1024) uint8_t memory[];
  typename M::ring ring(shared_address(memory + M::barriers));
  TileTable table(reinterpret_cast<int32_t*>(memory + M::table), job.offsets, job.experts, 0x7fffffff);
  TileDealer dealer(memory + M::deals);
  if (threadIdx.x == 0) {
    for (const CUtensorMap* map : {&dw, &dy, &x}) prefetch_map(*map);
    ring.init();
    for (int g = 0; g < groups; g++) Carry(memory + M::carries, g).init();
    dealer.init();
  }
  table.build();
  cluster_sync();

  const int down = (job.n + groups * 64 * blocks - 1) / (groups * 64 * blocks), across = (job.k + width - 1) / width;
  const int role = uniform(static_cast<int>(threadIdx.x) / warp) - 4 * groups;
  const int group = role < 0 ? uniform(static_cast<int>(threadIdx.x) / 128) : role - 1;  // role 0 loads
  const bool first = threadIdx.x % warp == 0;
  const auto rank = static_cast<int>(cluster_rank());
  const auto each_tile = [&](auto&& work) {
    for (Deal d = dealer.take(role == 0); d.tile.rows > 0; d = dealer.take(role == 0)) {
      work(d.tile, Place{(d.part % down * blocks + rank) * groups * 64, d.part / down * width});
      __syncwarp();
    }
  };
  Carry carry(memory + M::carries, group);
  if (role < 0) {
    take_registers<224>();
    each_tile(
        [&](const RowTile& tile, const Place& at) { multiply_tile<S>(ring, memory, carry, tile, at, group, job); });
  } else {
    leave_registers<56>();
    if (role == 1 + groups) {
      if (first && rank == 0) dealer.deal_all(table, down * across, job.counter);
    } else {
      each_tile([&](const RowTile& tile, const Place& at) {
        const int n = at.n + 64 * group;
        if (first && role == 0) load_tile(ring, shared_address(memory), dy, x, tile, at);
        if (S::carries && first && role > 0 && n < job.n) {
          carry_tile(carry, memory + M::outs + group * out_bytes, dw, tile.expert * job.n + n, at.k, job);
        }
      });
    }
  }
  if (S::carries && role > 0 && first) bulk_wait();
  __syncwarp();
  cluster_sync();  // the other block may still arrive at barriers here
}

template <class S>
void launch(Stream& stream, const Tensor& dw, const Tensor& dy, const Tensor& x, const Tensor& offsets) {
  Queue& queue = stream.queue();
  const int64_t experts = dw.dim(0), n = dw.dim(1), k = dw.dim(2);
  const CUtensorMap out = box_map(dw.data(), DType::f32, experts * n, k, k, 64);
  const CUtensorMap left = box_map(dy.data(), DType::bf16, dy.rows(), n, dy.row_stride(), depth_step);
  const CUtensorMap right = box_map(x.data(), DType::bf16, x.rows(), k, x.row_stride(), depth_step);
  const Job job{data_of<const int32_t>(offsets),
                static_cast<int>(experts),
                static_cast<int>(n),
                static_cast<int>(k),
                zero_counter(queue),
                data_of<float>(dw)};
  const auto kernel = dw_kernel<S>;
  const size_t bytes = Memory<S>::table + TileTable::bytes(job.experts);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "grouped_linear_dw");
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(queue.multiprocessors / blocks * blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = queue.stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, out, left, right, job), "grouped_linear_dw");
}

}  // namespace

void tensor_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x, Tensor offsets) {
  // Both add the same sums to dw: equal bits.
  if (x.rows() < 512 * dw.dim(0)) {
    launch<Carried>(stream, dw, dy, x, offsets);
  } else {
    launch<Direct>(stream, dw, dy, x, offsets);
  }
}

}  // namespace furlong::cuda::grouped
