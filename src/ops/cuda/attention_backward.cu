// The gradients of attention over packed rows: the entry point and, for heads of 256 in bf16, kernels on tensor cores.
#include <initializer_list>

#include "ops/cuda/attention_mma.cuh"
#include "ops/cuda/attention_rows.cuh"

namespace furlong::cuda {
namespace attn {
namespace {

// Warp per row and head: delta = <do, o>.
template <class T>
__global__ void delta_kernel(Rows rows, Heads<const T> grad, Heads<const T> o, int64_t tokens, float* delta) {
  const int64_t i = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / warp;
  if (i >= tokens * rows.heads) return;
  const int lane = threadIdx.x % warp, head = i % rows.heads;
  const T *a = grad.at(i / rows.heads, head, rows.head_dim), *b = o.at(i / rows.heads, head, rows.head_dim);
  float sum = 0;
  for (int c = lane; c < rows.head_dim; c += warp) sum = fmaf(widen(a[c]), widen(b[c]), sum);
  sum = warp_sum(sum);
  if (lane == 0) delta[i] = sum;
}

// The same for heads of 256: a lane takes eight numbers of each at once.
__global__ void delta_wide_kernel(Rows rows, Heads<const half_t> grad, Heads<const half_t> o, int64_t tokens,
                                  float* delta) {
  const int64_t i = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / warp;
  if (i >= tokens * rows.heads) return;
  const int lane = threadIdx.x % warp, head = i % rows.heads;
  const uint4 a = *reinterpret_cast<const uint4*>(grad.at(i / rows.heads, head, wide) + lane * 8);
  const uint4 b = *reinterpret_cast<const uint4*>(o.at(i / rows.heads, head, wide) + lane * 8);
  const uint32_t as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float2 u = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&as[j]));
    const float2 v = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&bs[j]));
    sum = fmaf(u.x, v.x, fmaf(u.y, v.y, sum));
  }
  sum = warp_sum(sum);
  if (lane == 0) delta[i] = sum;
}

constexpr int warpgroup = 128, threads = 3 * warpgroup, key_rows = 64, query_rows = 64;
constexpr int tile_bytes = 64 * row_bytes;
constexpr float log2e = 1.44269504f;

struct Backward {
  Rows rows;
  Heads<const half_t> q, k, v, grad;
  Heads<const float> lse;
  const float* delta;  // (T, heads)
  Heads<half_t> dq, dk, dv;
  float scale;
};

// A segment's tokens and what a block takes of them.
struct Span {
  int start, tokens, first, rows;  // first: of the block's keys or query rows; rows: query rows of the segment
};
__device__ inline Span span_of(const Rows& rows, Share share, int size) {
  const int start = rows.starts[share.segment], tokens = rows.starts[share.segment + 1] - start;
  return {start, tokens, share.index * size, tokens * rows.group};
}

// Producer warp w brings its quarter of `Count` rows from row `first` of the tile's source; place(r) is the row's
// address, evaluated by one lane per row, and rows from `valid` on are zeros.
template <int TileRows, int Count, class F>
__device__ void bring(uint32_t to, int valid, F place) {
  constexpr int each = Count / 4;
  const int lane = threadIdx.x % warp, w = threadIdx.x / warp;
  const int own = w * each + lane % each;
  const auto address = reinterpret_cast<int64_t>(place(min(own, max(valid, 1) - 1)));
#pragma unroll 4
  for (int i = 0; i < each; i++) {
    const auto* from = reinterpret_cast<const half_t*>(__shfl_sync(0xffffffffu, address, i)) + lane * 8;
    copy_16(to + piece_offset<TileRows>(w * each + i, lane), from, w * each + i < valid);
  }
}

// Rows of q or do by their number in the segment.
__device__ inline const half_t* query_row(const Backward& b, const Heads<const half_t>& of, const Span& span,
                                          int kv_head, int row) {
  return of.at(span.start + row / b.rows.group, kv_head * b.rows.group + row % b.rows.group, wide);
}

// ---- dk and dv ----
struct KeyShared {
  static constexpr int weights_bytes = 2 * warpgroup * 16 * 4;
  static constexpr int bytes = 6 * tile_bytes + weights_bytes + 4 * query_rows * 4 + 12 * 8 + 1024;
  uint32_t k, v, q, grad;  // q and grad: two stages
  uint4* weights;          // two stages of 16 registers per thread
  float *lse, *delta;      // two stages
  uint64_t *q_full, *q_empty, *grad_full, *grad_empty, *weights_full, *weights_empty;
  __device__ explicit KeyShared(unsigned char* raw) {
    const uint32_t address = shared_address(raw), base = (address + 1023) / 1024 * 1024;
    k = base;
    v = k + tile_bytes;
    q = v + tile_bytes;
    grad = q + 2 * tile_bytes;
    unsigned char* rest = raw + (base - address) + 6 * tile_bytes;
    weights = reinterpret_cast<uint4*>(rest);
    lse = reinterpret_cast<float*>(rest + weights_bytes);
    delta = lse + 2 * query_rows;
    q_full = reinterpret_cast<uint64_t*>(delta + 2 * query_rows);
    q_empty = q_full + 2;
    grad_full = q_full + 4;
    grad_empty = q_full + 6;
    weights_full = q_full + 8;
    weights_empty = q_full + 10;
  }
};

// Rows beyond the end are zeros and so add nothing.
__device__ void produce_queries(const Backward& b, const Span& span, const KeyShared& shared, int kv_head, int begin) {
  const auto key = [&](const Heads<const half_t>& of, int r) {
    return of.at(span.start + span.first + r, kv_head, wide);
  };
  const int keys = min(key_rows, span.tokens - span.first);
  bring<64, 64>(shared.k, keys, [&](int r) { return key(b.k, r); });
  for (int j = 0, at = begin; at < span.rows; j++, at += query_rows) {
    const int stage = j % 2, valid = min(query_rows, span.rows - at), r = threadIdx.x % query_rows;
    const uint32_t parity = (j / 2 & 1) ^ 1;
    const int row = at + min(r, valid - 1), head = kv_head * b.rows.group + row % b.rows.group;
    const int64_t t = span.start + row / b.rows.group;
    barrier_wait(shared.q_empty + stage, parity);
    bring<64, 64>(shared.q + stage * tile_bytes, valid,
                  [&](int i) { return query_row(b, b.q, span, kv_head, at + i); });
    if (threadIdx.x < query_rows)
      copy_4(shared_address(shared.lse + stage * query_rows + r), b.lse.at(t, head, 1), r < valid);
    announce_copies(shared.q_full + stage);
    barrier_wait(shared.grad_empty + stage, parity);
    if (j == 0) bring<64, 64>(shared.v, keys, [&](int i) { return key(b.v, i); });
    bring<64, 64>(shared.grad + stage * tile_bytes, valid,
                  [&](int i) { return query_row(b, b.grad, span, kv_head, at + i); });
    // Every lane that reads delta tells so together with the weights; of grad's readers one lane of a warp speaks.
    barrier_wait(shared.weights_empty + stage, parity);
    if (threadIdx.x >= query_rows)
      copy_4(shared_address(shared.delta + stage * query_rows + r), b.delta + t * b.rows.heads + head, r < valid);
    announce_copies(shared.grad_full + stage);
  }
  copies_wait_all();
}

// Writes 64 keys' sums, times a factor.
__device__ void store_keys(const Heads<half_t>& to, const Span& span, int kv_head, const float (&sum)[128],
                           float factor) {
  const int lane = threadIdx.x % warp, w = threadIdx.x % warpgroup / warp;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int r = span.first + w * 16 + lane / 4 + 8 * h;
    if (r >= span.tokens) continue;
    half_t* row = to.at(span.start + r, kv_head, wide) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; i++) {
      *reinterpret_cast<uint32_t*>(row + 8 * i) = pack(sum[4 * i + 2 * h] * factor, sum[4 * i + 2 * h + 1] * factor);
    }
  }
}

// The first consumer: scores of the keys (rows) and queries (columns), weights from them, and dv. The product for the
// next tile is begun before the last one of this tile has ended.
__device__ void consume_scores(const Backward& b, const Span& span, const KeyShared& shared, int kv_head, int begin) {
  const int lane = threadIdx.x % warp, thread = threadIdx.x % warpgroup, w = thread / warp;
  const int key = span.first + w * 16 + lane / 4, tiles = (span.rows - begin + query_rows - 1) / query_rows;
  const float scale = b.scale * log2e;
  float dv[128], s[32];
  uint32_t p[16];
#pragma unroll
  for (float& x : dv) x = 0;
  const auto weigh = [&](int j) {
    const int stage = j % 2, parity = j / 2 & 1;
    const float* lse = shared.lse + stage * query_rows + lane % 4 * 2;
    const int at = begin + j * query_rows;
    const bool hides = at / b.rows.group < span.first + key_rows - 1;
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
      const float2 natural = *reinterpret_cast<const float2*>(lse + 2 * i);
      const float shift[2] = {natural.x * log2e, natural.y * log2e};
#pragma unroll
      for (int e = 0; e < 4; e++) s[i + e] = exp2f(fmaf(s[i + e], scale, -shift[e % 2]));
    }
    if (hides) {
#pragma unroll
      for (int i = 0; i < 32; i++) {
        if (key + i / 2 % 2 * 8 > (at + i / 4 * 8 + lane % 4 * 2 + i % 2) / b.rows.group) s[i] = 0;
      }
    }
    if (lane == 0) barrier_arrive(shared.q_empty + stage);
    pack(p, s);
    barrier_wait(shared.weights_empty + stage, parity ^ 1);
    uint4* to = shared.weights + stage * 4 * warpgroup + thread;
#pragma unroll
    for (int i = 0; i < 4; i++) to[i * warpgroup] = {p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    barrier_arrive(shared.weights_full + stage);
    wait_for_tile(shared.grad_full + stage, parity);
    pin(dv);
    pin(p);
  };
  wait_for_tile(shared.q_full, 0);
  product<64, 64>(s, shared.k, shared.q);
  wgmma_wait<0>();
  pin(s);
  int j = 0;
  for (; j + 1 < tiles; j++) {
    const int stage = j % 2, next = stage ^ 1;
    weigh(j);
    wait_for_tile(shared.q_full + next, (j + 1) / 2 & 1);
    pin(s);
    accumulate<64>(dv, p, shared.grad + stage * tile_bytes);
    product<64, 64>(s, shared.k, shared.q + next * tile_bytes);
    wgmma_wait<1>();
    pin(dv);
    pin(p);
    if (lane == 0) barrier_arrive(shared.grad_empty + stage);
    wgmma_wait<0>();
    pin(s);
  }
  weigh(j);
  accumulate<64>(dv, p, shared.grad + j % 2 * tile_bytes);
  wgmma_wait<0>();
  pin(dv);
  store_keys(b.dv, span, kv_head, dv, 1);
}

// The second consumer: gradients of the weights, with the weights those of the scores, and dk.
__device__ void consume_gradients(const Backward& b, const Span& span, const KeyShared& shared, int kv_head,
                                  int begin) {
  const int lane = threadIdx.x % warp, thread = threadIdx.x % warpgroup;
  const int tiles = (span.rows - begin + query_rows - 1) / query_rows;
  float dk[128], s[32];
  uint32_t p[16];
#pragma unroll
  for (float& x : dk) x = 0;
  const auto weigh = [&](int j) {
    const int stage = j % 2, parity = j / 2 & 1;
    const float* delta = shared.delta + stage * query_rows + lane % 4 * 2;
    barrier_wait(shared.weights_full + stage, parity);
    const uint4* from = shared.weights + stage * 4 * warpgroup + thread;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint4 four = from[i * warpgroup];
      const uint32_t weights[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int n = 8 * i + 2 * e;  // columns 8 (n / 4) + 2 (lane % 4) and the next
        const float2 shift = *reinterpret_cast<const float2*>(delta + n / 4 * 8);
        const float2 weight = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&weights[e]));
        p[4 * i + e] = pack(weight.x * (s[n] - shift.x), weight.y * (s[n + 1] - shift.y));
      }
    }
    barrier_arrive(shared.weights_empty + stage);
    if (lane == 0) barrier_arrive(shared.grad_empty + stage);
    wait_for_tile(shared.q_full + stage, parity);
    pin(dk);
    pin(p);
  };
  wait_for_tile(shared.grad_full, 0);
  product<64, 64>(s, shared.v, shared.grad);
  wgmma_wait<0>();
  pin(s);
  int j = 0;
  for (; j + 1 < tiles; j++) {
    const int stage = j % 2, next = stage ^ 1;
    weigh(j);
    wait_for_tile(shared.grad_full + next, (j + 1) / 2 & 1);
    pin(s);
    accumulate<64>(dk, p, shared.q + stage * tile_bytes);
    product<64, 64>(s, shared.v, shared.grad + next * tile_bytes);
    wgmma_wait<1>();
    pin(dk);
    pin(p);
    if (lane == 0) barrier_arrive(shared.q_empty + stage);
    wgmma_wait<0>();
    pin(s);
  }
  weigh(j);
  accumulate<64>(dk, p, shared.q + j % 2 * tile_bytes);
  wgmma_wait<0>();
  pin(dk);
  store_keys(b.dk, span, kv_head, dk, b.scale);
}

// A block: dk and dv of 64 keys of a key head, over the query rows at and after them in order. One warpgroup forms the
// weights and dv, another the gradients of the scores and dk: P = exp(scale S - lse), dV = Pᵀ dO, dS = P ∘ (dO Vᵀ -
// delta), dK = scale dSᵀ Q (FlashAttention-2, arXiv 2307.08691, algorithm 2).
__global__ void __launch_bounds__(threads, 1) dkv_kernel(const __grid_constant__ Backward b) {
  extern __shared__ unsigned char raw[];
  const KeyShared shared(raw);
  // Early keys are seen by most queries: pieces are numbered from the last, so that the longest come first.
  const int kv_head = blockIdx.x % b.rows.kv_heads;
  const Share share = find_by_length(b.rows.segments, blockIdx.x / b.rows.kv_heads, [&](int s) {
    return (b.rows.starts[s + 1] - b.rows.starts[s] + key_rows - 1) / key_rows;
  });
  if (share.segment < 0) return;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) {
      barrier_init(shared.q_full + i, warpgroup);
      barrier_init(shared.grad_full + i, warpgroup);
      barrier_init(shared.q_empty + i, 2 * warpgroup / warp);
      barrier_init(shared.grad_empty + i, 2 * warpgroup / warp);
      barrier_init(shared.weights_full + i, warpgroup);
      barrier_init(shared.weights_empty + i, warpgroup);
    }
    fence_for_wgmma();
  }
  __syncthreads();
  Span span = span_of(b.rows, share, key_rows);
  span.first = ((span.tokens + key_rows - 1) / key_rows - 1) * key_rows - span.first;
  const int begin = span.first * b.rows.group / query_rows * query_rows, role = threadIdx.x / warpgroup;
  if (role == 0) {
    registers_down<40>();
    produce_queries(b, span, shared, kv_head, begin);
  } else {
    registers_up<232>();
    if (role == 1) {
      consume_scores(b, span, shared, kv_head, begin);
    } else {
      consume_gradients(b, span, shared, kv_head, begin);
    }
  }
}

// ---- dq ----
struct QueryShared {
  static constexpr int rows = 2 * query_rows;
  static constexpr int bytes = 7 * tile_bytes + 8 * 8 + 1024;
  uint32_t q, grad, k, v;  // k: two stages
  uint64_t *k_full, *k_empty, *v_full, *v_empty;
  __device__ explicit QueryShared(unsigned char* raw) {
    const uint32_t address = shared_address(raw), base = (address + 1023) / 1024 * 1024;
    q = base;
    grad = q + 2 * tile_bytes;
    k = grad + 2 * tile_bytes;
    v = k + 2 * tile_bytes;
    k_full = reinterpret_cast<uint64_t*>(raw + (base - address) + 7 * tile_bytes);
    k_empty = k_full + 2;
    v_full = k_full + 4;
    v_empty = k_full + 5;
  }
};

__device__ void produce_keys(const Backward& b, const Span& span, const QueryShared& shared, int kv_head, int keys) {
  const int valid = min(shared.rows, span.rows - span.first);
  bring<shared.rows, shared.rows>(shared.q, valid,
                                  [&](int i) { return query_row(b, b.q, span, kv_head, span.first + i); });
  for (int j = 0, at = 0; at < keys; j++, at += key_rows) {
    const int stage = j % 2, count = min(key_rows, keys - at);
    const auto key = [&](const Heads<const half_t>& of, int r) { return of.at(span.start + at + r, kv_head, wide); };
    barrier_wait(shared.k_empty + stage, (j / 2 & 1) ^ 1);
    bring<64, 64>(shared.k + stage * tile_bytes, count, [&](int r) { return key(b.k, r); });
    announce_copies(shared.k_full + stage);
    if (j == 0) {
      bring<shared.rows, shared.rows>(shared.grad, valid,
                                      [&](int i) { return query_row(b, b.grad, span, kv_head, span.first + i); });
    }
    barrier_wait(shared.v_empty, (j & 1) ^ 1);
    bring<64, 64>(shared.v, count, [&](int r) { return key(b.v, r); });
    announce_copies(shared.v_full);
  }
  copies_wait_all();
}

__device__ void consume_keys(const Backward& b, const Span& span, const QueryShared& shared, int kv_head, int keys) {
  const int lane = threadIdx.x % warp, group = threadIdx.x / warpgroup - 1, w = threadIdx.x % warpgroup / warp;
  const int tiles = (keys + key_rows - 1) / key_rows, first = span.first + group * 64 + w * 16 + lane / 4;
  const uint32_t q = shared.q + group * 64 * panel_bytes_per_row, grad = shared.grad + group * 64 * panel_bytes_per_row;
  const float scale = b.scale * log2e;
  const int visible = span.first / b.rows.group + 1;  // keys that every row of the tile sees
  int position[2];
  float lse[2], delta[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = min(first + 8 * h, span.rows - 1), head = kv_head * b.rows.group + row % b.rows.group;
    position[h] = row / b.rows.group;
    lse[h] = *b.lse.at(span.start + position[h], head, 1) * log2e;
    delta[h] = b.delta[static_cast<int64_t>(span.start + position[h]) * b.rows.heads + head];
  }
  float dq[128], s[32], dp[32];
  uint32_t p[16];
#pragma unroll
  for (float& x : dq) x = 0;
  const auto weigh = [&](int j) {
    const bool hides = (j + 1) * key_rows > visible;
#pragma unroll
    for (int i = 0; i < 32; i++) {
      const int h = i / 2 % 2;
      s[i] = exp2f(fmaf(s[i], scale, -lse[h])) * (dp[i] - delta[h]);
    }
    if (hides) {
#pragma unroll
      for (int i = 0; i < 32; i++) {
        if (j * key_rows + i / 4 * 8 + lane % 4 * 2 + i % 2 > position[i / 2 % 2]) s[i] = 0;
      }
    }
    pack(p, s);
    pin(dq);
    pin(p);
  };
  wait_for_tile(shared.k_full, 0);
  product<shared.rows, 64>(s, q, shared.k);
  wait_for_tile(shared.v_full, 0);
  product<shared.rows, 64>(dp, grad, shared.v);
  wgmma_wait<0>();
  pin(s);
  pin(dp);
  if (lane == 0) barrier_arrive(shared.v_empty);
  int j = 0;
  for (; j + 1 < tiles; j++) {
    const int stage = j % 2, next = stage ^ 1;
    weigh(j);
    wait_for_tile(shared.k_full + next, (j + 1) / 2 & 1);
    pin(s);
    accumulate<64>(dq, p, shared.k + stage * tile_bytes);
    product<shared.rows, 64>(s, q, shared.k + next * tile_bytes);
    wait_for_tile(shared.v_full, (j + 1) & 1);
    wgmma_wait<1>();  // there are registers for dp only after p's
    pin(dq);
    pin(p);
    if (lane == 0) barrier_arrive(shared.k_empty + stage);
    pin(dp);
    product<shared.rows, 64>(dp, grad, shared.v);
    wgmma_wait<0>();
    pin(s);
    pin(dp);
    if (lane == 0) barrier_arrive(shared.v_empty);
  }
  weigh(j);
  accumulate<64>(dq, p, shared.k + j % 2 * tile_bytes);
  wgmma_wait<0>();
  pin(dq);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = first + 8 * h;
    if (row >= span.rows) continue;
    half_t* to =
        b.dq.at(span.start + row / b.rows.group, kv_head * b.rows.group + row % b.rows.group, wide) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; i++) {
      *reinterpret_cast<uint32_t*>(to + 8 * i) = pack(dq[4 * i + 2 * h] * b.scale, dq[4 * i + 2 * h + 1] * b.scale);
    }
  }
}

// A block: dq of 128 query rows of a key head over their keys: dQ = scale dS K.
__global__ void __launch_bounds__(threads, 1) dq_kernel(const __grid_constant__ Backward b) {
  extern __shared__ unsigned char raw[];
  const QueryShared shared(raw);
  const int kv_head = blockIdx.x % b.rows.kv_heads;
  const Share share = find_by_length(b.rows.segments, blockIdx.x / b.rows.kv_heads, [&](int s) {
    return ((b.rows.starts[s + 1] - b.rows.starts[s]) * b.rows.group + shared.rows - 1) / shared.rows;
  });
  if (share.segment < 0) return;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) {
      barrier_init(shared.k_full + i, warpgroup);
      barrier_init(shared.k_empty + i, 2 * warpgroup / warp);
    }
    barrier_init(shared.v_full, warpgroup);
    barrier_init(shared.v_empty, 2 * warpgroup / warp);
    fence_for_wgmma();
  }
  __syncthreads();
  const Span span = span_of(b.rows, share, shared.rows);
  const int keys = (min(span.first + shared.rows, span.rows) - 1) / b.rows.group + 1;
  if (threadIdx.x < warpgroup) {
    registers_down<40>();
    produce_keys(b, span, shared, kv_head, keys);
  } else {
    registers_up<232>();
    consume_keys(b, span, shared, kv_head, keys);
  }
}

void launch_backward(Stream& stream, const Backward& b, int64_t tokens) {
  static const cudaError_t raised[] = {
      cudaFuncSetAttribute(dkv_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, KeyShared::bytes),
      cudaFuncSetAttribute(dq_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, QueryShared::bytes)};
  for (const cudaError_t status : raised) check(status, "attention_backward");
  const int64_t segments = std::min<int64_t>(b.rows.segments, tokens);
  const auto grid = [&](int64_t pieces) { return static_cast<unsigned>((pieces + segments) * b.rows.kv_heads); };
  cudaStream_t queue = stream.queue().stream;
  dkv_kernel<<<grid(tokens / key_rows), threads, KeyShared::bytes, queue>>>(b);
  dq_kernel<<<grid(tokens * b.rows.group / QueryShared::rows), threads, QueryShared::bytes, queue>>>(b);
}

}  // namespace
}  // namespace attn

void attention_backward(Stream& stream, Tensor dq, Tensor dk, Tensor dv, Tensor do_, Tensor q, Tensor k, Tensor v,
                        Tensor o, Tensor lse, const Segments& segments, const AttentionShape& shape) {
  using namespace attn;
  Queue& queue = stream.queue();
  const Rows rows = rows_of(segments, shape);
  const int64_t count = q.rows() * shape.heads;
  float* delta = queue.scratch<float>(count);
  const auto blocks = static_cast<unsigned>(blocks_for(count, 8));
  if (tensor_cores_take(shape, {dq, dk, dv, do_, q, k, v, o})) {
    const auto grad = heads_of<const half_t>(do_);
    delta_wide_kernel<<<blocks, 8 * warp, 0, queue.stream>>>(rows, grad, heads_of<const half_t>(o), q.rows(), delta);
    launch_backward(stream,
                    {rows, heads_of<const half_t>(q), heads_of<const half_t>(k), heads_of<const half_t>(v), grad,
                     heads_of<const float>(lse), delta, heads_of<half_t>(dq), heads_of<half_t>(dk),
                     heads_of<half_t>(dv), 1 / sqrtf(static_cast<float>(shape.head_dim))},
                    q.rows());
  } else {
    dispatch(q.dtype(), [&]<class T>() {
      delta_kernel<T>
          <<<blocks, 8 * warp, 0, queue.stream>>>(rows, heads_of<const T>(do_), heads_of<const T>(o), q.rows(), delta);
    });
    backward_any(stream, dq, dk, dv, do_, q, k, v, lse, delta, segments, shape);
  }
  check_launch(queue, "attention_backward");
}

}  // namespace furlong::cuda
