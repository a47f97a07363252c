#include "ops/cpu/rows.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// The k largest of n logits, falling, ties to the lower index. Groups in which nothing beats the k-th are passed over.
template <class S>
void top_k(const S* logits, int64_t n, int32_t* ids, int64_t k) {
  constexpr int64_t group = 16;
  int64_t count = 0;
  for (int64_t g = 0; g < n; g += group) {
    const int64_t end = std::min(n, g + group);
    if (count == k && end - g == group) {
      S largest[group / 2];
      for (int64_t i = 0; i < group / 2; i++) largest[i] = std::max(logits[g + i], logits[g + group / 2 + i]);
      for (int64_t half = group / 4; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; i++) largest[i] = std::max(largest[i], largest[i + half]);
      }
      if (!(largest[0] > logits[ids[k - 1]])) continue;
    }
    for (int64_t e = g; e < end; e++) {
      const S x = logits[e];
      if (count == k && !(x > logits[ids[k - 1]])) continue;
      int64_t at = count < k ? count++ : k - 1;
      for (; at > 0 && x > logits[ids[at - 1]]; at--) ids[at] = ids[at - 1];
      ids[at] = static_cast<int32_t>(e);
    }
  }
}

}  // namespace

void route(Stream& stream, const Routing& routing, Tensor logits) {
  dispatch(logits.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = logits.dim(1), k = routing.ids.dim(1);
    int32_t* ids = routing.ids.as<int32_t>();
    S* weights = routing.weights.as<S>();
    const S* l = logits.as<S>();
    blocks(stream, logits.rows(), 2 * n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const S* row = l + t * logits.row_stride();
        int32_t* id = ids + t * k;
        S* weight = weights + t * k;
        top_k(row, n, id, k);
        S sum = 0;
        for (int64_t c = 0; c < k; c++) sum += weight[c] = exp_fast(row[id[c]] - row[id[0]]);
        for (int64_t c = 0; c < k; c++) weight[c] /= sum;
      }
    });
  });
}

// A counting sort over (token, choice) in order.
void sort_by_expert(Stream&, const Routing& routing, int64_t first, int64_t all) {
  const int64_t experts = routing.offsets.rows() - 1, k = routing.ids.dim(1), choices = routing.ids.numel();
  const int32_t* ids = routing.ids.as<int32_t>();
  int32_t *offsets = routing.offsets.as<int32_t>(), *row_of = routing.row_of.as<int32_t>();
  int32_t* token_of = routing.token_of.as<int32_t>();
  std::fill_n(offsets, experts + 1, 0);
  for (int64_t i = 0; i < choices; i++) {
    CHECK(ids[i] >= 0 && ids[i] < all, "expert {} of {}", ids[i], all);
    if (ids[i] >= first && ids[i] < first + experts) offsets[ids[i] - first + 1]++;
  }
  for (int64_t e = 0; e < experts; e++) offsets[e + 1] += offsets[e];
  std::vector<int32_t> next(offsets, offsets + experts);
  std::fill(token_of + offsets[experts], token_of + routing.token_of.numel(), -1);
  for (int64_t i = 0; i < choices; i++) {
    row_of[i] = -1;
    if (ids[i] < first || ids[i] >= first + experts) continue;
    row_of[i] = next[static_cast<size_t>(ids[i] - first)]++;
    token_of[row_of[i]] = static_cast<int32_t>(i / k);
  }
}

void route_backward(Stream& stream, Tensor dlogits, Tensor dweights, const Routing& routing) {
  dispatch(dlogits.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = dlogits.dim(1), k = routing.ids.dim(1);
    const int32_t* ids = routing.ids.as<int32_t>();
    const S *p = routing.weights.as<S>(), *dp = dweights.as<S>();
    blocks(stream, dlogits.rows(), n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        S* row = dlogits.as<S>() + t * dlogits.row_stride();
        std::fill_n(row, n, S(0));
        S mean = 0;
        for (int64_t c = 0; c < k; c++) mean += p[t * k + c] * dp[t * k + c];
        for (int64_t c = 0; c < k; c++) row[ids[t * k + c]] = p[t * k + c] * (dp[t * k + c] - mean);
      }
    });
  });
}

void gather_rows(Stream& stream, Tensor rows, Tensor x, const Routing& routing) {
  dispatch(x.dtype(), [&]<class T>() {
    const int64_t n = x.dim(1);
    const int32_t* token_of = routing.token_of.as<int32_t>();
    const T* in = x.as<T>();
    T* out = rows.as<T>();
    blocks(stream, rows.rows(), n, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        if (token_of[r] < 0) continue;
        std::copy_n(in + token_of[r] * x.row_stride(), n, out + r * rows.row_stride());
      }
    });
  });
}

void gather_rows_backward(Stream& stream, Tensor dx, Tensor drows, const Routing& routing) {
  dispatch(dx.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = dx.dim(1), k = routing.ids.dim(1);
    const int32_t* row_of = routing.row_of.as<int32_t>();
    const T* in = drows.as<T>();
    T* out = dx.as<T>();
    blocks(stream, dx.rows(), (k + 1) * n, [&](int64_t begin, int64_t end) {
      S sum[column_tile];
      for (int64_t t = begin; t < end; t++) {
        for (int64_t c0 = 0; c0 < n; c0 += column_tile) {
          const int64_t width = std::min(column_tile, n - c0);
          std::fill_n(sum, width, S(0));
          for (int64_t c = 0; c < k; c++) {
            if (row_of[t * k + c] < 0) continue;
            const T* row = in + row_of[t * k + c] * drows.row_stride() + c0;
            for (int64_t i = 0; i < width; i++) sum[i] += widen(row[i]);
          }
          T* to = out + t * dx.row_stride() + c0;
          for (int64_t i = 0; i < width; i++) to[i] = narrow<T>(widen(to[i]) + sum[i]);
        }
      }
    });
  });
}

void route_rows(Stream& stream, const Routing& routing, Tensor rows, Tensor x, Tensor logits) {
  FURLONG_ISA::route(stream, routing, logits);
  FURLONG_ISA::sort_by_expert(stream, routing, 0, routing.offsets.rows() - 1);
  FURLONG_ISA::gather_rows(stream, rows, x, routing);
}

void combine(Stream& stream, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual,
             const Routing& routing) {
  dispatch(y.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = y.dim(1), k = routing.ids.dim(1);
    const int32_t* row_of = routing.row_of.as<int32_t>();
    const S* weights = routing.weights.as<S>();
    const T *in = rows.as<T>(), *sh = shared.defined() ? shared.as<T>() : nullptr;
    T* out = y.as<T>();
    blocks(stream, y.rows(), (k + 2) * n, [&](int64_t begin, int64_t end) {
      S sum[column_tile];
      for (int64_t t = begin; t < end; t++) {
        const S gate = sh == nullptr ? S(0) : sigmoid(read_at<S>(shared_logit, t * shared_logit.row_stride()));
        for (int64_t c0 = 0; c0 < n; c0 += column_tile) {
          const int64_t width = std::min(column_tile, n - c0);
          std::fill_n(sum, width, S(0));
          for (int64_t c = 0; c < k; c++) {
            if (row_of[t * k + c] < 0) continue;
            const S weight = weights[t * k + c];
            const T* row = in + row_of[t * k + c] * rows.row_stride() + c0;
            for (int64_t i = 0; i < width; i++) sum[i] = mul_add(weight, static_cast<S>(widen(row[i])), sum[i]);
          }
          T* to = out + t * y.row_stride() + c0;
          if (sh == nullptr) {
            for (int64_t i = 0; i < width; i++) to[i] = narrow<T>(sum[i]);
            continue;
          }
          const T* from = sh + t * shared.row_stride() + c0;
          for (int64_t i = 0; i < width; i++) to[i] = narrow<T>(mul_add(gate, static_cast<S>(widen(from[i])), sum[i]));
        }
      }
    });
  });
  if (residual.defined()) FURLONG_ISA::add(stream, y, residual);
}

void combine_norm(Stream& stream, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual,
                  const Routing& routing, const NormAfter& after) {
  FURLONG_ISA::combine(stream, y, rows, shared, shared_logit, residual, routing);
  FURLONG_ISA::rms_norm(stream, after.y, after.r, y, after.w, after.eps);
}

void combine_backward(Stream& stream, Tensor dshared, Tensor dshared_logit, Tensor dy, Tensor shared,
                      Tensor shared_logit) {
  dispatch(dy.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = dy.dim(1);
    blocks(stream, dy.rows(), 3 * n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const T *d = dy.as<T>() + t * dy.row_stride(), *sh = shared.as<T>() + t * shared.row_stride();
        T* out = dshared.as<T>() + t * dshared.row_stride();
        const S gate = sigmoid(read_at<S>(shared_logit, t * shared_logit.row_stride()));
        write_at<S>(dshared_logit, t * dshared_logit.row_stride(), dot(d, sh, n) * gate * (S(1) - gate));
        for (int64_t i = 0; i < n; i++) out[i] = narrow<T>(gate * widen(d[i]));
      }
    });
  });
}

void routing_weight_gradient(Stream& stream, Tensor dweights, Tensor da, Tensor a, const Routing& routing) {
  dispatch(a.dtype(), [&]<class T>() {
    const int64_t n = a.dim(1);
    const int32_t* row_of = routing.row_of.as<int32_t>();
    Acc<T>* out = dweights.as<Acc<T>>();
    blocks(stream, dweights.numel(), n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        out[i] = row_of[i] < 0
                     ? Acc<T>(0)
                     : dot(da.as<T>() + row_of[i] * da.row_stride(), a.as<T>() + row_of[i] * a.row_stride(), n);
      }
    });
  });
}

void scale_rows(Stream& stream, Tensor rows, const Routing& routing) {
  dispatch(rows.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = rows.dim(1);
    const int32_t* row_of = routing.row_of.as<int32_t>();
    const S* weights = routing.weights.as<S>();
    blocks(stream, routing.row_of.numel(), n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        if (row_of[i] < 0) continue;
        T* row = rows.as<T>() + row_of[i] * rows.row_stride();
        const S weight = weights[i];
        for (int64_t j = 0; j < n; j++) row[j] = narrow<T>(widen(row[j]) * weight);
      }
    });
  });
}

void route_to_ranks(Stream&, Tensor row_of, Tensor weights) {
  dispatch(weights.dtype(), [&]<class T>() {
    const int64_t tokens = row_of.rows(), ranks = row_of.dim(1);
    int32_t* rows = row_of.as<int32_t>();
    for (int64_t i = 0; i < tokens * ranks; i++) rows[i] = static_cast<int32_t>(i % ranks * tokens + i / ranks);
    std::fill_n(weights.as<T>(), tokens * ranks, narrow<T>(Acc<T>(1)));
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
