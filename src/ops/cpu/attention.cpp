#include <algorithm>
#include <vector>

#include "ops/cpu/bodies.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/touch.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// Query rows per task, and the scores that one task may hold (a long context shrinks its tile).
constexpr int64_t query_tile = 32, backward_tile = 64;
constexpr int64_t score_budget = 4 << 20;
constexpr int64_t rows_waiting = 16;  // of all heads of a group

struct Tile {
  int32_t segment;
  int64_t begin, end;  // rows of the batch
};

std::vector<Tile> make_tiles(const Segments& segments, int64_t group) {
  std::vector<Tile> tiles;
  const int32_t* starts = segments.starts.as<int32_t>();
  const int32_t* positions = segments.positions.as<int32_t>();
  for (int32_t s = 0; s < segments.count(); s++) {
    for (int64_t t = starts[s]; t < starts[s + 1];) {
      const int64_t context = positions[t] + query_tile;
      const int64_t rows = std::clamp<int64_t>(score_budget / (context * group), 1, query_tile);
      tiles.push_back({s, t, std::min<int64_t>(starts[s + 1], t + rows)});
      t = tiles.back().end;
    }
  }
  return tiles;
}

// Where the keys and values of one segment lie, as runs of consecutive rows.
template <class T>
struct Context {
  const T* k;
  const T* v;
  int64_t stride;        // elements between rows
  int64_t run;           // rows per run; runs are pages, or the whole segment
  const int32_t* table;  // page of each run; null without memory
  const T* key(int64_t r) const { return table == nullptr ? k : k + table[r] * run * stride; }
  const T* value(int64_t r) const { return table == nullptr ? v : v + table[r] * run * stride; }
};

// Turns a row's n scores into weights that sum to 1/inverse: returns the log of the denominator. Entries up to `padded`
// become zero.
template <class S>
S softmax_row(S* s, int64_t n, int64_t padded, S scale, S& inverse) {
  S top = s[0];
  for (int64_t j = 1; j < n; j++) top = s[j] > top ? s[j] : top;
  const S shift = top * scale;
  for (int64_t j = 0; j < n; j++) s[j] = exp_fast(s[j] * scale - shift);
  for (int64_t j = n; j < padded; j++) s[j] = 0;
  Vec<S> sum{};
  int64_t j = 0;
  for (; j + width<S> <= n; j += width<S>) sum = sum + load(s + j);
  if (j < n) sum = sum + load_partial(s + j, n - j);
  const S total = sum_lanes<S>(sum);
  inverse = S(1) / total;
  return shift + std::log(total);
}

template <class T>
void attend(const Tile& tile, int64_t kv_head, const Tensor& o, const Tensor& lse, const Tensor& q,
            const int32_t* positions, const Context<T>& context, const AttentionShape& shape) {
  using S = Acc<T>;
  const int64_t d = shape.head_dim, group = shape.heads / shape.kv_heads, rows = tile.end - tile.begin;
  const int64_t keys = positions[tile.end - 1] + 1, q_stride = q.row_stride();
  const T* queries = q.as<T>() + tile.begin * q_stride + kv_head * group * d;
  // Row (g, t) of the scores is query row t of the group's head g.
  std::vector<S> scores(static_cast<size_t>(group * rows * keys));
  std::vector<S> out(static_cast<size_t>(group * rows * d));
  const auto each_run = [&](auto&& f) {
    for (int64_t r = 0, first = 0; first < keys; r++, first += context.run) {
      f(context.key(r) + kv_head * d, context.value(r) + kv_head * d, first, std::min(context.run, keys - first));
    }
  };
  // Few rows take longer to wait for keys, which are not multiplied in the order in which they lie, than to multiply.
  const bool waits = context.table != nullptr && rows * group <= rows_waiting;
  const auto touch_keys = [&](const T* key, int64_t n) {
    for (int64_t i = 0; waits && i < n; i++) {
      touch(key + i * context.stride, d * static_cast<int64_t>(sizeof(T)));
    }
  };
  if (rows >= group) {
    each_run([&](const T* key, const T*, int64_t first, int64_t n) {
      touch_keys(key, n);
      for (int64_t g = 0; g < group; g++) {
        gemm_nt(rows, n, d, queries + g * d, q_stride, key, context.stride, scores.data() + g * rows * keys + first,
                keys);
      }
    });
  }
  for (int64_t t = 0; rows < group && t < rows; t++) {
    const RowsNt<T, S> of_group(group, d, queries + t * q_stride, d);
    each_run([&](const T* key, const T* value, int64_t first, int64_t n) {
      if (t == 0) touch_keys(key, n);
      of_group.times(n, key, context.stride, scores.data() + t * keys + first, rows * keys,
                     t == 0 && waits && context.stride == d ? value : nullptr);
    });
  }
  const S scale = S(1) / std::sqrt(static_cast<S>(d));
  std::vector<S> inverse(static_cast<size_t>(group * rows));
  for (int64_t g = 0; g < group; g++) {
    for (int64_t t = 0; t < rows; t++) {
      const int64_t i = g * rows + t;
      lse.as<S>()[(tile.begin + t) * shape.heads + kv_head * group + g] = softmax_row(
          scores.data() + i * keys, positions[tile.begin + t] + 1, keys, scale, inverse[static_cast<size_t>(i)]);
    }
  }
  each_run([&](const T*, const T* value, int64_t first, int64_t n) {
    gemm_nn(group * rows, d, n, scores.data() + first, keys, 1, value, context.stride, out.data(), d, first > 0);
  });
  T* result = o.as<T>() + tile.begin * o.row_stride() + kv_head * group * d;
  for (int64_t g = 0; g < group; g++) {
    for (int64_t t = 0; t < rows; t++) {
      const S* from = out.data() + (g * rows + t) * d;
      const S factor = inverse[static_cast<size_t>(g * rows + t)];
      for (int64_t c = 0; c < d; c++) result[t * o.row_stride() + g * d + c] = narrow<T>(from[c] * factor);
    }
  }
}

template <class T>
void write_pages(const Tensor& k, const Tensor& v, const Segments& segments, const KvPages& pages) {
  const int64_t page = pages.k.dim(1), width_ = pages.k.dim(2);
  const int32_t* starts = segments.starts.as<int32_t>();
  for (int64_t s = 0; s < segments.count(); s++) {
    const int32_t* table = pages.table.as<int32_t>() + s * pages.table.row_stride();
    for (int64_t t = starts[s]; t < starts[s + 1]; t++) {
      const int64_t p = segments.positions.as<int32_t>()[t];
      const int64_t at = (table[p / page] * page + p % page) * width_;
      std::copy_n(k.as<T>() + t * k.row_stride(), width_, pages.k.as<T>() + at);
      std::copy_n(v.as<T>() + t * v.row_stride(), width_, pages.v.as<T>() + at);
    }
  }
}

// The gradient of one query head over one segment; dk and dv are sums over the heads of the group.
template <class T>
struct HeadBackward {
  using S = Acc<T>;
  const T *q, *k, *v, *o, *grad;  // rows of the segment at this head
  int64_t q_stride, kv_stride, rows, d, heads;
  const S* lse;
  S scale;
  S *dk, *dv;  // (rows, d)
  T* dq;

  void run() {
    S *const p = scratch<S, Scratch::attention_scores>(2 * backward_tile * rows), *const dp = p + backward_tile * rows;
    for (int64_t t0 = 0; t0 < rows; t0 += backward_tile) {
      const int64_t m = std::min(backward_tile, rows - t0), n = t0 + m;
      gemm_nt(m, n, d, q + t0 * q_stride, q_stride, k, kv_stride, p, n);
      gemm_nt(m, n, d, grad + t0 * q_stride, q_stride, v, kv_stride, dp, n);
      for (int64_t i = 0; i < m; i++) {
        S* pi = p + i * n;
        S* di = dp + i * n;
        const int64_t visible = t0 + i + 1;
        const S delta = dot(grad + (t0 + i) * q_stride, o + (t0 + i) * q_stride, d);
        const S shift = lse[(t0 + i) * heads];
        for (int64_t j = 0; j < visible; j++) pi[j] = exp_fast(pi[j] * scale - shift);
        for (int64_t j = visible; j < n; j++) pi[j] = 0;
        for (int64_t j = 0; j < n; j++) di[j] = pi[j] * (di[j] - delta) * scale;
      }
      gemm_nn(m, d, n, dp, n, 1, k, kv_stride, dq + t0 * q_stride, q_stride);
      gemm_nn(n, d, m, dp, 1, n, q + t0 * q_stride, q_stride, dk, d, true);
      gemm_nn(n, d, m, p, 1, n, grad + t0 * q_stride, q_stride, dv, d, true);
    }
  }
};

}  // namespace

void attention(Stream& stream, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, const Segments& segments,
               const KvPages& pages, const AttentionShape& shape) {
  dispatch(q.dtype(), [&]<class T>() {
    if (pages.defined()) write_pages<T>(k, v, segments, pages);
    const auto tiles = make_tiles(segments, shape.heads / shape.kv_heads);
    const int32_t* positions = segments.positions.as<int32_t>();
    stream.threads().parallel_uneven(static_cast<int64_t>(tiles.size()) * shape.kv_heads, [&](int64_t i) {
      const Tile& tile = tiles[static_cast<size_t>(i / shape.kv_heads)];
      Context<T> context;
      if (pages.defined()) {
        context = {pages.k.as<T>(), pages.v.as<T>(), pages.k.dim(2), pages.k.dim(1),
                   pages.table.as<int32_t>() + tile.segment * pages.table.row_stride()};
      } else {
        const int64_t start = segments.starts.as<int32_t>()[tile.segment];
        CHECK(k.row_stride() == v.row_stride(), "keys and values of different strides");
        context = {k.as<T>() + start * k.row_stride(), v.as<T>() + start * v.row_stride(), k.row_stride(),
                   positions[tile.end - 1] + 1, nullptr};
      }
      attend<T>(tile, i % shape.kv_heads, o, lse, q, positions, context, shape);
    });
  });
}

void attention_backward(Stream& stream, Tensor dq, Tensor dk, Tensor dv, Tensor do_, Tensor q, Tensor k, Tensor v,
                        Tensor o, Tensor lse, const Segments& segments, const AttentionShape& shape) {
  CHECK(q.contiguous() && do_.contiguous() && o.contiguous() && dq.contiguous() && k.row_stride() == v.row_stride(),
        "attention_backward wants contiguous rows");
  dispatch(q.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t d = shape.head_dim, group = shape.heads / shape.kv_heads;
    stream.threads().parallel_uneven(segments.count() * shape.kv_heads, [&](int64_t task) {
      const int64_t s = task / shape.kv_heads, kv_head = task % shape.kv_heads;
      const int64_t start = segments.starts.as<int32_t>()[s], rows = segments.starts.as<int32_t>()[s + 1] - start;
      S *const dk_sum = scratch<S, Scratch::attention_sums>(2 * rows * d), *const dv_sum = dk_sum + rows * d;
      std::fill_n(dk_sum, 2 * rows * d, S(0));
      for (int64_t g = 0; g < group; g++) {
        const int64_t head = kv_head * group + g, at = start * q.row_stride() + head * d;
        HeadBackward<T>{q.as<T>() + at,
                        k.as<T>() + start * k.row_stride() + kv_head * d,
                        v.as<T>() + start * v.row_stride() + kv_head * d,
                        o.as<T>() + at,
                        do_.as<T>() + at,
                        q.row_stride(),
                        k.row_stride(),
                        rows,
                        d,
                        shape.heads,
                        lse.as<S>() + start * shape.heads + head,
                        S(1) / std::sqrt(static_cast<S>(d)),
                        dk_sum,
                        dv_sum,
                        dq.as<T>() + at}
            .run();
      }
      for (int64_t t = 0; t < rows; t++) {
        for (int64_t c = 0; c < d; c++) {
          dk.as<T>()[(start + t) * dk.row_stride() + kv_head * d + c] = narrow<T>(dk_sum[t * d + c]);
          dv.as<T>()[(start + t) * dv.row_stride() + kv_head * d + c] = narrow<T>(dv_sum[t * d + c]);
        }
      }
    });
  });
}

void attention_gate(Stream& stream, Tensor a, Tensor o, Tensor x, const AttentionShape& shape) {
  dispatch(a.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t d = shape.head_dim;
    stream.threads().parallel(a.numel() < serial_work ? 1 : a.rows(), [&](int64_t task) {
      const bool whole = a.numel() < serial_work;
      for (int64_t t = whole ? 0 : task; t < (whole ? a.rows() : task + 1); t++) {
        for (int64_t h = 0; h < shape.heads; h++) {
          const T* gate = x.as<T>() + t * x.row_stride() + (2 * h + 1) * d;
          const T* value = o.as<T>() + t * o.row_stride() + h * d;
          T* out = a.as<T>() + t * a.row_stride() + h * d;
          for (int64_t c = 0; c < d; c++) out[c] = narrow<T>(widen(value[c]) * sigmoid<S>(widen(gate[c])));
        }
      }
    });
  });
}

void attention_gate_backward(Stream& stream, Tensor do_, Tensor dx, Tensor da, Tensor o, Tensor x,
                             const AttentionShape& shape) {
  dispatch(da.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t d = shape.head_dim;
    stream.threads().parallel(da.rows(), [&](int64_t t) {
      for (int64_t h = 0; h < shape.heads; h++) {
        const T* gate = x.as<T>() + t * x.row_stride() + (2 * h + 1) * d;
        const T* value = o.as<T>() + t * o.row_stride() + h * d;
        const T* grad = da.as<T>() + t * da.row_stride() + h * d;
        T* dvalue = do_.as<T>() + t * do_.row_stride() + h * d;
        T* dgate = dx.as<T>() + t * dx.row_stride() + (2 * h + 1) * d;
        for (int64_t c = 0; c < d; c++) {
          const S sg = sigmoid<S>(widen(gate[c])), g = widen(grad[c]);
          dvalue[c] = narrow<T>(g * sg);
          dgate[c] = narrow<T>(g * widen(value[c]) * sg * (S(1) - sg));
        }
      }
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
