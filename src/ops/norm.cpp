#include "ops/norm.h"

#include "ops/front.h"

namespace furlong {
namespace {

void check_rows(const char* op, const Tensor& x, const Tensor& w, const Tensor& r) {
  front::expect(x.rank() == 2 && w.rank() == 1 && w.rows() == x.dim(1) && r.numel() == x.rows() && r.contiguous() &&
                    r.dtype() == front::acc(x.dtype()),
                op, "rows (T,C), w (C), r (T) in fp32 wanted", {x, w, r});
}

void check_like(const char* op, const Tensor& x, std::initializer_list<Tensor> others) {
  for (const auto& t : others) {
    front::expect(t.same_shape(x) && t.dtype() == x.dtype(), op, "rows of one shape and dtype wanted", {x, t});
  }
}

void check_dw(const char* op, const Tensor& dw, const Tensor& w, const Tensor& x) {
  front::expect(dw.same_shape(w) && dw.dtype() == front::acc(x.dtype()), op, "dw as w, in fp32, wanted", {dw, w});
}

}  // namespace

void rms_norm(Stream& stream, Tensor y, Tensor r, Tensor x, Tensor w, double eps) {
  check_rows("rms_norm", x, w, r);
  check_like("rms_norm", x, {y});
  if (front::skip(stream, y)) return;
  front::body(x).rms_norm(stream, y, r, x, w, eps);
}

void add_rms_norm(Stream& stream, Tensor y, Tensor r, Tensor x, Tensor d, Tensor w, double eps) {
  check_rows("add_rms_norm", x, w, r);
  check_like("add_rms_norm", x, {y, d});
  if (front::skip(stream, y)) return;
  front::body(x).add_rms_norm(stream, y, r, x, d, w, eps);
}

void rms_norm_backward(Stream& stream, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r) {
  check_rows("rms_norm_backward", x, w, r);
  check_like("rms_norm_backward", x, {dx, dy});
  check_dw("rms_norm_backward", dw, w, x);
  if (front::skip(stream, dx)) return;
  front::body(x).rms_norm_backward(stream, dx, dw, dy, x, w, r);
}

void gated_rms_norm(Stream& stream, Tensor y, Tensor r, Tensor o, Tensor z, Tensor w, double eps) {
  check_rows("gated_rms_norm", o, w, r);
  check_like("gated_rms_norm", o, {y, z});
  if (front::skip(stream, y)) return;
  front::body(o).gated_rms_norm(stream, y, r, o, z, w, eps);
}

void gated_rms_norm_backward(Stream& stream, Tensor do_, Tensor dz, Tensor dw, Tensor dy, Tensor o, Tensor z, Tensor w,
                             Tensor r) {
  check_rows("gated_rms_norm_backward", o, w, r);
  check_like("gated_rms_norm_backward", o, {do_, dz, dy, z});
  check_dw("gated_rms_norm_backward", dw, w, o);
  if (front::skip(stream, do_)) return;
  front::body(o).gated_rms_norm_backward(stream, do_, dz, dw, dy, o, z, w, r);
}

}  // namespace furlong
