// Attention of segments of few rows over long memories in pages, bf16 heads of 256 ("decode"). The keys of a sequence
// are cut at fixed positions into splits, splits are joined into groups and groups into the whole, always in this
// order, so that a row's bits depend on its own sequence only (Flash-Decoding with a fixed split). The query rows of a
// key head share what is read.
#include "ops/cuda/attention_mma.cuh"
#include "ops/cuda/attention_rows.cuh"

namespace furlong::cuda::attn {
namespace {

constexpr int split_keys = 128, tile_keys = 64, tiles = split_keys / tile_keys, stages = 5;
constexpr int decode_threads = 256, warps = decode_threads / warp, most_rows = 32, own_columns = wide / warps;
constexpr int tile_bytes = tile_keys * row_bytes, q_bytes = most_rows * row_bytes, p_row = split_keys * 2;
constexpr int decode_bytes = stages * tile_bytes + q_bytes + most_rows * p_row;
constexpr int most_segments = 1024;

// 32 groups of 8 splits (1024 keys), 32 of 16, ...: long memories do not have very many.
constexpr int groups_per_size = 32, first_size = 8;
struct Group {
  int first, splits;
};
__host__ __device__ inline Group group_at(int i) {
  const int level = i / groups_per_size, size = first_size << level;
  return {groups_per_size * first_size * ((1 << level) - 1) + i % groups_per_size * size, size};
}
__host__ __device__ inline int splits_of(int keys) { return (keys + split_keys - 1) / split_keys; }
// How many groups hold so many splits.
__host__ __device__ inline int groups_of(int splits) {
  int level = 0;
  while (groups_per_size * first_size * ((2 << level) - 1) < splits) level++;
  const int first = groups_per_size * first_size * ((1 << level) - 1), size = first_size << level;
  return level * groups_per_size + (splits - first + size - 1) / size;
}

struct Decode {
  Rows rows;
  Memory<half_t> memory;
  Heads<const half_t> q;
  Heads<half_t> o;
  Heads<float> lse;
  float scale;
  bool grouped;    // an item is a whole group, else one split: few sequences are spread over more blocks so
  int most_parts;  // groups or splits of the longest memory
  float* parts;    // (T, heads, most_parts, 256): sums of weighted values
  float2* totals;  // (T, heads, most_parts): maximum of the scores, sum of the weights
};

// The facts of the segments, in shared memory.
struct Segment {
  int offset;  // items of earlier segments
  int start, tokens, position;
};

// Query rows [first, first + count) of one key head of a segment over splits [begin, end), kept as `part`.
struct Item {
  int segment, start, kv_head, first, count, part, begin, end;
  int position, keys;  // position of the segment's first token; keys of the segment
};

// Joins a part to what came before it: both kernels do it in the same arithmetic.
struct Join {
  float top, old_factor, new_factor;
};
__device__ inline Join join(float top, float part_top, float scale) {
  const float high = fmaxf(top, part_top), safe = high == -INFINITY ? 0 : high;  // a row may see no key of a split
  return {high, exp2f((top - safe) * scale), exp2f((part_top - safe) * scale)};
}
__device__ inline float joined(float old_value, float new_value, const Join& j) {
  return fmaf(new_value, j.new_factor, __fmul_rn(old_value, j.old_factor));
}

__device__ inline uint32_t q_offset(int row, int piece) { return row * row_bytes + ((piece ^ (row % 8)) * 16); }
__device__ inline uint32_t p_offset(int row, int piece) { return row * p_row + ((piece ^ (row % 8)) * 16); }
__device__ inline void load_4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void load_4_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Items of a segment: its row chunks x key heads x groups or splits.
__device__ inline int chunks_of(const Rows& rows, int tokens) {
  return (tokens * rows.group + most_rows - 1) / most_rows;
}

// Fills the segments in shared memory; the one after the last holds the number of items.
__device__ inline void list_segments(const Decode& f, Segment* list) {
  __shared__ int sums[warps];
  const int lane = threadIdx.x % warp, own = threadIdx.x / warp, segments = f.rows.segments;
  int base = 0;
  for (int first = 0; first < segments; first += decode_threads) {
    const int s = first + threadIdx.x;
    int n = 0;
    if (s < segments) {
      const int start = f.rows.starts[s], tokens = f.rows.starts[s + 1] - start;
      const bool mine = tokens > 0 && tokens <= decode_tokens;
      const int position = mine ? f.rows.positions[start] : 0, splits = splits_of(position + tokens);
      if (mine) n = chunks_of(f.rows, tokens) * f.rows.kv_heads * (f.grouped ? groups_of(splits) : splits);
      list[s] = {0, start, tokens, position};
    }
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
    if (s < segments) list[s].offset = before;
  }
  if (threadIdx.x == 0) list[segments].offset = base;
  __syncthreads();
}

__device__ inline Item item_at(const Decode& f, const Segment* list, int index) {
  int low = 0, high = f.rows.segments;  // list[low].offset <= index < list[high].offset
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (list[middle].offset <= index ? low : high) = middle;
  }
  const Segment segment = list[low];
  const int chunks = chunks_of(f.rows, segment.tokens), rest = index - segment.offset;
  Item item;
  item.segment = low;
  item.start = segment.start;
  item.position = segment.position;
  item.keys = segment.position + segment.tokens;
  item.first = rest % chunks * most_rows;
  item.count = min(most_rows, segment.tokens * f.rows.group - item.first);
  item.kv_head = rest / chunks % f.rows.kv_heads;
  item.part = rest / chunks / f.rows.kv_heads;
  const Group group = f.grouped ? group_at(item.part) : Group{item.part, 1};
  item.begin = group.first;
  item.end = min(group.first + group.splits, splits_of(item.keys));
  return item;
}

// Brings tiles in the order in which they are used, several ahead, from one item into the next: of each split the keys,
// then the values.
struct Loader {
  const Decode& f;
  const Segment* list;
  uint32_t ring;
  int index, items;  // the item being loaded
  Item item;
  int split, tile, at;        // the tile in the split; tiles loaded so far
  int64_t place, next_place;  // lane i: of key i / 8 * 64 + 8 w + i % 8 of this split and of the next

  __device__ int64_t find(int s) const {
    const int lane = threadIdx.x % 16, w = threadIdx.x / warp;
    const int key = s * split_keys + lane / 8 * tile_keys + 8 * w + lane % 8;
    return f.memory.row(item.segment, item.start, min(key, item.keys - 1));
  }
  __device__ void open() {
    if (index >= items) return;
    item = item_at(f, list, index);
    split = item.begin;
    tile = 0;
    place = find(split);
    next_place = find(split + 1);
  }
  // Loads one tile, if there is one left, as one group of copies.
  __device__ void next() {
    if (index < items) {
      const int lane = threadIdx.x % warp, w = threadIdx.x / warp, left = item.keys - split * split_keys;
      const int count = left > tile_keys ? 2 : 1;
      const bool values = tile >= count;
      const int t = values ? tile - count : tile;
      const Heads<const half_t>& from = values ? f.memory.v : f.memory.k;
      const uint32_t to = ring + at % stages * tile_bytes;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int64_t row = __shfl_sync(0xffffffffu, place, 8 * t + i);
        copy_16(to + q_offset(8 * w + i, lane), from.at(row, item.kv_head, wide) + lane * 8,
                t * tile_keys + 8 * w + i < left);
      }
      at++;
      if (++tile == 2 * count) {
        tile = 0;
        if (++split < item.end) {
          place = next_place;
          next_place = find(split + 1);
        } else {
          index += gridDim.x;
          open();
        }
      }
    }
    copies_commit();
  }
};

struct DecodeShared {
  uint32_t ring, q, p;
  unsigned char *q_bytes, *p_bytes;
  float (*part)[most_rows];  // a number per warp and row
};

// Waits for the next tile and starts the load of the one after those under way; returns where the tile lies.
__device__ inline uint32_t take(Loader& loader, int& used) {
  copies_wait<stages - 2>();
  __syncthreads();
  loader.next();
  return loader.ring + used++ % stages * tile_bytes;
}

// The scores of one split: of tile i this warp has keys 8 w .. 8 w + 7. Even and odd steps are summed apart.
template <int M>
__device__ void scores(float (&s)[M][tiles][4], const uint32_t (&q)[M][wide / 16][4], int count, Loader& loader,
                       int& used) {
  const int lane = threadIdx.x % warp, w = threadIdx.x / warp;
#pragma unroll
  for (int i = 0; i < tiles; i++) {
    float sums[M][2][4] = {};
    if (i < count) {
      const uint32_t keys = take(loader, used);
#pragma unroll
      for (int c = 0; c < wide / 32; c++) {
        uint32_t b[4];
        load_4(b, keys + q_offset(8 * w + lane % 8, 4 * c + lane / 8));
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
          for (int h = 0; h < 2; h++) mma(sums[m][h], q[m][2 * c + h], b[2 * h], b[2 * h + 1]);
        }
      }
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int e = 0; e < 4; e++) s[m][i][e] = sums[m][0][e] + sums[m][1][e];
    }
  }
}

// A number per row of a quad's two, reduced over the block in the order of the warps.
template <int M, class F>
__device__ void over_warps(const DecodeShared& shared, float (&mine)[M][2], F combine) {
  const int lane = threadIdx.x % warp, w = threadIdx.x / warp;
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float x = mine[m][h];
      x = combine(x, __shfl_xor_sync(0xffffffffu, x, 1));
      x = combine(x, __shfl_xor_sync(0xffffffffu, x, 2));
      if (lane % 4 == 0) shared.part[w][16 * m + 8 * h + lane / 4] = x;
    }
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float x = shared.part[0][16 * m + 8 * h + lane / 4];
#pragma unroll
      for (int i = 1; i < warps; i++) x = combine(x, shared.part[i][16 * m + 8 * h + lane / 4]);
      mine[m][h] = x;
    }
  }
  __syncthreads();
}

// Scores become weights in shared.p; top and sum are those of the split.
template <int M>
__device__ void weigh(const Decode& f, const Item& item, int first_key, float (&s)[M][tiles][4], float (&top)[M][2],
                      float (&sum)[M][2], const DecodeShared& shared) {
  const int lane = threadIdx.x % warp, w = threadIdx.x / warp;
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = item.first + 16 * m + 8 * h + lane / 4;
      const int position = min(item.position + r / f.rows.group, item.keys - 1);
      top[m][h] = -INFINITY;
#pragma unroll
      for (int i = 0; i < tiles; i++) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; e++) {
          if (first_key + i * tile_keys + 8 * w + lane % 4 * 2 + e % 2 > position) s[m][i][e] = -INFINITY;
          top[m][h] = fmaxf(top[m][h], s[m][i][e]);
        }
      }
    }
  }
  over_warps<M>(shared, top, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float shift = top[m][h] == -INFINITY ? 0 : top[m][h] * f.scale;
      sum[m][h] = 0;
#pragma unroll
      for (int i = 0; i < tiles; i++) {
        const float low = exp2f(fmaf(s[m][i][2 * h], f.scale, -shift));
        const float high = exp2f(fmaf(s[m][i][2 * h + 1], f.scale, -shift));
        sum[m][h] += low + high;
        const uint32_t at = p_offset(16 * m + 8 * h + lane / 4, 8 * i + w) + lane % 4 * 4;
        *reinterpret_cast<uint32_t*>(shared.p_bytes + at) = pack(low, high);
      }
    }
  }
  over_warps<M>(shared, sum, [](float a, float b) { return a + b; });
}

// The values of one split, weighted: this warp has columns 32 w .. 32 w + 31.
template <int M>
__device__ void add_values(float (&out)[M][4][4], int count, const DecodeShared& shared, Loader& loader, int& used) {
  const int lane = threadIdx.x % warp, w = threadIdx.x / warp;
#pragma unroll 1
  for (int i = 0; i < count; i++) {
    const uint32_t values = take(loader, used);
#pragma unroll
    for (int k = 0; k < tile_keys / 16; k++) {
      uint32_t a[M][4];
#pragma unroll
      for (int m = 0; m < M; m++) {
        load_4(a[m], shared.p + p_offset(16 * m + lane % 16, 8 * i + 2 * k + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        uint32_t b[4];
        load_4_transposed(b, values + q_offset(16 * k + lane % 16, 4 * w + n + lane / 16));
#pragma unroll
        for (int m = 0; m < M; m++) {
          mma(out[m][n], a[m], b[0], b[1]);
          mma(out[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
}

__device__ inline void load_queries(const Decode& f, const Item& item, int rows, const DecodeShared& shared) {
  const int lane = threadIdx.x % warp;
  for (int r = threadIdx.x / warp; r < rows; r += warps) {
    uint4 piece = {};
    if (r < item.count) {
      const int row = item.first + r;
      piece = *reinterpret_cast<const uint4*>(
          f.q.at(item.start + row / f.rows.group, item.kv_head * f.rows.group + row % f.rows.group, wide) + lane * 8);
    }
    *reinterpret_cast<uint4*>(shared.q_bytes + q_offset(r, lane)) = piece;
  }
}

template <int M>
__device__ void run_item(const Decode& f, const Item& item, const DecodeShared& shared, Loader& loader, int& used) {
  const int lane = threadIdx.x % warp, w = threadIdx.x / warp;
  load_queries(f, item, 16 * M, shared);
  __syncthreads();
  uint32_t q[M][wide / 16][4];
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int c = 0; c < wide / 16; c++) load_4(q[m][c], shared.q + q_offset(16 * m + lane % 16, 2 * c + lane / 16));
  }
  float out[M][4][4] = {}, top[M][2], sum[M][2] = {};
#pragma unroll
  for (int m = 0; m < M; m++) top[m][0] = top[m][1] = -INFINITY;
#pragma unroll 1
  for (int split = item.begin; split < item.end; split++) {
    const int first_key = split * split_keys, count = item.keys - first_key > tile_keys ? 2 : 1;
    float s[M][tiles][4], part[M][4][4] = {}, part_top[M][2], part_sum[M][2];
    scores<M>(s, q, count, loader, used);
    weigh<M>(f, item, first_key, s, part_top, part_sum, shared);
    add_values<M>(part, count, shared, loader, used);
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const Join j = join(top[m][h], part_top[m][h], f.scale);
        top[m][h] = j.top;
        sum[m][h] = joined(sum[m][h], part_sum[m][h], j);
#pragma unroll
        for (int n = 0; n < 4; n++) {
          out[m][n][2 * h] = joined(out[m][n][2 * h], part[m][n][2 * h], j);
          out[m][n][2 * h + 1] = joined(out[m][n][2 * h + 1], part[m][n][2 * h + 1], j);
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < M; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = 16 * m + 8 * h + lane / 4, row = item.first + r;
      if (r >= item.count) continue;
      const int64_t t = item.start + row / f.rows.group;
      const int64_t at =
          (t * f.rows.heads + item.kv_head * f.rows.group + row % f.rows.group) * f.most_parts + item.part;
      if (w == 0 && lane % 4 == 0) f.totals[at] = {top[m][h], sum[m][h]};
      float* to = f.parts + at * wide + own_columns * w + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < 4; n++) {
        *reinterpret_cast<float2*>(to + 8 * n) = {out[m][n][2 * h], out[m][n][2 * h + 1]};
      }
    }
  }
}

// Each block takes items i, i + blocks, ...: up to 32 query rows of a key head over one split or group of splits.
__global__ void __launch_bounds__(decode_threads, 1) decode_kernel(const __grid_constant__ Decode f) {
  extern __shared__ __align__(1024) unsigned char raw[];
  __shared__ Segment list[most_segments + 1];
  __shared__ float part[warps][most_rows];
  dependents_may_start();
  list_segments(f, list);
  const int items = list[f.rows.segments].offset;
  const uint32_t base = shared_address(raw);
  const DecodeShared shared{.ring = base,
                            .q = base + stages * tile_bytes,
                            .p = base + stages * tile_bytes + q_bytes,
                            .q_bytes = raw + stages * tile_bytes,
                            .p_bytes = raw + stages * tile_bytes + q_bytes,
                            .part = part};
  Loader loader{.f = f, .list = list, .ring = base, .index = static_cast<int>(blockIdx.x), .items = items};
  loader.open();
  wait_for_earlier();  // the pages are being written
  for (int i = 0; i < stages - 1; i++) loader.next();
  int used = 0;
#pragma unroll 1
  for (int i = blockIdx.x; i < items; i += gridDim.x) {
    const Item item = item_at(f, list, i);
    if (item.count <= 16) {
      run_item<1>(f, item, shared, loader, used);
    } else {
      run_item<2>(f, item, shared, loader, used);
    }
  }
  copies_wait<0>();
}

// Block (t, head) of teams of 64 threads: joins the parts of one row. Each team joins the splits of a group, the first
// then the groups.
constexpr int join_team = wide / 4, most_teams = 8;

__global__ void __launch_bounds__(join_team* most_teams) join_kernel(const __grid_constant__ Decode f) {
  const int t = blockIdx.x, head = blockIdx.y, c = threadIdx.x * 4, team = threadIdx.y, teams = blockDim.y;
  __shared__ int tokens;
  __shared__ float4 parts[most_teams][join_team];
  __shared__ float2 totals[most_teams];
  dependents_may_start();
  if (threadIdx.x == 0 && team == 0) tokens = 0;
  __syncthreads();
  for (int s = team * join_team + threadIdx.x; s < f.rows.segments; s += teams * join_team) {
    const int start = f.rows.starts[s], end = f.rows.starts[s + 1];
    if (start <= t && t < end) tokens = end - start;
  }
  const int splits = splits_of(f.rows.positions[t] + 1), groups = groups_of(splits);
  __syncthreads();
  wait_for_earlier();
  if (tokens == 0 || tokens > decode_tokens) return;
  const int64_t at = (static_cast<int64_t>(t) * f.rows.heads + head) * f.most_parts;
  const auto add = [&](float4& out, float& top, float& sum, const float4& part, float2 total) {
    const Join j = join(top, total.x, f.scale);
    top = j.top;
    sum = joined(sum, total.y, j);
    out = {joined(out.x, part.x, j), joined(out.y, part.y, j), joined(out.z, part.z, j), joined(out.w, part.w, j)};
  };
  const auto kept = [&](int i) { return *reinterpret_cast<const float4*>(f.parts + (at + i) * wide + c); };
  float4 out = {};
  float top = -INFINITY, sum = 0;
  for (int first = 0; first < groups; first += teams) {
    if (first + team < groups) {
      float4 part = {};
      float2 total = {-INFINITY, 0};
      if (f.grouped) {
        part = kept(first + team);
        total = f.totals[at + first + team];
      } else {
        const Group group = group_at(first + team);
#pragma unroll 8
        for (int i = group.first; i < min(group.first + group.splits, splits); i++) {
          add(part, total.x, total.y, kept(i), f.totals[at + i]);
        }
      }
      parts[team][threadIdx.x] = part;
      if (threadIdx.x == 0) totals[team] = total;
    }
    __syncthreads();
    if (team == 0) {
      for (int i = 0; i < min(teams, groups - first); i++) add(out, top, sum, parts[i][threadIdx.x], totals[i]);
    }
    __syncthreads();
  }
  if (team > 0) return;
  const float inverse = 1 / sum;
  *reinterpret_cast<uint2*>(f.o.at(t, head, wide) + c) = {pack(out.x * inverse, out.y * inverse),
                                                          pack(out.z * inverse, out.w * inverse)};
  if (threadIdx.x == 0) *f.lse.at(t, head, 1) = top * f.scale * 0.693147181f + logf(sum);
}

}  // namespace

void decode(Stream& stream, Tensor o, Tensor lse, Tensor q, const Segments& segments, const KvPages& pages,
            const AttentionShape& shape) {
  Queue& queue = stream.queue();
  CHECK(segments.count() <= most_segments, "{} segments with memory", segments.count());
  static const cudaError_t raised =
      cudaFuncSetAttribute(decode_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, decode_bytes);
  check(raised, "attention");
  const int splits = splits_of(static_cast<int>(pages.table.dim(1) * pages.k.dim(1))), groups = groups_of(splits);
  // The bits are the same either way: whole groups where they are enough to fill the device several times.
  const bool grouped = segments.count() * shape.kv_heads * groups >= 4 * queue.multiprocessors;
  const int most_parts = grouped ? groups : splits;
  const int64_t count = q.rows() * shape.heads * most_parts;
  auto* scratch = static_cast<unsigned char*>(queue.scratch(static_cast<size_t>(count) * (wide * 4 + sizeof(float2))));
  const Decode f{.rows = rows_of(segments, shape),
                 .memory = memory_of<half_t>(pages.k, pages.v, pages),
                 .q = heads_of<const half_t>(q),
                 .o = heads_of<half_t>(o),
                 .lse = heads_of<float>(lse),
                 .scale = 1.44269504f / sqrtf(static_cast<float>(shape.head_dim)),
                 .grouped = grouped,
                 .most_parts = most_parts,
                 .parts = reinterpret_cast<float*>(scratch),
                 .totals = reinterpret_cast<float2*>(scratch + count * wide * 4)};
  launch_early(stream, decode_kernel, dim3(static_cast<unsigned>(queue.multiprocessors)), decode_threads, decode_bytes,
               f);
  launch_early(stream, join_kernel, dim3(static_cast<unsigned>(q.rows()), static_cast<unsigned>(shape.heads)),
               dim3(join_team, static_cast<unsigned>(std::min(groups, most_teams))), 0, f);
}

}  // namespace furlong::cuda::attn
