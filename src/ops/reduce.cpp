#include "ops/reduce.h"

#include "ops/front.h"

namespace furlong {
namespace {

// The table that has bodies for both dtypes.
const OpTable& ops_for(const Tensor& a, const Tensor& b) {
  return body_of(a.device(), a.dtype() == DType::f64 ? a.dtype() : b.dtype());
}

}  // namespace

void add(Stream& stream, Tensor y, Tensor x) {
  front::expect(y.same_shape(x), "add", "y and x of one shape wanted", {y, x});
  if (front::skip(stream, y)) return;
  ops_for(y, x).add(stream, y, x);
}

void convert(Stream& stream, Tensor y, Tensor x) {
  front::expect(y.rows() == x.rows() && y.row_size() == x.row_size(), "convert", "y and x of one shape wanted", {y, x});
  if (front::skip(stream, y)) return;
  ops_for(y, x).convert(stream, y, x);
}

void scale(Stream& stream, Tensor x, double factor) {
  if (front::skip(stream, x)) return;
  front::body(x).scale(stream, x, factor);
}

void set_zero(Stream& stream, Tensor x) {
  if (front::skip(stream, x)) return;
  front::body(x).set_zero(stream, x);
}

double sum_of_squares(Stream& stream, Tensor x) {
  if (front::skip(stream, x)) return 0;
  return front::body(x).sum_of_squares(stream, x);
}

bool all_finite(Stream& stream, Tensor x) {
  if (front::skip(stream, x)) return true;
  return front::body(x).all_finite(stream, x);
}

}  // namespace furlong
