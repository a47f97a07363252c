#include "ops/cpu/rows.h"
#include "ops/cpu/scratch.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

constexpr int64_t few_rows = 256;

// Taps as rows of n channels from `first`, in Acc<T>, in the thread's scratch memory.
template <class T>
Acc<T>* by_tap(const Tensor& w, int64_t first, int64_t n) {
  const int64_t taps = w.dim(2);
  Acc<T>* out = scratch<Acc<T>, Scratch::taps>(taps * n);
  const T* from = w.as<T>() + first * taps;
  for (int64_t c = 0; c < n; c++) {
    for (int64_t i = 0; i < taps; i++) out[i * n + c] = widen(from[c * taps + i]);
  }
  return out;
}

// Where the inputs of a batch lie: in x, in a slot's window, or nowhere (before a sequence's start).
template <class T>
struct Inputs {
  const Tensor& x;
  const Segments& segments;
  const DeltaSlots& slots;

  T* window(int64_t segment, int64_t position) const {
    const int64_t slot = slots.slots.as<int32_t>()[segment], entries = slots.window.dim(1),
                  channels = slots.window.dim(2);
    return slots.window.as<T>() + slot * slots.window.row_stride() + position % entries * channels;
  }
  // The input `back` rows before row t of a segment, or null.
  const T* before(int64_t segment, int64_t t, int64_t back) const {
    const int64_t first = segments.starts.as<int32_t>()[segment], row = t - back;
    if (row >= first) return x.as<T>() + row * x.row_stride();
    if (!slots.defined()) return nullptr;
    const int64_t position = segments.positions.as<int32_t>()[t] - back;
    return position < 0 ? nullptr : window(segment, position);
  }
};

// What a row before a sequence's start holds.
template <class T>
constexpr T zeros[column_tile] = {};

// Adds w[i] · input over the taps, from 0 and in rising order of tap, for `n` channels from `first`, at which w is; its
// rows are `stride` apart.
template <class T>
void taps_sum(Acc<T>* sum, const T* const* input, const Acc<T>* w, int64_t taps, int64_t stride, int64_t first,
              int64_t n) {
  const auto at = [&](int64_t i) { return input[i] == nullptr ? zeros<T> : input[i] + first; };
  const auto add = [](const Acc<T>& wc, const T& x, Acc<T> s) { return mul_add(wc, static_cast<Acc<T>>(widen(x)), s); };
  if (taps == 4) {  // the size of the released models, in one pass
    const T *x0 = at(0), *x1 = at(1), *x2 = at(2), *x3 = at(3);
    const Acc<T>*w0 = w, *w1 = w0 + stride, *w2 = w1 + stride, *w3 = w2 + stride;
    for (int64_t c = 0; c < n; c++) {
      sum[c] = add(w3[c], x3[c], add(w2[c], x2[c], add(w1[c], x1[c], add(w0[c], x0[c], Acc<T>(0)))));
    }
    return;
  }
  std::fill_n(sum, n, Acc<T>(0));
  for (int64_t i = 0; i < taps; i++) {
    const T* x = at(i);
    const Acc<T>* wi = w + i * stride;
    for (int64_t c = 0; c < n; c++) sum[c] = add(wi[c], x[c], sum[c]);
  }
}

// Keeps the last inputs of each segment at `n` channels from `first` for the rows to come.
template <class T>
void keep_inputs(const Inputs<T>& in, int64_t first, int64_t n) {
  const int32_t *starts = in.segments.starts.template as<int32_t>(), *at = in.segments.positions.template as<int32_t>();
  const int64_t entries = in.slots.window.dim(1);
  for (int64_t s = 0; s < in.segments.count(); s++) {
    for (int64_t t = std::max<int64_t>(starts[s], starts[s + 1] - entries); t < starts[s + 1]; t++) {
      std::copy_n(in.x.template as<T>() + t * in.x.row_stride() + first, n, in.window(s, at[t]) + first);
    }
  }
}

// Backward of one segment for channels [first, first + n): rows go forward, so that dw is summed in token order; dp,
// the gradient before the SiLU, is kept for the last `taps` rows, and dx of a row is written once the rows it feeds are
// done.
template <class T>
void segment_backward(T* dx, int64_t dx_stride, Acc<T>* dw, const T* dy, int64_t dy_stride, const T* x,
                      int64_t x_stride, const Acc<T>* w, int64_t rows, int64_t taps, int64_t stride, int64_t first,
                      int64_t n) {
  using S = Acc<T>;
  std::vector<S> ring(static_cast<size_t>(taps * n));
  std::vector<const T*> input(static_cast<size_t>(taps));
  const auto dp_of = [&](int64_t t) { return ring.data() + t % taps * n; };
  for (int64_t t = 0; t < rows + taps - 1; t++) {
    if (t < rows) {
      for (int64_t i = 0; i < taps; i++) {
        const int64_t from = t - taps + 1 + i;
        input[static_cast<size_t>(i)] = from < 0 ? nullptr : x + from * x_stride;
      }
      S* dp = dp_of(t);
      taps_sum<T>(dp, input.data(), w, taps, stride, first, n);
      const T* d = dy + t * dy_stride + first;
      for (int64_t c = 0; c < n; c++) {
        const S p = dp[c], s = sigmoid(p);
        dp[c] = widen(d[c]) * s * (S(1) + p * (S(1) - s));
      }
      for (int64_t i = 0; i < taps; i++) {
        if (input[static_cast<size_t>(i)] == nullptr) continue;
        const T* xi = input[static_cast<size_t>(i)] + first;
        S* dwi = dw + i * n;
        for (int64_t c = 0; c < n; c++) dwi[c] = mul_add(dp[c], static_cast<S>(widen(xi[c])), dwi[c]);
      }
    }
    const int64_t done = t - taps + 1;  // feeds the rows up to t
    if (done < 0) continue;
    S sum[column_tile] = {};
    for (int64_t i = taps - 1; i >= 0; i--) {
      const int64_t fed = done + taps - 1 - i;
      if (fed >= rows) break;
      const S *dp = dp_of(fed), *wi = w + i * stride;
      for (int64_t c = 0; c < n; c++) sum[c] = mul_add(wi[c], dp[c], sum[c]);
    }
    T* out = dx + done * dx_stride + first;
    for (int64_t c = 0; c < n; c++) out[c] = narrow<T>(sum[c]);
  }
}

}  // namespace

void conv_silu(Stream& stream, Tensor y, Tensor x, Tensor w, const Segments& segments, const DeltaSlots& slots) {
  dispatch(x.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t rows = x.rows(), channels = x.dim(1), taps = w.dim(2);
    const Inputs<T> in{x, segments, slots};
    const int32_t* starts = segments.starts.as<int32_t>();
    T* out = y.as<T>();
    const auto part = [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
      const S* weights = by_tap<T>(w, first, last - first);
      std::vector<const T*> input(static_cast<size_t>(taps));
      S sum[column_tile];
      int64_t s = std::upper_bound(starts, starts + segments.count() + 1, begin) - starts - 1;
      for (int64_t t = begin; t < end; t++) {
        while (t >= starts[s + 1]) s++;
        for (int64_t i = 0; i < taps; i++) input[static_cast<size_t>(i)] = in.before(s, t, taps - 1 - i);
        for (int64_t c0 = first; c0 < last; c0 += column_tile) {
          const int64_t n = std::min(column_tile, last - c0);
          taps_sum<T>(sum, input.data(), weights + (c0 - first), taps, last - first, c0, n);
          T* yt = out + t * y.row_stride() + c0;
          for (int64_t c = 0; c < n; c++) yt[c] = narrow<T>(silu(sum[c]));
        }
      }
    };
    // Few rows are left whole, so that what comes before and after them is a part of the task.
    if (rows < few_rows) {
      const auto of_channels = [&](int64_t first, int64_t last) {
        part(0, rows, first, last);
        if (slots.defined()) keep_inputs(in, first, last - first);
      };
      blocks(stream, channels, (taps + 8) * rows, of_channels, column_tile);
    } else {
      blocks(stream, rows, (taps + 8) * channels, [&](int64_t begin, int64_t end) { part(begin, end, 0, channels); });
      if (slots.defined()) keep_inputs(in, 0, channels);
    }
  });
}

void conv_silu_backward(Stream& stream, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, const Segments& segments) {
  dispatch(x.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t channels = x.dim(1), taps = w.dim(2);
    const int32_t* starts = segments.starts.as<int32_t>();
    S* dwp = dw.as<S>();
    column_blocks(stream, channels, 20 * x.rows(), [&](int64_t begin, int64_t end) {
      std::vector<S> sums(static_cast<size_t>(taps * column_tile));
      for (int64_t c0 = begin; c0 < end; c0 += column_tile) {
        const int64_t n = std::min(column_tile, end - c0);
        const S* weights = by_tap<T>(w, c0, n);
        const auto entry = [&](int64_t i, int64_t c) -> S& { return dwp[(c0 + c) * taps + i]; };
        for (int64_t i = 0; i < taps; i++) {
          for (int64_t c = 0; c < n; c++) sums[static_cast<size_t>(i * n + c)] = entry(i, c);
        }
        for (int64_t s = 0; s < segments.count(); s++) {
          const int64_t r = starts[s];
          segment_backward<T>(dx.as<T>() + r * dx.row_stride(), dx.row_stride(), sums.data(),
                              dy.as<T>() + r * dy.row_stride(), dy.row_stride(), x.as<T>() + r * x.row_stride(),
                              x.row_stride(), weights, starts[s + 1] - r, taps, n, c0, n);
        }
        for (int64_t i = 0; i < taps; i++) {
          for (int64_t c = 0; c < n; c++) entry(i, c) = sums[static_cast<size_t>(i * n + c)];
        }
      }
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
