// How the attention kernels find their rows: the share of a block, and the keys and values of a position.
#pragma once
#include "ops/cuda/kernel.cuh"

namespace furlong::cuda::attn {

// The rows of a batch. The query heads that share a key head are a group; its rows over a segment of n tokens are
// numbered token by token, head by head: n * group "query rows", row r being head r % group of token r / group.
struct Rows {
  const int32_t* starts;
  const int32_t* positions;
  int segments, heads, kv_heads, group, head_dim;
};

inline Rows rows_of(const Segments& segments, const AttentionShape& shape) {
  return {data_of<int32_t>(segments.starts),  data_of<int32_t>(segments.positions),
          static_cast<int>(segments.count()), static_cast<int>(shape.heads),
          static_cast<int>(shape.kv_heads),   static_cast<int>(shape.heads / shape.kv_heads),
          static_cast<int>(shape.head_dim)};
}

// A tensor of rows of heads as a kernel sees it.
template <class T>
struct Heads {
  T* data;
  int64_t stride;
  __device__ T* at(int64_t row, int head, int head_dim) const { return data + row * stride + head * head_dim; }
};
template <class T>
Heads<T> heads_of(const Tensor& t) {
  return {data_of<T>(t), t.row_stride()};
}

// Keys and values: rows of the batch, or of pages where there is a table.
template <class T>
struct Memory {
  Heads<const T> k, v;
  const int32_t* table;
  int64_t table_stride;
  int page;
  __device__ int64_t row(int segment, int start, int position) const {
    if (table == nullptr) return start + position;
    return static_cast<int64_t>(table[segment * table_stride + position / page]) * page + position % page;
  }
};
template <class T>
Memory<T> memory_of(const Tensor& k, const Tensor& v, const KvPages& pages) {
  if (!pages.defined()) return {heads_of<const T>(k), heads_of<const T>(v), nullptr, 0, 1};
  const int64_t width = pages.k.dim(2);
  return {{data_of<const T>(pages.k), width},
          {data_of<const T>(pages.v), width},
          data_of<int32_t>(pages.table),
          pages.table.row_stride(),
          static_cast<int>(pages.k.dim(1))};
}

// With memory, segments of at most this many tokens are decode_attention's.
constexpr int decode_tokens = 8;

// A block's share of the work: piece `index` of a segment; none when segment < 0.
struct Share {
  int segment, index;
};

// Segment s is cut into count(s) pieces. Blocks take them from the last segment's last piece down: in a causal batch
// the longest pieces are then begun first. All threads of the block call this.
template <class Count>
__device__ inline Share find_share(int segments, int block, Count count) {
  __shared__ int sums[32];
  __shared__ Share found;
  const int lane = threadIdx.x % warp, own = threadIdx.x / warp, warps = blockDim.x / warp;
  if (threadIdx.x == 0) found = {-1, 0};
  int base = 0;
  for (int first = 0; first < segments; first += blockDim.x) {
    const int s = segments - 1 - first - static_cast<int>(threadIdx.x);
    const int n = s >= 0 ? count(s) : 0;
    int upto = n;
#pragma unroll
    for (int d = 1; d < warp; d *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, upto, d);
      if (lane >= d) upto += other;
    }
    __syncthreads();
    if (lane == warp - 1) sums[own] = upto;
    __syncthreads();
    int before = base + upto - n;
    for (int w = 0; w < warps; w++) {
      if (w < own) before += sums[w];
      base += sums[w];
    }
    if (block >= before && block < before + n) found = {s, n - 1 - (block - before)};
  }
  __syncthreads();
  return found;
}

// The pieces of all segments in the order of their number in their segment, the highest first: in a causal batch that
// is from the longest to the shortest. Returns the piece of this rank, or none. A whole warp calls this.
template <class Count>
__device__ inline Share find_by_length(int segments, int rank, Count count) {
  const int lane = threadIdx.x % warp;
  // How many pieces have a number of at least `level`.
  const auto pieces = [&](int level) {
    int n = 0;
    for (int s = lane; s < segments; s += warp) n += max(0, count(s) - level);
    return __reduce_add_sync(0xffffffffu, n);
  };
  int most = 0;
  for (int s = lane; s < segments; s += warp) most = max(most, count(s));
  int low = 0, high = __reduce_max_sync(0xffffffffu, most);
  if (rank >= pieces(0)) return {-1, 0};
  while (high - low > 1) {  // pieces(low) > rank >= pieces(high)
    const int middle = (low + high) / 2;
    (pieces(middle) > rank ? low : high) = middle;
  }
  int rest = rank - pieces(low + 1);
  for (int first = 0;; first += warp) {
    const int s = first + lane;
    const uint32_t have = __ballot_sync(0xffffffffu, s < segments && count(s) > low);
    const int n = __popc(have);
    if (rest < n) return {first + static_cast<int>(__fns(have, 0, rest + 1)), low};
    rest -= n;
  }
}

// The bodies behind the entry points (attention.cu, attention_backward.cu).
bool tensor_cores_take(const AttentionShape&, std::initializer_list<Tensor>);
void forward_any(Stream&, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, const Segments&, const KvPages&,
                 const AttentionShape&);
void backward_any(Stream&, Tensor dq, Tensor dk, Tensor dv, Tensor do_, Tensor q, Tensor k, Tensor v, Tensor lse,
                  const float* delta, const Segments&, const AttentionShape&);
// Segments of at most decode_tokens tokens, with memory.
void decode(Stream&, Tensor o, Tensor lse, Tensor q, const Segments&, const KvPages&, const AttentionShape&);

}  // namespace furlong::cuda::attn
