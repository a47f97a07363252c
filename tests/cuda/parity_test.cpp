// The CUDA bodies against the float64 bodies of the CPU, over the same table of cases, and against themselves.
#include <gtest/gtest.h>

#include "../ops/cases.h"
#include "../ops/tolerance.h"
#include "device_array.h"

namespace furlong::test {
namespace {

const OpTable& reference() { return *cpu::all_ops().back(); }

class CudaParity : public ::testing::TestWithParam<OpCase> {
 protected:
  static void SetUpTestSuite() { cuda::open(); }
};

void compare(const OpCase& c, DType dtype) {
  ThreadPool threads(2);
  Stream host(threads), stream(threads, Device::cuda);
  const auto expected = materialise(c, DType::f64, dtype), got = materialise(c, dtype, dtype);
  c.run(reference(), host, views(expected));
  const auto device = upload(stream, got);
  c.run(cuda::ops(), stream, views(device));
  fetch(stream, device);
  for (size_t i = 0; i < c.operands.size(); i++) {
    const Operand& operand = c.operands[i];
    if (!operand.out) continue;
    const Values a = expected[i].values(), b = got[i].values();
    const DType storage = dtype_of_kind(operand.kind, dtype);
    const double size = std::max(largest(a), operand.summands);
    double worst = 0;
    size_t where = 0;
    for (size_t j = 0; j < a.size(); j++) {
      double bound = 0;
      if (operand.kind != Kind::index) {
        bound = tolerance(storage, accumulator(dtype), operand.terms, a[j], size);
        // Tensor cores take bf16: what an op forms inside and multiplies again was rounded on the way.
        if (dtype == DType::bf16) bound += c.inner_roundings * 0.5 * epsilon(DType::bf16) * size;
      }
      const double error = std::abs(a[j] - b[j]), excess = error == 0 ? 0 : error / bound;
      if (!(excess <= worst)) {
        worst = excess;
        where = j;
      }
    }
    EXPECT_LE(worst, 1) << c.name << ", " << name_of(dtype) << ", " << operand.name << "[" << where
                        << "] = " << b[where] << " for " << a[where] << ", size " << size;
  }
}

TEST_P(CudaParity, EqualsDoublePrecision) {
  for (const DType dtype : {DType::f32, DType::bf16}) compare(GetParam(), dtype);
}

std::vector<std::vector<uint8_t>> output_bits(const OpCase& c, DType dtype) {
  ThreadPool threads(1);
  Stream stream(threads, Device::cuda);
  const auto arrays = materialise(c, dtype, dtype);
  const auto device = upload(stream, arrays);
  c.run(cuda::ops(), stream, views(device));
  fetch(stream, device);
  std::vector<std::vector<uint8_t>> bits;
  for (size_t i = 0; i < arrays.size(); i++) {
    if (c.operands[i].out) bits.push_back(arrays[i].bits());
  }
  return bits;
}

TEST_P(CudaParity, RepeatsItsBits) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    EXPECT_EQ(output_bits(GetParam(), dtype), output_bits(GetParam(), dtype)) << name_of(dtype);
  }
}

TEST(CudaFused, OneForSeveralGivesTheirBits) {
  cuda::open();
  for (const auto& [together, apart] : fused_cases()) {
    OpCase other = together;
    other.run = apart;
    for (const DType dtype : {DType::f32, DType::bf16}) {
      EXPECT_EQ(output_bits(together, dtype), output_bits(other, dtype)) << together.name << ", " << name_of(dtype);
    }
  }
}

std::string test_name(const ::testing::TestParamInfo<OpCase>& info) {
  std::string name = fmt::format("{}_{}", info.param.name, info.index);
  for (char& ch : name) {
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Ops, CudaParity, ::testing::ValuesIn(all_cases()), test_name);

}  // namespace
}  // namespace furlong::test
