#include "ops/swiglu.h"

#include "ops/front.h"

namespace furlong {
namespace {

void check(const char* op, const Tensor& y, const Tensor& gate_up) {
  front::expect(y.rank() == 2 && gate_up.rank() == 2 && y.rows() == gate_up.rows() && gate_up.dim(1) == 2 * y.dim(1) &&
                    y.dtype() == gate_up.dtype(),
                op, "y (T,F), gate_up (T,2F) of one dtype wanted", {y, gate_up});
}

}  // namespace

void swiglu(Stream& stream, Tensor y, Tensor gate_up) {
  check("swiglu", y, gate_up);
  if (front::skip(stream, y)) return;
  front::body(y).swiglu(stream, y, gate_up);
}

void swiglu_backward(Stream& stream, Tensor dgate_up, Tensor dy, Tensor gate_up) {
  check("swiglu_backward", dy, gate_up);
  check("swiglu_backward", dy, dgate_up);
  if (front::skip(stream, dy)) return;
  front::body(dy).swiglu_backward(stream, dgate_up, dy, gate_up);
}

}  // namespace furlong
