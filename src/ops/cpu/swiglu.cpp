#include "ops/cpu/rows.h"

namespace furlong::cpu::FURLONG_ISA {

void swiglu(Stream& stream, Tensor y, Tensor gate_up) {
  dispatch(y.dtype(), [&]<class T>() {
    const int64_t n = y.dim(1);
    const T* in = gate_up.as<T>();
    T* out = y.as<T>();
    blocks(stream, y.rows(), 10 * n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const T *gate = in + t * gate_up.row_stride(), *up = gate + n;
        T* yt = out + t * y.row_stride();
        for (int64_t i = 0; i < n; i++) yt[i] = narrow<T>(silu(widen(gate[i])) * widen(up[i]));
      }
    });
  });
}

void swiglu_backward(Stream& stream, Tensor dgate_up, Tensor dy, Tensor gate_up) {
  dispatch(dy.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = dy.dim(1);
    const T *in = gate_up.as<T>(), *dyp = dy.as<T>();
    T* out = dgate_up.as<T>();
    blocks(stream, dy.rows(), 14 * n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const T *gate = in + t * gate_up.row_stride(), *up = gate + n, *d = dyp + t * dy.row_stride();
        T *dgate = out + t * dgate_up.row_stride(), *dup = dgate + n;
        for (int64_t i = 0; i < n; i++) {
          const S g = widen(gate[i]), di = widen(d[i]), s = sigmoid(g), u = widen(up[i]);
          dgate[i] = narrow<T>(di * u * s * (S(1) + g * (S(1) - s)));
          dup[i] = narrow<T>(di * g * s);
        }
      }
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
