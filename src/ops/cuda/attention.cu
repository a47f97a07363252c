// Attention of packed rows: the entry point, the writing of pages, and the forward on tensor cores for heads of 256.
#include <initializer_list>

#include "ops/cuda/attention_mma.cuh"
#include "ops/cuda/attention_rows.cuh"

namespace furlong::cuda {
namespace attn {
namespace {

constexpr int tile_rows = 128, stages = 2, warpgroup = 128, forward_threads = 3 * warpgroup;

// Block (t): row t of the batch is copied to its place in the pages of its segment.
template <class T>
__global__ void write_pages_kernel(Rows rows, Heads<const T> k, Heads<const T> v, Memory<T> memory, T* pages_k,
                                   T* pages_v) {
  dependents_may_start();
  wait_for_earlier();
  const int t = blockIdx.x, width = rows.kv_heads * rows.head_dim;
  __shared__ int64_t to;
  // The segment of row t is the last that starts at or before it and is not empty.
  for (int s = threadIdx.x; s < rows.segments; s += blockDim.x) {
    if (rows.starts[s] <= t && t < rows.starts[s + 1]) to = memory.row(s, 0, rows.positions[t]) * width;
  }
  __syncthreads();
  const T *from_k = k.at(t, 0, 0), *from_v = v.at(t, 0, 0);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const int per = 16 / sizeof(T);
  if (width % per == 0 && aligned(from_k) && aligned(from_v) && aligned(pages_k + to) && aligned(pages_v + to)) {
    for (int i = threadIdx.x; i < width / per; i += blockDim.x) {
      reinterpret_cast<uint4*>(pages_k + to)[i] = reinterpret_cast<const uint4*>(from_k)[i];
      reinterpret_cast<uint4*>(pages_v + to)[i] = reinterpret_cast<const uint4*>(from_v)[i];
    }
  } else {
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
      pages_k[to + i] = from_k[i];
      pages_v[to + i] = from_v[i];
    }
  }
}

struct Forward {
  Rows rows;
  Memory<half_t> memory;
  Heads<const half_t> q;
  Heads<half_t> o;
  Heads<float> lse;
  float scale;
  int skip_tokens;  // segments of at most so many tokens are not this kernel's
};

// What a block works on: query rows [first, first + tile_rows) of a segment and the keys they see.
struct Tile {
  int segment, start, tokens, first, position;  // position of the segment's first token
  int rows;                                     // query rows of the segment
  int keys;                                     // seen by the last row
};

__device__ inline Tile make_tile(const Rows& rows, Share share) {
  Tile tile;
  tile.segment = share.segment;
  tile.start = rows.starts[share.segment];
  tile.tokens = rows.starts[share.segment + 1] - tile.start;
  tile.first = share.index * tile_rows;
  tile.position = rows.positions[tile.start];
  tile.rows = tile.tokens * rows.group;
  tile.keys = tile.position + (min(tile.first + tile_rows, tile.rows) - 1) / rows.group + 1;
  return tile;
}

template <int Keys>
struct ForwardShared {
  static constexpr int q_bytes = tile_rows * row_bytes, tile_bytes = Keys * row_bytes;
  static constexpr int bytes = q_bytes + 2 * stages * tile_bytes + 1024 + 128;
  uint32_t q, k, v;
  uint64_t *k_full, *k_empty, *v_full, *v_empty;
  __device__ explicit ForwardShared(unsigned char* raw) {
    const uint32_t address = shared_address(raw), base = (address + 1023) / 1024 * 1024;
    q = base;
    k = q + q_bytes;
    v = k + stages * tile_bytes;
    k_full = reinterpret_cast<uint64_t*>(raw + (v + stages * tile_bytes - address));
    k_empty = k_full + stages;
    v_full = k_empty + stages;
    v_empty = v_full + stages;
  }
};

// The producers' part: 4 warps bring the queries, then the tiles of keys and values, one row per warp and instruction.
template <int Keys>
__device__ void produce(const Forward& f, const Tile& tile, const ForwardShared<Keys>& shared, int kv_head) {
  const int lane = threadIdx.x % warp, w = threadIdx.x / warp;
  for (int r = w; r < tile_rows; r += 4) {
    const int row = min(tile.first + r, tile.rows - 1);
    const half_t* from =
        f.q.at(tile.start + row / f.rows.group, kv_head * f.rows.group + row % f.rows.group, wide) + lane * 8;
    copy_16(shared.q + piece_offset<tile_rows>(r, lane), from, tile.first + r < tile.rows);
  }
  constexpr int rows_per_warp = Keys / 4;
  static_assert(rows_per_warp <= warp);
  const int tiles = (tile.keys + Keys - 1) / Keys;
  Announcer announcer;
  for (int j = 0; j < tiles; j++) {
    const int stage = j % stages;
    const uint32_t parity = (j / stages & 1) ^ 1;
    // Lane i finds the place of the warp's i-th row.
    const int own = j * Keys + w * rows_per_warp + lane;
    const int valid = max(0, min(rows_per_warp, tile.keys - (j * Keys + w * rows_per_warp)));
    const int64_t place = f.memory.row(tile.segment, tile.start, min(own, tile.keys - 1));
    const auto load = [&](const Heads<const half_t>& from, uint32_t to) {
#pragma unroll
      for (int i = 0; i < rows_per_warp; i++) {
        const int64_t row = __shfl_sync(0xffffffffu, place, i);
        copy_16(to + piece_offset<Keys>(w * rows_per_warp + i, lane), from.at(row, kv_head, wide) + lane * 8,
                i < valid);
      }
    };
    announcer.wait(shared.k_empty + stage, parity);
    load(f.memory.k, shared.k + stage * shared.tile_bytes);
    announcer.commit(shared.k_full + stage);
    announcer.wait(shared.v_empty + stage, parity);
    load(f.memory.v, shared.v + stage * shared.tile_bytes);
    announcer.commit(shared.v_full + stage);
  }
  announcer.flush();
}

// The running maximum and sum of the two rows that a thread shares with the three others of its quad.
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  float scale;  // times log2(e): weights are powers of two

  // Scores become weights; returns by which factors earlier sums shrink.
  template <int N>
  __device__ void weigh(float (&s)[N], float (&shrink)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float high = s[2 * h];
#pragma unroll
      for (int i = 0; i < N; i += 4) high = fmaxf(high, fmaxf(s[i + 2 * h], s[i + 2 * h + 1]));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
      high = fmaxf(high, top[h]);
      shrink[h] = exp2f((top[h] - high) * scale);
      top[h] = high;
      const float shift = high * scale;
      float total = 0;
#pragma unroll
      for (int i = 0; i < N; i += 4) {
        for (int e = 2 * h; e < 2 * h + 2; e++) total += s[i + e] = exp2f(fmaf(s[i + e], scale, -shift));
      }
      sum[h] = sum[h] * shrink[h] + total;
    }
  }
};

// Scores of keys after a row's own position become -infinity.
template <int N>
__device__ inline void hide_later(float (&s)[N], int first_key, const int (&position)[2]) {
  const int lane = threadIdx.x % warp;
#pragma unroll
  for (int i = 0; i < N; i++) {
    if (first_key + i / 4 * 8 + lane % 4 * 2 + i % 2 > position[i / 2 % 2]) s[i] = -INFINITY;
  }
}

// One warpgroup's 64 query rows: the scores of the next tile of keys are formed while the values of the last are added.
template <int Keys>
__device__ void consume(const Forward& f, const Tile& tile, const ForwardShared<Keys>& shared, int kv_head) {
  const int group = threadIdx.x / warpgroup - 1, w = threadIdx.x % warpgroup / warp, lane = threadIdx.x % warp;
  const int row = tile.first + group * 64 + w * 16 + lane / 4;
  const int position[2] = {tile.position + row / f.rows.group, tile.position + (row + 8) / f.rows.group};
  const int visible = tile.position + tile.first / f.rows.group + 1;  // keys that every row of the tile sees
  const int tiles = (tile.keys + Keys - 1) / Keys;
  const uint32_t q = shared.q + group * 64 * panel_bytes_per_row;
  float out[128], s[Keys / 2], shrink[2];
  uint32_t p[Keys / 4];
  Softmax softmax{.scale = f.scale * 1.44269504f};
#pragma unroll
  for (float& x : out) x = 0;

  barrier_wait(shared.k_full, 0);  // the queries came with the first keys
  product<tile_rows, Keys>(s, q, shared.k);
  wgmma_wait<0>();
  pin(s);
  if (lane == 0) barrier_arrive(shared.k_empty);
  if (Keys > visible) hide_later(s, 0, position);
  softmax.weigh(s, shrink);
  pack(p, s);
  for (int j = 1; j < tiles; j++) {
    const int stage = j % stages, last = (j - 1) % stages;
    barrier_wait(shared.k_full + stage, j / stages & 1);
    pin(s);
    product<tile_rows, Keys>(s, q, shared.k + stage * shared.tile_bytes);
    barrier_wait(shared.v_full + last, (j - 1) / stages & 1);
    pin(out);
    pin(p);
    accumulate<Keys>(out, p, shared.v + last * shared.tile_bytes);
    wgmma_wait<1>();
    pin(s);
    if (lane == 0) barrier_arrive(shared.k_empty + stage);
    if ((j + 1) * Keys > visible) hide_later(s, j * Keys, position);
    softmax.weigh(s, shrink);
    wgmma_wait<0>();
    pin(out);
    pin(p);
    if (lane == 0) barrier_arrive(shared.v_empty + last);
    pack(p, s);
#pragma unroll
    for (int i = 0; i < 128; i++) out[i] *= shrink[i / 2 % 2];
  }
  const int last = (tiles - 1) % stages;
  barrier_wait(shared.v_full + last, (tiles - 1) / stages & 1);
  pin(out);
  pin(p);
  accumulate<Keys>(out, p, shared.v + last * shared.tile_bytes);
  wgmma_wait<0>();
  pin(out);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum = softmax.sum[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int r = row + 8 * h;
    if (r >= tile.rows) continue;
    const int64_t t = tile.start + r / f.rows.group;
    const int head = kv_head * f.rows.group + r % f.rows.group;
    const float inverse = 1 / sum;
    if (lane % 4 == 0) *f.lse.at(t, head, 1) = softmax.top[h] * f.scale + logf(sum);
    half_t* to = f.o.at(t, head, wide) + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 32; i++) {
      *reinterpret_cast<uint32_t*>(to + 8 * i) = pack(out[4 * i + 2 * h] * inverse, out[4 * i + 2 * h + 1] * inverse);
    }
  }
}

// Block (i, kv_head): 128 query rows of one key head over all their keys, with an online softmax (FlashAttention,
// arXiv 2205.14135 and 2407.08608). Keys are taken from position 0 up in steps of Keys, so that a row's bits depend on
// its own sequence only.
template <int Keys>
__global__ void __launch_bounds__(forward_threads, 1) forward_kernel(const __grid_constant__ Forward f) {
  extern __shared__ unsigned char raw[];
  const ForwardShared<Keys> shared(raw);
  const Share share = find_share(f.rows.segments, blockIdx.x, [&](int s) {
    const int tokens = f.rows.starts[s + 1] - f.rows.starts[s];
    return tokens > f.skip_tokens ? (tokens * f.rows.group + tile_rows - 1) / tile_rows : 0;
  });
  if (share.segment < 0) return;
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; i++) {
      barrier_init(shared.k_full + i, warpgroup);
      barrier_init(shared.v_full + i, warpgroup);
      barrier_init(shared.k_empty + i, 2 * warpgroup / warp);
      barrier_init(shared.v_empty + i, 2 * warpgroup / warp);
    }
    fence_for_wgmma();
  }
  __syncthreads();
  const Tile tile = make_tile(f.rows, share);
  if (threadIdx.x < warpgroup) {
    registers_down<40>();
    produce<Keys>(f, tile, shared, blockIdx.y);
  } else {
    registers_up<232>();
    consume<Keys>(f, tile, shared, blockIdx.y);
  }
}

template <int Keys>
void launch_forward(Stream& stream, const Forward& f, int64_t tokens) {
  const int bytes = ForwardShared<Keys>::bytes;
  static const cudaError_t raised =
      cudaFuncSetAttribute(forward_kernel<Keys>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  check(raised, "attention");
  // Each segment may end in a part of a tile.
  const int64_t segments = f.skip_tokens > 0 ? std::min<int64_t>(f.rows.segments, tokens / (f.skip_tokens + 1))
                                             : std::min<int64_t>(f.rows.segments, tokens);
  const dim3 grid(static_cast<unsigned>(tokens * f.rows.group / tile_rows + segments),
                  static_cast<unsigned>(f.rows.kv_heads));
  forward_kernel<Keys><<<grid, forward_threads, bytes, stream.queue().stream>>>(f);
}

template <class T>
void write_pages(Stream& stream, const Tensor& k, const Tensor& v, const Segments& segments, const KvPages& pages,
                 const AttentionShape& shape) {
  launch_early(stream, write_pages_kernel<T>, dim3(static_cast<unsigned>(k.rows())), 128, 0, rows_of(segments, shape),
               heads_of<const T>(k), heads_of<const T>(v), memory_of<T>(k, v, pages), data_of<T>(pages.k),
               data_of<T>(pages.v));
}

}  // namespace

bool tensor_cores_take(const AttentionShape& shape, std::initializer_list<Tensor> tensors) {
  if (shape.head_dim != wide) return false;
  for (const Tensor& t : tensors) {
    if (t.dtype() != DType::bf16 || t.row_stride() % 8 != 0 || reinterpret_cast<uintptr_t>(t.data()) % 16 != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace attn

void attention(Stream& stream, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, const Segments& segments,
               const KvPages& pages, const AttentionShape& shape) {
  using namespace attn;
  if (pages.defined()) {
    dispatch(k.dtype(), [&]<class T>() { write_pages<T>(stream, k, v, segments, pages, shape); });
  }
  const bool fast =
      pages.defined() ? tensor_cores_take(shape, {o, q, pages.k, pages.v}) : tensor_cores_take(shape, {o, q, k, v});
  if (!fast) {
    forward_any(stream, o, lse, q, k, v, segments, pages, shape);
  } else {
    const bool decodes = pages.defined() && !pages.exact;
    const int skip = decodes ? decode_tokens : 0;
    if (decodes) decode(stream, o, lse, q, segments, pages, shape);
    if (q.rows() > skip) {
      launch_forward<64>(
          stream,
          {rows_of(segments, shape), memory_of<half_t>(k, v, pages), heads_of<const half_t>(q), heads_of<half_t>(o),
           heads_of<float>(lse), 1 / sqrtf(static_cast<float>(shape.head_dim)), skip},
          q.rows());
    }
  }
  check_launch(stream.queue(), "attention");
}

}  // namespace furlong::cuda
