#include "ops/cpu/norm_rows.h"

namespace furlong::cpu::FURLONG_ISA {
void rms_norm(Stream& stream, Tensor y, Tensor r, Tensor x, Tensor w, double eps) {
  dispatch(x.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = x.dim(1), x_stride = x.row_stride(), y_stride = y.row_stride();
    const auto scale = widened<S>(w, 1);
    const T* xp = x.as<T>();
    T* yp = y.as<T>();
    S* rp = r.as<S>();
    blocks(stream, x.rows(), 3 * n, [&](int64_t begin, int64_t end) {
      const S* s = scale.data();
      for (int64_t t = begin; t < end; t++) {
        const T* xt = xp + t * x_stride;
        T* yt = yp + t * y_stride;
        const S rt = rp[t] = inverse_rms(xt, n, eps);
        for (int64_t i = 0; i < n; i++) yt[i] = narrow<T>(widen(xt[i]) * rt * s[i]);
      }
    });
  });
}

void add_rms_norm(Stream& stream, Tensor y, Tensor r, Tensor x, Tensor d, Tensor w, double eps) {
  FURLONG_ISA::add(stream, x, d);
  FURLONG_ISA::rms_norm(stream, y, r, x, w, eps);
}

void rms_norm_backward(Stream& stream, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r) {
  dispatch(x.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = x.dim(1), rows = x.rows(), x_stride = x.row_stride(), y_stride = dy.row_stride();
    const auto scale = widened<S>(w, 1);
    const T *xp = x.as<T>(), *dyp = dy.as<T>();
    const S* rp = r.as<S>();
    T* dxp = dx.as<T>();
    blocks(stream, rows, 6 * n, [&](int64_t begin, int64_t end) {
      const S* s = scale.data();
      std::vector<S> scratch(static_cast<size_t>(n));
      S* d = scratch.data();
      for (int64_t t = begin; t < end; t++) {
        const T *xt = xp + t * x_stride, *dyt = dyp + t * y_stride;
        T* dxt = dxp + t * dx.row_stride();
        const S rt = rp[t];
        for (int64_t i = 0; i < n; i++) d[i] = widen(dyt[i]) * s[i];
        const S mean = dot(d, xt, n) * rt / static_cast<S>(n);
        for (int64_t i = 0; i < n; i++) {
          dxt[i] = narrow<T>(widen(dxt[i]) + rt * (d[i] - widen(xt[i]) * rt * mean));
        }
      }
    });
    S* dwp = dw.as<S>();
    column_blocks(stream, n, 2 * rows, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < rows; t++) {
        const T *xt = xp + t * x_stride, *dyt = dyp + t * y_stride;
        for (int64_t i = begin; i < end; i++) dwp[i] = mul_add(widen(dyt[i]), widen(xt[i]) * rp[t], dwp[i]);
      }
    });
  });
}

void gated_rms_norm(Stream& stream, Tensor y, Tensor r, Tensor o, Tensor z, Tensor w, double eps) {
  dispatch(o.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = o.dim(1), o_stride = o.row_stride(), z_stride = z.row_stride(), y_stride = y.row_stride();
    const auto scale = widened<S>(w, 0);
    const T *op = o.as<T>(), *zp = z.as<T>();
    T* yp = y.as<T>();
    S* rp = r.as<S>();
    blocks(stream, o.rows(), 12 * n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        rp[t] = gated_norm_row(yp + t * y_stride, op + t * o_stride, zp + t * z_stride, scale.data(), n, eps);
      }
    });
  });
}

// With x = o r and n = x w: dz = dy n silu'(z), silu'(z) = σ(z)(1 + z(1 - σ(z))); dn = dy silu(z) goes on as in
// rms_norm.
void gated_rms_norm_backward(Stream& stream, Tensor do_, Tensor dz, Tensor dw, Tensor dy, Tensor o, Tensor z, Tensor w,
                             Tensor r) {
  dispatch(o.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = o.dim(1), rows = o.rows(), o_stride = o.row_stride(), z_stride = z.row_stride();
    const int64_t dy_stride = dy.row_stride();
    const auto scale = widened<S>(w, 0);
    const T *op = o.as<T>(), *zp = z.as<T>(), *dyp = dy.as<T>();
    const S* rp = r.as<S>();
    blocks(stream, rows, 20 * n, [&](int64_t begin, int64_t end) {
      const S* s = scale.data();
      std::vector<S> scratch(static_cast<size_t>(n));
      S* d = scratch.data();
      for (int64_t t = begin; t < end; t++) {
        const T *ot = op + t * o_stride, *zt = zp + t * z_stride, *dyt = dyp + t * dy_stride;
        T *dot_ = do_.as<T>() + t * do_.row_stride(), *dzt = dz.as<T>() + t * dz.row_stride();
        const S rt = rp[t];
        for (int64_t i = 0; i < n; i++) {
          const S g = widen(dyt[i]) * s[i], zi = widen(zt[i]), gate = sigmoid(zi);
          d[i] = g * zi * gate;
          dzt[i] = narrow<T>(g * (widen(ot[i]) * rt) * gate * (S(1) + zi * (S(1) - gate)));
        }
        const S mean = dot(d, ot, n) * rt / static_cast<S>(n);
        for (int64_t i = 0; i < n; i++) dot_[i] = narrow<T>(rt * (d[i] - widen(ot[i]) * rt * mean));
      }
    });
    S* dwp = dw.as<S>();
    column_blocks(stream, n, 12 * rows, [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < rows; t++) {
        const T *ot = op + t * o_stride, *zt = zp + t * z_stride, *dyt = dyp + t * dy_stride;
        for (int64_t i = begin; i < end; i++) {
          dwp[i] = mul_add(widen(dyt[i]) * silu(widen(zt[i])), widen(ot[i]) * rp[t], dwp[i]);
        }
      }
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
