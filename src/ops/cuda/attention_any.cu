// Attention for any head_dim in full fp32 arithmetic: float32 models, and bf16 models whose heads are not of 256.
#include "ops/cuda/attention_rows.cuh"

namespace furlong::cuda::attn {
namespace {

// A block of 16 x 16 threads works on 64 x 64 scores, 4 x 4 per thread; sums over head_dim are taken 32 columns at a
// time. Outputs are formed in slabs of at most 256 columns (blockIdx.z), thread x taking columns x, x + 16, ...
constexpr int side = 16, per = 4, tile = side * per, depth = 32, threads = side * side, most_columns = 256;

struct Any {
  Rows rows;
  float scale;
};

// s[i][j] = <row i of a, row j of b> for rows 4 y + i and 4 x + j; a(r) and b(r) give a row's address or null for
// zeros.
template <class T, class A, class B>
__device__ void dots(float (&s)[per][per], A a, B b, int head_dim, float* shared) {
  float* left = shared;
  float* right = shared + depth * (tile + 4);
  const int x = threadIdx.x % side, y = threadIdx.x / side;
  for (int i = 0; i < per; i++) {
    for (int j = 0; j < per; j++) s[i][j] = 0;
  }
  for (int first = 0; first < head_dim; first += depth) {
    __syncthreads();
    for (int i = threadIdx.x; i < tile * depth; i += threads) {
      const int r = i / depth, c = i % depth;
      const T *ra = a(r), *rb = b(r);
      const bool inside = first + c < head_dim;
      left[c * (tile + 4) + r] = inside && ra != nullptr ? widen(ra[first + c]) : 0;
      right[c * (tile + 4) + r] = inside && rb != nullptr ? widen(rb[first + c]) : 0;
    }
    __syncthreads();
#pragma unroll 4
    for (int c = 0; c < depth; c++) {
      const float4 u = *reinterpret_cast<const float4*>(left + c * (tile + 4) + per * y);
      const float4 v = *reinterpret_cast<const float4*>(right + c * (tile + 4) + per * x);
      const float us[per] = {u.x, u.y, u.z, u.w}, vs[per] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < per; i++) {
#pragma unroll
        for (int j = 0; j < per; j++) s[i][j] = fmaf(us[i], vs[j], s[i][j]);
      }
    }
  }
}

// The block's 64 x 64 numbers into shared memory, rows of tile + 1. The block synchronises before and after.
__device__ inline void keep(float* to, const float (&s)[per][per]) {
  const int x = threadIdx.x % side, y = threadIdx.x / side;
  __syncthreads();
  for (int i = 0; i < per; i++) {
    for (int j = 0; j < per; j++) to[(per * y + i) * (tile + 1) + per * x + j] = s[i][j];
  }
  __syncthreads();
}

// out[i][n] += sum over r of weights[4 y + i][r] * row(r)[slab + x + 16 n].
template <class T, int Columns, class R>
__device__ void add_rows(float (&out)[per][Columns], const float* weights, R row, int count, int slab, int head_dim) {
  const int x = threadIdx.x % side, y = threadIdx.x / side;
  for (int r = 0; r < count; r++) {
    const T* from = row(r) + slab;
    float w[per];
#pragma unroll
    for (int i = 0; i < per; i++) w[i] = weights[(per * y + i) * (tile + 1) + r];
#pragma unroll
    for (int n = 0; n < Columns; n++) {
      const int c = x + side * n;
      const float v = slab + c < head_dim ? widen(from[c]) : 0;
#pragma unroll
      for (int i = 0; i < per; i++) out[i][n] = fmaf(w[i], v, out[i][n]);
    }
  }
}

// Sums and maxima over the 16 threads that share four rows of scores.
__device__ inline float row_max(float v) {
#pragma unroll
  for (int d = side / 2; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
  return v;
}
__device__ inline float row_sum(float v) {
#pragma unroll
  for (int d = side / 2; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}

// A segment's query rows [first, first + 64) of one key head.
struct Queries {
  int start, position, first, count, kv_head;  // position of the segment's first token
  __device__ int token(const Rows& rows, int r) const { return (first + r) / rows.group; }
  __device__ int head(const Rows& rows, int r) const { return kv_head * rows.group + (first + r) % rows.group; }
  template <class T>
  __device__ const T* row(const Rows& rows, const Heads<const T>& of, int r) const {
    return r < count ? of.at(start + token(rows, r), head(rows, r), rows.head_dim) : nullptr;
  }
};

__device__ inline Queries queries_at(const Rows& rows, int segment, int first, int kv_head) {
  const int start = rows.starts[segment], tokens = rows.starts[segment + 1] - start;
  return {start, rows.positions[start], first, min(tile, tokens * rows.group - first), kv_head};
}

// Block (i, kv_head, slab): 64 query rows of one key head over all their keys, from position 0 up.
template <class T, int Columns>
__global__ void __launch_bounds__(threads)
    forward_any_kernel(Any f, Memory<T> memory, Heads<const T> q, Heads<T> o, Heads<float> lse) {
  __shared__ float4 space[2 * depth * (tile + 4) / 4];
  __shared__ float weights[tile * (tile + 1)];
  const Rows& rows = f.rows;
  const Share share = find_share(rows.segments, blockIdx.x, [&](int s) {
    return ((rows.starts[s + 1] - rows.starts[s]) * rows.group + tile - 1) / tile;
  });
  if (share.segment < 0) return;
  const int x = threadIdx.x % side, y = threadIdx.x / side, kv_head = blockIdx.y, slab = blockIdx.z * most_columns;
  const Queries mine = queries_at(rows, share.segment, share.index * tile, kv_head);
  const int keys = mine.position + mine.token(rows, mine.count - 1) + 1;
  float s[per][per], out[per][Columns] = {}, top[per], sum[per] = {};
  for (float& t : top) t = -INFINITY;
  for (int first = 0; first < keys; first += tile) {
    const int count = min(tile, keys - first);
    const auto place = [&](int r) { return memory.row(share.segment, mine.start, first + r); };
    dots<T>(
        s, [&](int r) { return mine.row(rows, q, r); },
        [&](int r) { return r < count ? memory.k.at(place(r), kv_head, rows.head_dim) : nullptr; }, rows.head_dim,
        reinterpret_cast<float*>(space));
#pragma unroll
    for (int i = 0; i < per; i++) {
      const int position = mine.position + mine.token(rows, per * y + i);
      float high = top[i], total = 0;
      for (int j = 0; j < per; j++) {
        const int key = first + per * x + j;
        s[i][j] = key <= position && key < keys ? s[i][j] * f.scale : -INFINITY;
        high = fmaxf(high, s[i][j]);
      }
      high = row_max(high);
      const float shrink = expf(top[i] - high);
      top[i] = high;
      for (int j = 0; j < per; j++) total += s[i][j] = expf(s[i][j] - high);
      sum[i] = sum[i] * shrink + row_sum(total);
      for (float& value : out[i]) value *= shrink;
    }
    keep(weights, s);
    add_rows<T>(
        out, weights, [&](int r) { return memory.v.at(place(r), kv_head, rows.head_dim); }, count, slab, rows.head_dim);
  }
  for (int i = 0; i < per; i++) {
    const int r = per * y + i;
    if (r >= mine.count) continue;
    const int64_t t = mine.start + mine.token(rows, r);
    const int head = mine.head(rows, r);
    if (x == 0 && slab == 0) *lse.at(t, head, 1) = top[i] + logf(sum[i]);
#pragma unroll
    for (int n = 0; n < Columns; n++) {
      const int c = slab + x + side * n;
      if (c < rows.head_dim) o.at(t, head, rows.head_dim)[c] = narrow<T>(out[i][n] / sum[i]);
    }
  }
}

template <class T>
struct Backward {
  Heads<const T> q, k, v, grad;
  Heads<const float> lse;
  const float* delta;  // (T, heads): <do, o>
};

// What a query row needs beside its numbers; rows beyond the end weigh nothing.
struct RowFacts {
  float lse, delta;
  int token;
};
template <class T>
__device__ inline RowFacts facts(const Rows& rows, const Backward<T>& b, const Queries& mine, int r) {
  if (r >= mine.count) return {INFINITY, 0, 0};
  const int64_t t = mine.start + mine.token(rows, r);
  const int head = mine.head(rows, r);
  return {*b.lse.at(t, head, 1), b.delta[t * rows.heads + head], mine.token(rows, r)};
}

// Block (i, kv_head, slab): dq of 64 query rows of one key head.
template <class T, int Columns>
__global__ void __launch_bounds__(threads) dq_any_kernel(Any f, Backward<T> b, Heads<T> dq) {
  __shared__ float4 space[2 * depth * (tile + 4) / 4];
  __shared__ float weights[tile * (tile + 1)];
  float* work = reinterpret_cast<float*>(space);
  const Rows& rows = f.rows;
  const Share share = find_share(rows.segments, blockIdx.x, [&](int s) {
    return ((rows.starts[s + 1] - rows.starts[s]) * rows.group + tile - 1) / tile;
  });
  if (share.segment < 0) return;
  const int x = threadIdx.x % side, y = threadIdx.x / side, kv_head = blockIdx.y, slab = blockIdx.z * most_columns;
  const Queries mine = queries_at(rows, share.segment, share.index * tile, kv_head);
  const int keys = mine.token(rows, mine.count - 1) + 1;
  float s[per][per], dp[per][per], out[per][Columns] = {};
  for (int first = 0; first < keys; first += tile) {
    const int count = min(tile, keys - first);
    const auto row = [&](const Heads<const T>& of, int r) {
      return r < count ? of.at(mine.start + first + r, kv_head, rows.head_dim) : nullptr;
    };
    dots<T>(
        s, [&](int r) { return mine.row(rows, b.q, r); }, [&](int r) { return row(b.k, r); }, rows.head_dim, work);
    dots<T>(
        dp, [&](int r) { return mine.row(rows, b.grad, r); }, [&](int r) { return row(b.v, r); }, rows.head_dim, work);
    for (int i = 0; i < per; i++) {
      const RowFacts fact = facts(rows, b, mine, per * y + i);
      for (int j = 0; j < per; j++) {
        const float p = first + per * x + j <= fact.token ? expf(s[i][j] * f.scale - fact.lse) : 0;
        s[i][j] = p * (dp[i][j] - fact.delta) * f.scale;
      }
    }
    keep(weights, s);
    add_rows<T>(
        out, weights, [&](int r) { return row(b.k, r); }, count, slab, rows.head_dim);
  }
  for (int i = 0; i < per; i++) {
    const int r = per * y + i;
    if (r >= mine.count) continue;
    T* to = dq.at(mine.start + mine.token(rows, r), mine.head(rows, r), rows.head_dim);
    for (int n = 0; n < Columns; n++) {
      const int c = slab + x + side * n;
      if (c < rows.head_dim) to[c] = narrow<T>(out[i][n]);
    }
  }
}

// Block (i, kv_head, slab): dk and dv of 64 keys of one key head, over the query rows at and after them, in order.
template <class T, int Columns>
__global__ void __launch_bounds__(threads) dkv_any_kernel(Any f, Backward<T> b, Heads<T> dk, Heads<T> dv) {
  __shared__ float4 space[2 * depth * (tile + 4) / 4];
  __shared__ float weights[tile * (tile + 1)];
  float* work = reinterpret_cast<float*>(space);
  const Rows& rows = f.rows;
  const Share share = find_share(rows.segments, blockIdx.x,
                                 [&](int s) { return (rows.starts[s + 1] - rows.starts[s] + tile - 1) / tile; });
  if (share.segment < 0) return;
  const int x = threadIdx.x % side, y = threadIdx.x / side, kv_head = blockIdx.y, slab = blockIdx.z * most_columns;
  const int start = rows.starts[share.segment], tokens = rows.starts[share.segment + 1] - start;
  const int first = share.index * tile, count = min(tile, tokens - first);
  const auto row = [&](const Heads<const T>& of, int r) {
    return r < count ? of.at(start + first + r, kv_head, rows.head_dim) : nullptr;
  };
  float s[per][per], dp[per][per], sum_k[per][Columns] = {}, sum_v[per][Columns] = {};
  for (int at = first * rows.group; at < tokens * rows.group; at += tile) {
    const Queries others = queries_at(rows, share.segment, at, kv_head);
    dots<T>(
        s, [&](int r) { return row(b.k, r); }, [&](int r) { return others.row(rows, b.q, r); }, rows.head_dim, work);
    dots<T>(
        dp, [&](int r) { return row(b.v, r); }, [&](int r) { return others.row(rows, b.grad, r); }, rows.head_dim,
        work);
    for (int j = 0; j < per; j++) {
      const RowFacts fact = facts(rows, b, others, per * x + j);
      for (int i = 0; i < per; i++) {
        const int key = first + per * y + i;
        s[i][j] = key <= fact.token && key < tokens ? expf(s[i][j] * f.scale - fact.lse) : 0;
        dp[i][j] = s[i][j] * (dp[i][j] - fact.delta) * f.scale;
      }
    }
    keep(weights, s);
    add_rows<T>(
        sum_v, weights, [&](int r) { return others.row(rows, b.grad, r); }, others.count, slab, rows.head_dim);
    keep(weights, dp);
    add_rows<T>(
        sum_k, weights, [&](int r) { return others.row(rows, b.q, r); }, others.count, slab, rows.head_dim);
  }
  for (int i = 0; i < per; i++) {
    const int r = per * y + i;
    if (r >= count) continue;
    for (int n = 0; n < Columns; n++) {
      const int c = slab + x + side * n;
      if (c >= rows.head_dim) continue;
      dk.at(start + first + r, kv_head, rows.head_dim)[c] = narrow<T>(sum_k[i][n]);
      dv.at(start + first + r, kv_head, rows.head_dim)[c] = narrow<T>(sum_v[i][n]);
    }
  }
}

// Calls f.operator()<Columns>() with the columns per thread that heads of this size need.
template <class F>
void with_columns(int64_t head_dim, F&& f) {
  if (head_dim <= 4 * side) return f.template operator()<4>();
  f.template operator()<most_columns / side>();
}

// A block per piece of `per_piece` of the tokens * factor rows; each segment may end in a part of a piece.
dim3 grid_for(int64_t tokens, int64_t factor, int64_t per_piece, const Rows& rows) {
  const int64_t pieces = tokens * factor / per_piece + std::min<int64_t>(rows.segments, tokens);
  return {static_cast<unsigned>(pieces), static_cast<unsigned>(rows.kv_heads),
          static_cast<unsigned>(blocks_for(rows.head_dim, most_columns))};
}

Any any_of(const Segments& segments, const AttentionShape& shape) {
  return {rows_of(segments, shape), 1 / sqrtf(static_cast<float>(shape.head_dim))};
}

}  // namespace

void forward_any(Stream& stream, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, const Segments& segments,
                 const KvPages& pages, const AttentionShape& shape) {
  const Any f = any_of(segments, shape);
  const dim3 grid = grid_for(q.rows(), f.rows.group, tile, f.rows);
  dispatch(q.dtype(), [&]<class T>() {
    with_columns(shape.head_dim, [&]<int Columns>() {
      forward_any_kernel<T, Columns><<<grid, threads, 0, stream.queue().stream>>>(
          f, memory_of<T>(k, v, pages), heads_of<const T>(q), heads_of<T>(o), heads_of<float>(lse));
    });
  });
}

void backward_any(Stream& stream, Tensor dq, Tensor dk, Tensor dv, Tensor do_, Tensor q, Tensor k, Tensor v, Tensor lse,
                  const float* delta, const Segments& segments, const AttentionShape& shape) {
  const Any f = any_of(segments, shape);
  const dim3 for_queries = grid_for(q.rows(), f.rows.group, tile, f.rows),
             for_keys = grid_for(q.rows(), 1, tile, f.rows);
  dispatch(q.dtype(), [&]<class T>() {
    const Backward<T> b{heads_of<const T>(q),   heads_of<const T>(k),       heads_of<const T>(v),
                        heads_of<const T>(do_), heads_of<const float>(lse), delta};
    with_columns(shape.head_dim, [&]<int Columns>() {
      dq_any_kernel<T, Columns><<<for_queries, threads, 0, stream.queue().stream>>>(f, b, heads_of<T>(dq));
      dkv_any_kernel<T, Columns>
          <<<for_keys, threads, 0, stream.queue().stream>>>(f, b, heads_of<T>(dk), heads_of<T>(dv));
    });
  });
}

}  // namespace furlong::cuda::attn
