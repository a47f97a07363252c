// Normalisation of single rows, for the ops that contain it.
#pragma once
#include "ops/cpu/rows.h"

namespace furlong::cpu::FURLONG_ISA {

template <class T>
Acc<T> inverse_rms(const T* x, int64_t n, double eps) {
  using S = Acc<T>;
  return S(1) / std::sqrt(dot(x, x, n) / static_cast<S>(n) + static_cast<S>(eps));
}

// y = o / rms(o) · scale · silu(z); returns 1 / rms(o).
template <class T>
Acc<T> gated_norm_row(T* y, const T* o, const T* z, const Acc<T>* scale, int64_t n, double eps) {
  const Acc<T> r = inverse_rms(o, n, eps);
  for (int64_t i = 0; i < n; i++) y[i] = narrow<T>(widen(o[i]) * r * scale[i] * silu(widen(z[i])));
  return r;
}

}  // namespace furlong::cpu::FURLONG_ISA
