// Tensors filled from doubles, and an op with its operands that can be run through any table of bodies and any dtype.
#pragma once
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "ops/table.h"
#include "tensor/buffer.h"

namespace furlong::test {

using Values = std::vector<double>;
using Shape = std::vector<int64_t>;

int64_t count(const Shape& shape);
double largest(const Values& values);

// A source of random doubles with a fixed seed.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  double uniform(double low, double high);
  Values normal(int64_t n, double scale = 1);
  Values uniform(int64_t n, double low, double high);
  std::vector<int32_t> integers(int64_t n, int32_t end);

 private:
  std::mt19937 engine_;
};

// A tensor with its own memory. A rank-2 array may lie in wider rows: `pad` numbers of other data between them.
class Array {
 public:
  Array(DType dtype, const Shape& shape, const Values& values = {}, int64_t pad = 0);
  static Array indices(const std::vector<int32_t>& values, Shape shape = {});

  operator Tensor() const { return view_; }
  const Tensor& view() const { return view_; }
  Values values() const;
  void set(const Values& values);
  // The bits of every number, rows in order.
  std::vector<uint8_t> bits() const;

 private:
  Buffer buffer_;
  Tensor view_;
};

Values round_to(DType dtype, Values values);
// Bits of a tensor's numbers, rows in order.
std::vector<uint8_t> bits_of(const Tensor& t);

// Packed sequences from position 0, or from the given first positions.
struct Packed {
  explicit Packed(const std::vector<int32_t>& lengths, const std::vector<int32_t>& first = {});
  Array starts, positions;
  int64_t rows = 0;
  operator Segments() const { return {starts, positions}; }
};

// What an operand is kept in: the model's dtype, the accumulator's, float64 always, or int32.
enum class Kind { model, sum, exact, index };

struct Operand {
  std::string name;
  Shape shape;
  Kind kind = Kind::model;
  Values values;      // empty: an output
  bool out = false;   // compared
  int64_t terms = 0;  // numbers summed into one entry of an output
  int64_t pad = 0;
  double summands = 0;  // the size of the numbers summed, where they cancel and the result does not show it
  bool by_row = false;  // its first dimension runs over the rows of the batch
};

// An op and its operands. run gets the tensors in the order in which the operands were added.
struct OpCase {
  std::string name;
  std::vector<Operand> operands;
  std::function<void(const OpTable&, Stream&, const std::vector<Tensor>&)> run;
  // Roundings to bf16 inside the op, in halves of its spacing relative to the result's size, that a body on tensor
  // cores may add in bf16.
  double inner_roundings = 0;

  int in(const std::string& name, const Shape& shape, const Values& values, Kind kind = Kind::model);
  int index(const std::string& name, const Shape& shape, const std::vector<int32_t>& values);
  int out(const std::string& name, const Shape& shape, int64_t terms, Kind kind = Kind::model);
  // An output that holds `values` before.
  int inout(const std::string& name, const Shape& shape, const Values& values, int64_t terms, Kind kind = Kind::model);
};

DType accumulator(DType dtype);
DType dtype_of_kind(Kind kind, DType dtype);
// The operands as arrays for a model of this dtype; their values are those that `rounded` can hold.
std::vector<Array> materialise(const OpCase& c, DType dtype, DType rounded);
std::vector<Tensor> views(const std::vector<Array>& arrays);

// Gradients by central differences: d f / d x_i by the five-point rule, f smooth, in float64.
Values numeric_gradient(const Values& x, const std::function<double(const Values&)>& f);
// Fails the running test unless the two agree to the error of the five-point rule.
void expect_gradient(const std::string& what, const Values& analytic, const Values& numeric);

double inner(const Values& a, const Values& b);

}  // namespace furlong::test
