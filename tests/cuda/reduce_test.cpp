// Sums, tests and fills of whole tensors on the device, and the rows of an embedding's gradient that many tokens share.
#include "ops/reduce.h"

#include <gtest/gtest.h>

#include <cmath>

#include "../ops/tolerance.h"
#include "device_array.h"

namespace furlong::test {
namespace {

class CudaReduce : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { cuda::open(); }
  ThreadPool threads_{1};
  Stream stream_{threads_, Device::cuda};
};

struct Extent {
  int64_t rows, columns, pad;
};
const std::vector<Extent> extents = {{1, 1, 0}, {3, 17, 0}, {5, 64, 3}, {67, 130, 8}, {7, 40000, 0}, {300, 3001, 5}};

TEST_F(CudaReduce, SumOfSquares) {
  Random random(81);
  for (const auto& s : extents) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Array x(dtype, {s.rows, s.columns}, random.normal(s.rows * s.columns), s.pad);
      const Values values = x.values();
      const DeviceArray on_device(stream_, x);
      const double got = cuda::ops().sum_of_squares(stream_, on_device);
      EXPECT_NEAR(got, inner(values, values), 1e-11 * inner(values, values)) << s.rows << "x" << s.columns;
      EXPECT_EQ(cuda::ops().sum_of_squares(stream_, on_device), got);
    }
  }
}

TEST_F(CudaReduce, AllFinite) {
  Random random(82);
  for (const auto& s : extents) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Values values = random.normal(s.rows * s.columns, 1e30);
      const auto finite = [&] {
        const Array x(dtype, {s.rows, s.columns}, values, s.pad);
        return cuda::ops().all_finite(stream_, DeviceArray(stream_, x));
      };
      EXPECT_TRUE(finite());
      for (const double bad : {HUGE_VAL, -HUGE_VAL, static_cast<double>(NAN)}) {
        for (const size_t at : {size_t{0}, values.size() / 2, values.size() - 1}) {
          const double before = values[at];
          values[at] = bad;
          EXPECT_FALSE(finite()) << bad << " at " << at << " of " << s.rows << "x" << s.columns;
          values[at] = before;
        }
      }
    }
  }
}

TEST_F(CudaReduce, SetZeroLeavesWhatLiesBetweenRows) {
  Random random(83);
  for (const auto& s : extents) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::i32}) {
      const Array whole(dtype, {s.rows, s.columns + s.pad + 1},
                        Values(static_cast<size_t>(s.rows * (s.columns + s.pad + 1)), 3));
      const DeviceArray on_device(stream_, whole);
      cuda::ops().set_zero(stream_, on_device.view().columns(0, s.columns));
      on_device.fetch(stream_);
      const Values values = whole.values();
      for (size_t i = 0; i < values.size(); i++) {
        const int64_t column = static_cast<int64_t>(i) % (s.columns + s.pad + 1);
        ASSERT_EQ(values[i], column < s.columns ? 0 : 3) << i;
      }
    }
  }
}

// Tokens that recur hundreds of times, and rows wider than one block takes; sums in token order are those of the CPU.
TEST_F(CudaReduce, EmbeddingGradientInTokenOrder) {
  Random random(84);
  ThreadPool threads(2);
  Stream host(threads);
  for (const auto& [rows, columns, vocabulary] :
       {std::array<int64_t, 3>{3000, 64, 5}, {700, 2100, 40}, {1500, 8, 100000}}) {
    auto tokens = random.integers(rows, static_cast<int32_t>(vocabulary));
    for (size_t i = 0; i < tokens.size(); i += 3) tokens[i] = 1;
    const Array index = Array::indices(tokens), dx(DType::f32, {rows, columns}, random.normal(rows * columns));
    const Values before = random.normal(vocabulary * columns);
    const Array expected(DType::f32, {vocabulary, columns}, before), got(DType::f32, {vocabulary, columns}, before);
    cpu::ops(DType::f32).embed_backward(host, expected, dx, index, 0, expected.view().rows());
    const DeviceArray on_device(stream_, got);
    cuda::ops().embed_backward(stream_, on_device, DeviceArray(stream_, dx), DeviceArray(stream_, index), 0,
                               on_device.view().rows());
    on_device.fetch(stream_);
    EXPECT_EQ(got.bits(), expected.bits()) << rows << " rows of " << columns;
  }
}

// The output gate of attention, whose parity case runs behind attention itself.
TEST_F(CudaReduce, AttentionGate) {
  Random random(85);
  ThreadPool threads(1);
  Stream host(threads);
  for (const auto& [rows, heads, dim] : {std::array<int64_t, 3>{1, 1, 1}, {5, 3, 7}, {33, 4, 64}}) {
    const AttentionShape shape{heads, heads, dim};
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const int64_t n = rows * heads * dim;
      const auto make = [&](DType of) {
        Random values(86);
        std::vector<Array> arrays;
        for (const int64_t wide : {1, 2, 1, 1, 1, 2}) {  // o, x, da; a, do, dx
          arrays.emplace_back(of, Shape{rows, wide * heads * dim}, round_to(dtype, values.normal(wide * n)));
        }
        return arrays;
      };
      const auto expected = make(DType::f64), got = make(dtype);
      const auto run = [&](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.attention_gate(stream, t[3], t[0], t[1], shape);
        ops.attention_gate_backward(stream, t[4], t[5], t[2], t[0], t[1], shape);
      };
      run(cpu::ops(DType::f64), host, views(expected));
      const auto device = upload(stream_, got);
      run(cuda::ops(), stream_, views(device));
      fetch(stream_, device);
      for (size_t i = 3; i < got.size(); i++) {
        const Values a = expected[i].values(), b = got[i].values();
        for (size_t j = 0; j < a.size(); j++) {
          ASSERT_NEAR(a[j], b[j], tolerance(dtype, DType::f32, 1, a[j], largest(a))) << i << " " << j;
        }
      }
    }
  }
}

}  // namespace
}  // namespace furlong::test
