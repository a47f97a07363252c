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

void check_swiglu(const char* op, const Tensor& y, const Tensor& gate_up) {
  front::expect(y.rank() == 2 && gate_up.rank() == 2 && y.rows() == gate_up.rows() && gate_up.dim(1) == 2 * y.dim(1) &&
                    y.dtype() == gate_up.dtype(),
                op, "y (T,F), gate_up (T,2F) of one dtype wanted", {y, gate_up});
}

}  // namespace

void linear(Stream& stream, Tensor y, Tensor x, Tensor w) {
  check_product("linear", y, x, w);
  if (front::skip(stream, y)) return;
  front::body(w).linear(stream, y, x, w);
}

void linear_many(Stream& stream, Tensor x, std::initializer_list<LinearOf> products) {
  for (const auto& p : products) check_product("linear_many", p.y, x, p.w);
  if (front::skip(stream, x)) return;
  front::body(x).linear_many(stream, x, products);
}

void linear_swiglu(Stream& stream, Tensor y, Tensor gate_up, Tensor x, Tensor w_gate, Tensor w_up,
                   std::initializer_list<LinearOf> others) {
  check_swiglu("linear_swiglu", y, gate_up);
  check_product("linear_swiglu", y, x, w_gate);
  check_product("linear_swiglu", y, x, w_up);
  for (const auto& p : others) check_product("linear_swiglu", p.y, x, p.w);
  if (front::skip(stream, x)) return;
  front::body(x).linear_swiglu(stream, y, gate_up, x, w_gate, w_up, others);
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

void grouped_swiglu(Stream& stream, Tensor y, Tensor gate_up, Tensor x, Tensor w, Tensor offsets) {
  check_swiglu("grouped_swiglu", y, gate_up);
  check_grouped("grouped_swiglu", gate_up, x, w, offsets);
  if (front::skip(stream, y)) return;
  front::body(w).grouped_swiglu(stream, y, gate_up, x, w, offsets);
}

void grouped_mlp(Stream& stream, const GroupedMlp& m, Tensor y, Tensor x, Tensor w) {
  check_product("grouped_mlp", y, x, w);
  check_swiglu("grouped_mlp", m.act, m.gate_up);
  check_grouped("grouped_mlp", m.gate_up, m.x, m.w_gate_up, m.offsets);
  check_grouped("grouped_mlp", m.y, m.act, m.w_down, m.offsets);
  if (front::skip(stream, y)) return;
  front::body(m.y).grouped_mlp(stream, m, y, x, w);
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
