// The gradient of the embedding. Rows of one token are added by one block, in token order, so that no sum depends on
// scheduling: a first kernel finds each token's first row and number of rows.
#include "ops/cuda/packs.cuh"

namespace furlong::cuda {
namespace {

// Of one entry of the vocabulary, zeros before.
struct Occurrences {
  uint32_t first;  // rows of the batch less the token's first
  uint32_t count;
};

__global__ void find_tokens_kernel(Occurrences* found, const int32_t* tokens, int rows) {
  const int t = blockIdx.x * block_threads + threadIdx.x;
  if (t >= rows) return;
  Occurrences& at = found[tokens[t]];
  atomicMax(&at.first, static_cast<uint32_t>(rows - t));
  atomicAdd(&at.count, 1u);
}

constexpr int tile = 2048;  // tokens that a block looks at together, eight a thread

// The rows of one token within a tile, in order.
struct Found {
  int rows[tile];
  int per_warp[block_threads / warp];
};

// Lists those rows among the `tile` from `base` on that hold `token`; returns how many. Called by the whole block.
__device__ inline int find_in_tile(Found& found, const int32_t* tokens, int token, int base, int rows) {
  constexpr int each = tile / block_threads;
  const int t = base + static_cast<int>(threadIdx.x) * each, lane = threadIdx.x % warp;
  uint32_t same = 0;
#pragma unroll
  for (int i = 0; i < each; i++) same |= (t + i < rows && tokens[t + i] == token ? 1u : 0u) << i;
  const int mine = __popc(same);
  const int all = __syncthreads_count(same != 0);  // also: what the tile before left has been read
  if (all == 0) return 0;
  int at = mine;
#pragma unroll
  for (int d = 1; d < warp; d *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, at, d);
    if (lane >= d) at += other;
  }
  if (lane == warp - 1) found.per_warp[threadIdx.x / warp] = at;
  __syncthreads();
  int count = 0;
  for (int i = 0; i < block_threads / warp; i++) {
    if (i < static_cast<int>(threadIdx.x) / warp) at += found.per_warp[i];
    count += found.per_warp[i];
  }
  at -= mine;
#pragma unroll
  for (int i = 0; i < each; i++) {
    if (same >> i & 1u) found.rows[at++] = t + i;
  }
  __syncthreads();
  return count;
}

// sum += row rows[i], i < count, one after the other, several on their way at a time.
template <class T>
__device__ inline void add_rows(float (&sum)[pack], Rows<const T> dx, const int* rows, int count, int64_t c,
                                int64_t left) {
  constexpr int ahead = 16;
  int i = 0;
  for (; i + ahead <= count; i += ahead) {
    Octet<T> in[ahead];
#pragma unroll
    for (int j = 0; j < ahead; j++) in[j] = load_pack(dx.at(rows[i + j], c), left, dx.aligned);
#pragma unroll
    for (int j = 0; j < ahead; j++) {
      float v[pack];
      widen_pack(in[j], v);
#pragma unroll
      for (int k = 0; k < pack; k++) sum[k] += v[k];
    }
  }
  for (; i < count; i++) {
    float v[pack];
    load_floats(v, dx.at(rows[i], c), left, dx.aligned);
#pragma unroll
    for (int k = 0; k < pack; k++) sum[k] += v[k];
  }
}

// A block a row: where the row is its token's first, dtable[token] += all rows of that token.
template <class T>
__global__ void __launch_bounds__(block_threads)
    add_tokens_kernel(Rows<float> dtable, Rows<const T> dx, const int32_t* tokens, const Occurrences* found, int rows,
                      int64_t n) {
  __shared__ Found rows_found;
  const int t = blockIdx.x, token = tokens[t];
  const auto [first, count] = found[token];
  if (static_cast<int>(first) != rows - t) return;
  const int64_t c = (blockIdx.y * static_cast<int64_t>(block_threads) + threadIdx.x) * pack, left = c < n ? n - c : 0;
  float sum[pack];
  load_floats(sum, static_cast<const float*>(dtable.at(token, c)), left, dtable.aligned);
  add_rows(sum, dx, &t, 1, c, left);
  int added = 1;
  for (int base = t + 1; added < static_cast<int>(count); base += tile) {
    const int here = find_in_tile(rows_found, tokens, token, base, rows);
    add_rows(sum, dx, rows_found.rows, here, c, left);
    added += here;
  }
  store_floats(dtable.at(token, c), sum, left, dtable.aligned);
}

}  // namespace

void embed_backward(Stream& stream, Tensor dtable, Tensor dx, Tensor tokens) {
  const cudaStream_t at = stream.queue().stream;
  const int rows = static_cast<int>(dx.rows());
  const int64_t n = dx.dim(1), entries = dtable.rows();
  auto* found = stream.queue().scratch<Occurrences>(entries);
  check(cudaMemsetAsync(found, 0, static_cast<size_t>(entries) * sizeof(Occurrences), at), "embed_backward");
  find_tokens_kernel<<<static_cast<uint32_t>(blocks_for(rows, block_threads)), block_threads, 0, at>>>(
      found, data_of<const int32_t>(tokens), rows);
  dispatch(dx.dtype(), [&]<class T>() {
    const dim3 grid(static_cast<uint32_t>(rows), static_cast<uint32_t>(blocks_for(n, block_threads * pack)));
    add_tokens_kernel<T><<<grid, block_threads, 0, at>>>(rows_of<float>(dtable), rows_of<const T>(dx),
                                                         data_of<const int32_t>(tokens), found, rows, n);
  });
  check_launch(stream.queue(), "embed_backward");
}

}  // namespace furlong::cuda
