#include "support.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tolerance.h"

namespace furlong::test {

int64_t count(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

double largest(const Values& values) {
  double m = 0;
  for (const double v : values) {
    if (std::isfinite(v)) m = std::max(m, std::abs(v));
  }
  return m;
}

double inner(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); i++) sum += a[i] * b[i];
  return sum;
}

// The standard distributions are not the same in every library; these are.
double Random::uniform(double low, double high) {
  return low + (high - low) * (static_cast<double>(engine_()) + 0.5) / 4294967296.0;
}

Values Random::normal(int64_t n, double scale) {
  Values out(static_cast<size_t>(n));
  for (auto& v : out) {
    const double u = uniform(0, 1), angle = uniform(0, 2 * M_PI);
    v = scale * std::sqrt(-2 * std::log(u)) * std::cos(angle);
  }
  return out;
}

Values Random::uniform(int64_t n, double low, double high) {
  Values out(static_cast<size_t>(n));
  for (auto& v : out) v = uniform(low, high);
  return out;
}

std::vector<int32_t> Random::integers(int64_t n, int32_t end) {
  std::vector<int32_t> out(static_cast<size_t>(n));
  for (auto& v : out) v = static_cast<int32_t>(uniform(0, end));
  return out;
}

namespace {

double read(const Tensor& t, int64_t i) {
  switch (t.dtype()) {
    case DType::f32: return static_cast<double>(t.as<float>()[i]);
    case DType::bf16: return static_cast<double>(static_cast<float>(t.as<bf16>()[i]));
    case DType::f64: return t.as<double>()[i];
    default: return t.as<int32_t>()[i];
  }
}

void write(const Tensor& t, int64_t i, double x) {
  switch (t.dtype()) {
    case DType::f32: t.as<float>()[i] = static_cast<float>(x); break;
    case DType::bf16: t.as<bf16>()[i] = bf16(static_cast<float>(x)); break;
    case DType::f64: t.as<double>()[i] = x; break;
    default: t.as<int32_t>()[i] = static_cast<int32_t>(x);
  }
}

// Where entry i of a possibly strided tensor lies.
int64_t place(const Tensor& t, int64_t i) { return i / t.row_size() * t.row_stride() + i % t.row_size(); }

}  // namespace

Array::Array(DType dtype, const Shape& shape, const Values& values, int64_t pad) {
  Shape full = shape;
  if (pad > 0) full.back() += pad;
  buffer_ = Buffer(static_cast<size_t>(std::max<int64_t>(1, count(full))) * size_of(dtype));
  view_ = Tensor(buffer_.data(), dtype, full.data(), static_cast<int>(full.size()));
  if (pad > 0) {
    CHECK(shape.size() == 2, "only rank 2 is padded");
    for (int64_t i = 0; i < view_.numel(); i++) write(view_, i, 77);
    view_ = view_.columns(0, shape.back());
  }
  if (!values.empty()) set(values);
}

Array Array::indices(const std::vector<int32_t>& values, Shape shape) {
  if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
  return Array(DType::i32, shape, Values(values.begin(), values.end()));
}

Values Array::values() const {
  Values out(static_cast<size_t>(view_.numel()));
  for (int64_t i = 0; i < view_.numel(); i++) out[static_cast<size_t>(i)] = read(view_, place(view_, i));
  return out;
}

void Array::set(const Values& values) {
  CHECK(static_cast<int64_t>(values.size()) == view_.numel(), "{} values for {}", values.size(), view_.describe());
  for (int64_t i = 0; i < view_.numel(); i++) write(view_, place(view_, i), values[static_cast<size_t>(i)]);
}

std::vector<uint8_t> Array::bits() const { return bits_of(view_); }

std::vector<uint8_t> bits_of(const Tensor& t) {
  std::vector<uint8_t> out(t.bytes());
  const size_t row = t.rows() > 0 ? t.bytes() / static_cast<size_t>(t.rows()) : 0;
  for (int64_t r = 0; r < t.rows(); r++)
    std::memcpy(out.data() + static_cast<size_t>(r) * row, t.rows(r, r + 1).data(), row);
  return out;
}

Values round_to(DType dtype, Values values) {
  for (auto& v : values) {
    if (dtype == DType::f32) v = static_cast<double>(static_cast<float>(v));
    if (dtype == DType::bf16) v = static_cast<double>(static_cast<float>(bf16(static_cast<float>(v))));
  }
  return values;
}

namespace {

std::vector<int32_t> starts_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> out{0};
  for (const int32_t n : lengths) out.push_back(out.back() + n);
  return out;
}

std::vector<int32_t> positions_of(const std::vector<int32_t>& lengths, const std::vector<int32_t>& first) {
  std::vector<int32_t> out;
  for (size_t s = 0; s < lengths.size(); s++) {
    for (int32_t i = 0; i < lengths[s]; i++) out.push_back((first.empty() ? 0 : first[s]) + i);
  }
  return out;
}

}  // namespace

Packed::Packed(const std::vector<int32_t>& lengths, const std::vector<int32_t>& first)
    : starts(Array::indices(starts_of(lengths))),
      positions(Array::indices(positions_of(lengths, first))),
      rows(positions.view().rows()) {}

int OpCase::in(const std::string& operand, const Shape& shape, const Values& values, Kind kind) {
  operands.push_back({operand, shape, kind, values});
  return static_cast<int>(operands.size()) - 1;
}

int OpCase::index(const std::string& operand, const Shape& shape, const std::vector<int32_t>& values) {
  return in(operand, shape, Values(values.begin(), values.end()), Kind::index);
}

int OpCase::out(const std::string& operand, const Shape& shape, int64_t terms, Kind kind) {
  return inout(operand, shape, {}, terms, kind);
}

int OpCase::inout(const std::string& operand, const Shape& shape, const Values& values, int64_t terms, Kind kind) {
  operands.push_back({operand, shape, kind, values, true, terms});
  return static_cast<int>(operands.size()) - 1;
}

DType accumulator(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

DType dtype_of_kind(Kind kind, DType dtype) {
  switch (kind) {
    case Kind::model: return dtype;
    case Kind::sum: return accumulator(dtype);
    case Kind::exact: return DType::f64;
    case Kind::index: break;
  }
  return DType::i32;
}

std::vector<Array> materialise(const OpCase& c, DType dtype, DType rounded) {
  std::vector<Array> arrays;
  for (const auto& o : c.operands) {
    arrays.emplace_back(dtype_of_kind(o.kind, dtype), o.shape, round_to(dtype_of_kind(o.kind, rounded), o.values),
                        o.pad);
  }
  return arrays;
}

std::vector<Tensor> views(const std::vector<Array>& arrays) {
  std::vector<Tensor> out;
  for (const auto& a : arrays) out.push_back(a.view());
  return out;
}

namespace {

// The step that balances the two errors of the five-point rule: h^4 / 30 times the fifth derivative, and epsilon / h.
const double gradient_step = std::pow(epsilon(DType::f64), 0.2);

}  // namespace

Values numeric_gradient(const Values& x, const std::function<double(const Values&)>& f) {
  Values at = x, gradient(x.size());
  for (size_t i = 0; i < x.size(); i++) {
    const double h = gradient_step;
    const auto moved = [&](double by) {
      at[i] = x[i] + by;
      return f(at);
    };
    const double near = moved(h) - moved(-h), far = moved(2 * h) - moved(-2 * h);
    at[i] = x[i];
    gradient[i] = (8 * near - far) / (12 * h);
  }
  return gradient;
}

void expect_gradient(const std::string& what, const Values& analytic, const Values& numeric) {
  ASSERT_EQ(analytic.size(), numeric.size()) << what;
  // Fifth derivatives of the ops' functions stay within some hundreds of the gradients themselves.
  const double bound = 300 * std::pow(gradient_step, 4) * (1 + largest(numeric));
  for (size_t i = 0; i < analytic.size(); i++) {
    ASSERT_NEAR(analytic[i], numeric[i], bound) << what << " entry " << i << ", largest " << largest(numeric);
  }
}

}  // namespace furlong::test
