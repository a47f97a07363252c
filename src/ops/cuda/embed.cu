// The gradient of the embedding. Rows of one token are added by one block, in token order, so that no sum depends on
// scheduling; the kernels before find each token's first row and number of rows and list the tokens.
#include "ops/cuda/packs.cuh"

namespace furlong::cuda {
namespace {

// The entries of the vocabulary whose gradients are wanted.
struct Part {
  int first, entries, all;
  __device__ bool elsewhere(int token) const {
    return (token < first || token >= first + entries) && token >= 0 && token < all;
  }
};

// Of one entry of the vocabulary, zeros before.
struct Occurrences {
  uint32_t first;  // rows of the batch less the token's first
  uint32_t count;
};

// A token of the batch, and which block adds its rows: the frequent ones come first, since they take longest.
struct alignas(16) Token {
  int id, first, count, unused;
};
constexpr int frequent = 16;

// The state of the search, zeros before.
struct Lists {
  uint32_t frequent, others;  // how many are listed
};

__global__ void find_tokens_kernel(Occurrences* found, const int32_t* tokens, int rows, Part part) {
  const int t = blockIdx.x * block_threads + threadIdx.x;
  if (t >= rows || part.elsewhere(tokens[t])) return;
  Occurrences& at = found[tokens[t] - part.first];
  atomicMax(&at.first, static_cast<uint32_t>(rows - t));
  atomicAdd(&at.count, 1u);
}

// Lists each token of the batch once. The order within a list is any; every entry is added to by one block alone.
__global__ void list_tokens_kernel(Token* list, Lists* lists, const Occurrences* found, const int32_t* tokens, int rows,
                                   int others, Part part) {
  const int t = blockIdx.x * block_threads + threadIdx.x;
  if (t >= rows || part.elsewhere(tokens[t])) return;
  const auto [first, count] = found[tokens[t] - part.first];
  if (static_cast<int>(first) != rows - t) return;
  const uint32_t at = count > frequent ? atomicAdd(&lists->frequent, 1u) : others + atomicAdd(&lists->others, 1u);
  list[at] = {tokens[t], t, static_cast<int>(count), 0};
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
  constexpr int ahead = 12;
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

// Each block: dtable[id] += all rows of one listed token.
template <class T>
__global__ void __launch_bounds__(block_threads, 3)
    add_tokens_kernel(Rows<float> dtable, Rows<const T> dx, const int32_t* tokens, const Token* list, int rows,
                      int64_t n, int first_entry) {
  __shared__ Found rows_found;
  const auto [token, t, count, unused] = list[blockIdx.x];
  if (count == 0) return;
  const int64_t c = (blockIdx.y * static_cast<int64_t>(block_threads) + threadIdx.x) * pack, left = c < n ? n - c : 0;
  float sum[pack];
  load_floats(sum, static_cast<const float*>(dtable.at(token - first_entry, c)), left, dtable.aligned);
  add_rows(sum, dx, &t, 1, c, left);
  int added = 1;
  for (int base = t + 1; added < count; base += tile) {
    const int here = find_in_tile(rows_found, tokens, token, base, rows);
    add_rows(sum, dx, rows_found.rows, here, c, left);
    added += here;
  }
  store_floats(dtable.at(token - first_entry, c), sum, left, dtable.aligned);
}

}  // namespace

void embed_backward(Stream& stream, Tensor dtable, Tensor dx, Tensor tokens, int64_t first, int64_t vocabulary) {
  const cudaStream_t at = stream.queue().stream;
  const int rows = static_cast<int>(dx.rows()), most_frequent = rows / frequent + 1, listed = most_frequent + rows;
  const int64_t n = dx.dim(1), entries = dtable.rows();
  const size_t list_bytes = static_cast<size_t>(listed) * sizeof(Token);
  const size_t bytes = list_bytes + sizeof(Lists) + static_cast<size_t>(entries) * sizeof(Occurrences);
  auto* list = static_cast<Token*>(stream.queue().scratch(bytes));
  auto* lists = reinterpret_cast<Lists*>(list + listed);
  auto* found = reinterpret_cast<Occurrences*>(lists + 1);
  check(cudaMemsetAsync(list, 0, bytes, at), "embed_backward");
  const auto blocks = static_cast<uint32_t>(blocks_for(rows, block_threads));
  const int32_t* ids = data_of<const int32_t>(tokens);
  const Part part{static_cast<int>(first), static_cast<int>(entries), static_cast<int>(vocabulary)};
  find_tokens_kernel<<<blocks, block_threads, 0, at>>>(found, ids, rows, part);
  list_tokens_kernel<<<blocks, block_threads, 0, at>>>(list, lists, found, ids, rows, most_frequent, part);
  dispatch(dx.dtype(), [&]<class T>() {
    const dim3 grid(static_cast<uint32_t>(listed), static_cast<uint32_t>(blocks_for(n, block_threads * pack)));
    add_tokens_kernel<T>
        <<<grid, block_threads, 0, at>>>(rows_of<float>(dtable), rows_of<const T>(dx), ids, list, rows, n, part.first);
  });
  check_launch(stream.queue(), "embed_backward");
}

}  // namespace furlong::cuda
