// How the blocks of a grouped product share its work: the rows of each expert are cut into tiles; every block counts
// them itself from the offsets, which lie on the device.
#pragma once
#include "ops/cuda/grouped_hopper.cuh"

namespace furlong::cuda::grouped {

struct RowTile {
  int expert;
  int first;  // row
  int rows;
};

// In shared memory: the number of tiles before each expert.
class TileTable {
 public:
  // Tiles have at most `most` rows. kept: room for the offsets, which are then read only once, or null.
  __device__ TileTable(int32_t* memory, const int32_t* offsets, int experts, int most, int32_t* kept = nullptr)
      : before_(memory), offsets_(offsets), kept_(kept), experts_(experts), most_(most) {}
  static constexpr size_t bytes(int experts) { return sizeof(int32_t) * (static_cast<size_t>(experts) + 1); }

  // By all threads of the block.
  __device__ void build() {
    for (int e = static_cast<int>(threadIdx.x); e < experts_; e += static_cast<int>(blockDim.x)) {
      const int begin = __ldcg(offsets_ + e), end = __ldcg(offsets_ + e + 1), rows = end - begin;
      before_[e] = rows / most_ + (rows % most_ != 0);
      if (kept_ != nullptr) kept_[e] = begin, kept_[e + 1] = end;
    }
    if (kept_ != nullptr) offsets_ = kept_;
    __syncthreads();
    if (threadIdx.x < warp) add_up();
    __syncthreads();
  }
  __device__ int tiles() const { return before_[experts_]; }
  // Tile i. The tiles of an expert are of equal size up to 16 rows.
  __device__ RowTile at(int i) const {
    int low = 0, high = experts_ - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (before_[middle + 1] <= i) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    const int first = offsets_[low], rows = offsets_[low + 1] - first, count = before_[low + 1] - before_[low];
    const int size = count == 1 ? rows : (rows / count + (rows % count != 0) + 15) / 16 * 16;
    const int skipped = (i - before_[low]) * size;
    return {low, first + skipped, min(size, rows - skipped)};
  }

 private:
  // Turns the experts' numbers of tiles into sums of those before; each lane takes a run of experts.
  __device__ void add_up() {
    const int lane = static_cast<int>(threadIdx.x), run = (experts_ + warp - 1) / warp;
    const int from = min(lane * run, experts_), upto = min(from + run, experts_);
    int own = 0;
    for (int e = from; e < upto; e++) own += before_[e];
    int sum = own;
#pragma unroll
    for (int d = 1; d < warp; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane >= d) sum += other;
    }
    if (lane == warp - 1) before_[experts_] = sum;
    sum -= own;
    for (int e = from; e < upto; e++) {
      const int tiles = before_[e];
      before_[e] = sum;
      sum += tiles;
    }
  }

  int32_t* before_;
  const int32_t* offsets_;
  int32_t* kept_;
  int experts_, most_;
};

// The ring of stages between the warp that loads and the groups that multiply. `full` counts bytes; `empty` counts the
// warps of all blocks of the cluster that multiply, since a load may write into each of them.
template <int Stages, int Blocks, int Groups>
class Ring {
 public:
  __device__ explicit Ring(uint32_t barriers) : barriers_(barriers) {}
  static constexpr size_t bytes = 2 * sizeof(uint64_t) * Stages;

  __device__ void init() const {
    for (int s = 0; s < Stages; s++) {
      barrier_init(full(s), 1);
      barrier_init(empty(s), 4 * Groups * Blocks);
    }
    barrier_init_fence();
  }
  __device__ int stage() const { return stage_; }
  __device__ uint32_t full() const { return full(stage_); }
  __device__ void wait_full() const { barrier_wait(full(stage_), parity_); }
  __device__ void wait_empty() const { barrier_wait(empty(stage_), parity_ ^ 1); }
  // By every warp that multiplies: stage s may be written again.
  __device__ void release(int s) const {
    const uint32_t lane = threadIdx.x % warp;
    if constexpr (Blocks == 1) {
      if (lane == 0) barrier_arrive(empty(s));
    } else {
      if (lane < Blocks) barrier_arrive_at(empty(s), lane);
    }
  }
  __device__ void advance() {
    if (++stage_ == Stages) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  __device__ uint32_t full(int s) const { return barriers_ + 8 * static_cast<uint32_t>(s); }
  __device__ uint32_t empty(int s) const { return barriers_ + 8 * static_cast<uint32_t>(Stages + s); }

  uint32_t barriers_;
  int stage_ = 0;
  uint32_t parity_ = 0;
};

// Tile i of the products of all experts with `parts` tiles of columns each; no rows when there are fewer.
struct Deal {
  RowTile tile;
  int part;
};
__device__ inline Deal deal_at(const TileTable& table, int parts, int i) {
  if (i >= table.tiles() * parts) return {};
  return {table.at(i / parts), i % parts};
}
// The same in all lanes of a warp, which the compiler cannot know of what was read from shared memory.
__device__ inline Deal uniform(const Deal& d) {
  return {{uniform(d.tile.expert), uniform(d.tile.first), uniform(d.tile.rows)}, uniform(d.part)};
}

// Deals tiles to pairs of blocks as they come free, since tiles differ in length. A thread of the first block of a pair
// draws from a counter in global memory and sends the tile to both blocks, where `Warps` warps take it. Which pair gets
// a tile does not change its numbers.
template <int Warps>
class Dealer {
 public:
  __device__ explicit Dealer(uint8_t* memory) : memory_(memory) {}
  static constexpr int slots = 4;
  static constexpr size_t bytes = slots * (2 * sizeof(uint64_t) + sizeof(int4));

  __device__ void init() const {
    for (int s = 0; s < slots; s++) {
      barrier_init(dealt(s), 1);
      barrier_init(taken(s), 2 * Warps);
    }
    barrier_init_fence();
    for (int s = 0; s < slots; s++) barrier_expect(dealt(s), sizeof(int4));
  }
  // By one thread of the first block: deals everything, an empty tile last.
  __device__ void deal_all(const TileTable& table, int parts, int* counter) const {
    for (int n = 0, rows = 1; rows > 0; n++) {
      const int s = n % slots, parity = n / slots % 2;
      const Deal d = deal_at(table, parts, atomicAdd(counter, 1));
      rows = d.tile.rows;
      barrier_wait(taken(s), parity ^ 1);
      for (uint32_t block = 0; block < 2; block++) {
        send(shared_address(place(s)), {d.tile.expert, d.tile.first, rows, d.part}, dealt(s), block);
      }
    }
  }
  // By whole warps; one warp of each block readies the place for the next tile.
  __device__ Deal take(bool readies) {
    const int s = takes_ % slots, parity = takes_ / slots % 2;
    barrier_wait(dealt(s), parity);
    const int4 d = *place(s);
    const Deal deal = uniform({{d.x, d.y, d.z}, d.w});
    if (threadIdx.x % warp == 0) {
      if (readies) barrier_expect(dealt(s), sizeof(int4));
      barrier_arrive_at(taken(s), 0);
    }
    takes_++;
    return deal;
  }

 private:
  __device__ uint32_t dealt(int s) const { return shared_address(memory_) + 8 * static_cast<uint32_t>(s); }
  __device__ uint32_t taken(int s) const { return shared_address(memory_) + 8 * static_cast<uint32_t>(slots + s); }
  __device__ int4* place(int s) const { return reinterpret_cast<int4*>(memory_ + 16 * slots) + s; }

  uint8_t* memory_;
  int takes_ = 0;
};

}  // namespace furlong::cuda::grouped
