#include "ops/reduce.h"

#include <cstring>

#include "ops/front.h"

namespace furlong {
namespace {

// The table that has bodies for both dtypes.
const cpu::Ops& ops_for(const Tensor& a, const Tensor& b) {
  return cpu::ops(a.dtype() == DType::f64 ? a.dtype() : b.dtype());
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

void set_zero(Stream& stream, Tensor x) {
  if (front::skip(stream, x)) return;
  const int64_t rows = x.contiguous() ? 1 : x.rows();
  const size_t bytes = x.bytes() / static_cast<size_t>(rows);
  const size_t stride = static_cast<size_t>(x.row_stride()) * size_of(x.dtype());
  for (int64_t r = 0; r < rows; r++)
    std::memset(static_cast<char*>(x.data()) + static_cast<size_t>(r) * stride, 0, bytes);
}

double sum_of_squares(Stream& stream, Tensor x) {
  if (front::skip(stream, x)) return 0;
  return cpu::ops(x.dtype()).sum_of_squares(stream, x);
}

bool all_finite(Stream& stream, Tensor x) {
  if (front::skip(stream, x)) return true;
  return cpu::ops(x.dtype()).all_finite(stream, x);
}

}  // namespace furlong
