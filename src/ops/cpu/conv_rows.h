// The causal convolution and its SiLU over rows of a batch, for the ops that contain it.
#pragma once
#include "ops/cpu/rows.h"
#include "ops/cpu/scratch.h"

namespace furlong::cpu::FURLONG_ISA {

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

// y (T,C) = silu(causal convolution of x (T,C)), channel by channel (conv.h); w (C,1,taps). Inputs before a segment
// come from its slot's window, where slots are defined. All are borrowed.
template <class T>
class ConvRows {
 public:
  using S = Acc<T>;
  ConvRows(const Tensor& y, const Tensor& x, const Tensor& w, const Segments& segments, const DeltaSlots& slots)
      : y_(y),
        x_(x),
        slots_(slots),
        taps_(w.dim(2)),
        count_(segments.count()),
        starts_(segments.starts.as<int32_t>()),
        positions_(segments.positions.as<int32_t>()) {}

  // y of the rows [begin, end) at the channels [first, last), whose weights are by_tap's.
  void run(int64_t begin, int64_t end, int64_t first, int64_t last, const S* weights) const {
    const T** input = scratch<const T*, Scratch::inputs>(taps_);
    S sum[column_tile];
    int64_t s = std::upper_bound(starts_, starts_ + count_ + 1, begin) - starts_ - 1;
    for (int64_t t = begin; t < end; t++) {
      while (t >= starts_[s + 1]) s++;
      for (int64_t i = 0; i < taps_; i++) input[i] = before(s, t, taps_ - 1 - i);
      for (int64_t c0 = first; c0 < last; c0 += column_tile) {
        const int64_t n = std::min(column_tile, last - c0);
        taps_sum<T>(sum, input, weights + (c0 - first), taps_, last - first, c0, n);
        T* yt = y_.as<T>() + t * y_.row_stride() + c0;
        for (int64_t c = 0; c < n; c++) yt[c] = narrow<T>(silu(sum[c]));
      }
    }
  }

  // Keeps the last inputs of the segments [begin, end) at those channels for the rows to come.
  void keep(int64_t begin, int64_t end, int64_t first, int64_t last) const {
    const int64_t entries = slots_.window.dim(1);
    for (int64_t s = begin; s < end; s++) {
      for (int64_t t = std::max<int64_t>(starts_[s], starts_[s + 1] - entries); t < starts_[s + 1]; t++) {
        std::copy_n(x_.as<T>() + t * x_.row_stride() + first, last - first, window(s, positions_[t]) + first);
      }
    }
  }

 private:
  T* window(int64_t segment, int64_t position) const {
    const int64_t slot = slots_.slots.as<int32_t>()[segment], entries = slots_.window.dim(1),
                  channels = slots_.window.dim(2);
    return slots_.window.as<T>() + slot * slots_.window.row_stride() + position % entries * channels;
  }
  // The input `back` rows before row t of a segment: in x, in a slot's window, or null before a sequence's start.
  const T* before(int64_t segment, int64_t t, int64_t back) const {
    const int64_t row = t - back;
    if (row >= starts_[segment]) return x_.as<T>() + row * x_.row_stride();
    if (!slots_.defined()) return nullptr;
    const int64_t position = positions_[t] - back;
    return position < 0 ? nullptr : window(segment, position);
  }

  const Tensor &y_, &x_;
  const DeltaSlots& slots_;
  int64_t taps_, count_;
  const int32_t *starts_, *positions_;
};

}  // namespace furlong::cpu::FURLONG_ISA
