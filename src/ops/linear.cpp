#include "ops/linear.h"

#include "ops/front.h"

namespace furlong {
namespace {

void check_product(const char* op, const Tensor& y, const Tensor& x, const Tensor& w) {
  front::expect(y.rank() == 2 && x.rank() == 2 && w.rank() == 2 && y.rows() == x.rows() && y.dim(1) == w.rows() &&
                    x.dim(1) == w.dim(1) && w.contiguous(),
                op, "y (T,N), x (T,K), w (N,K) wanted", {y, x, w});
}

void check_grouped(const char* op, const Tensor& y, const Tensor& x, const Tensor& w, const Tensor& offsets) {
  front::expect(y.rank() == 2 && x.rank() == 2 && w.rank() == 3 && y.rows() == x.rows() && y.dim(1) == w.dim(1) &&
                    x.dim(1) == w.dim(2) && w.contiguous() && offsets.rows() == w.rows() + 1,
                op, "y (R,N), x (R,K), w (E,N,K), offsets (E+1) wanted", {y, x, w, offsets});
}

}  // namespace

void linear(Stream& stream, Tensor y, Tensor x, Tensor w) {
  check_product("linear", y, x, w);
  if (front::skip(stream, y)) return;
  front::body(w).linear(stream, y, x, w);
}

void linear_dx(Stream& stream, Tensor dx, Tensor dy, Tensor w, bool accumulate) {
  check_product("linear_dx", dy, dx, w);
  if (front::skip(stream, dx)) return;
  front::body(w).linear_dx(stream, dx, dy, w, accumulate);
}

void linear_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x) {
  check_product("linear_dw", dy, x, dw);
  if (front::skip(stream, dy)) return;
  front::body(x).linear_dw(stream, dw, dy, x);
}

void grouped_linear(Stream& stream, Tensor y, Tensor x, Tensor w, Tensor offsets) {
  check_grouped("grouped_linear", y, x, w, offsets);
  if (front::skip(stream, y)) return;
  front::body(w).grouped_linear(stream, y, x, w, offsets);
}

void grouped_linear_dx(Stream& stream, Tensor dx, Tensor dy, Tensor w, Tensor offsets) {
  check_grouped("grouped_linear_dx", dy, dx, w, offsets);
  if (front::skip(stream, dx)) return;
  front::body(w).grouped_linear_dx(stream, dx, dy, w, offsets);
}

void grouped_linear_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x, Tensor offsets) {
  check_grouped("grouped_linear_dw", dy, x, dw, offsets);
  if (front::skip(stream, dy)) return;
  front::body(x).grouped_linear_dw(stream, dw, dy, x, offsets);
}

}  // namespace furlong
