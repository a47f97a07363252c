#include "ops/cpu/conv_rows.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

constexpr int64_t few_rows = 256;

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
    const int64_t rows = x.rows(), channels = x.dim(1), taps = w.dim(2), count = segments.count();
    const ConvRows<T> conv(y, x, w, segments, slots);
    const auto part = [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
      conv.run(begin, end, first, last, by_tap<T>(w, first, last - first));
    };
    // Few rows are left whole, so that what comes before and after them is a part of the task.
    if (rows < few_rows) {
      const auto of_channels = [&](int64_t first, int64_t last) {
        part(0, rows, first, last);
        if (slots.defined()) conv.keep(0, count, first, last);
      };
      blocks(stream, channels, (taps + 8) * rows, of_channels, column_tile);
    } else {
      blocks(stream, rows, (taps + 8) * channels, [&](int64_t begin, int64_t end) { part(begin, end, 0, channels); });
      if (slots.defined()) conv.keep(0, count, 0, channels);
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
