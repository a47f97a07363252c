// Every table of bodies against the float64 bodies, and against itself on other threads and other batches.
#include <gtest/gtest.h>

#include "cases.h"
#include "tolerance.h"

namespace furlong::test {
namespace {

const OpTable& reference() { return *cpu::all_ops().back(); }

class OpsParity : public ::testing::TestWithParam<const OpTable*> {};

void compare(const OpCase& c, const OpTable& ops, DType dtype) {
  ThreadPool threads(1);
  Stream stream(threads);
  const auto expected = materialise(c, DType::f64, dtype), got = materialise(c, dtype, dtype);
  c.run(reference(), stream, views(expected));
  c.run(ops, stream, views(got));
  for (size_t i = 0; i < c.operands.size(); i++) {
    const Operand& operand = c.operands[i];
    if (!operand.out) continue;
    const Values a = expected[i].values(), b = got[i].values();
    const DType storage = dtype_of_kind(operand.kind, dtype);
    const double size = std::max(largest(a), operand.summands);
    double worst = 0;
    size_t where = 0;
    for (size_t j = 0; j < a.size(); j++) {
      const double bound =
          operand.kind == Kind::index ? 0 : tolerance(storage, accumulator(dtype), operand.terms, a[j], size);
      const double error = std::abs(a[j] - b[j]), excess = error == 0 ? 0 : error / bound;
      if (!(excess <= worst)) {
        worst = excess;
        where = j;
      }
    }
    EXPECT_LE(worst, 1) << c.name << ", " << ops.isa << " " << name_of(dtype) << ", " << operand.name << "[" << where
                        << "] = " << b[where] << " for " << a[where] << ", size " << size;
  }
}

TEST_P(OpsParity, EqualsDoublePrecision) {
  for (const auto& c : all_cases()) {
    for (const DType dtype : {DType::f32, DType::bf16}) compare(c, *GetParam(), dtype);
  }
}

std::vector<std::vector<uint8_t>> output_bits(const OpCase& c, const OpTable& ops, DType dtype, int threads) {
  ThreadPool pool(threads);
  Stream stream(pool);
  const auto arrays = materialise(c, dtype, dtype);
  c.run(ops, stream, views(arrays));
  std::vector<std::vector<uint8_t>> bits;
  for (size_t i = 0; i < arrays.size(); i++) {
    if (c.operands[i].out) bits.push_back(arrays[i].bits());
  }
  return bits;
}

TEST_P(OpsParity, ThreadsDoNotChangeBits) {
  for (const auto& c : all_cases()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const auto one = output_bits(c, *GetParam(), dtype, 1);
      for (const int threads : {2, 3}) {
        ASSERT_EQ(output_bits(c, *GetParam(), dtype, threads), one)
            << c.name << ", " << GetParam()->isa << " " << name_of(dtype) << ", " << threads << " threads";
      }
    }
  }
}

TEST_P(OpsParity, OneForSeveralGivesTheirBits) {
  for (const auto& [together, apart] : fused_cases()) {
    OpCase other = together;
    other.run = apart;
    for (const DType dtype : {DType::f32, DType::bf16}) {
      ASSERT_EQ(output_bits(together, *GetParam(), dtype, 2), output_bits(other, *GetParam(), dtype, 2))
          << together.name << ", " << GetParam()->isa << " " << name_of(dtype);
    }
  }
}

// Runs the case on rows [begin, end) of its row-wise operands alone; the others are fresh.
TEST_P(OpsParity, RowsDoNotDependOnTheirBatch) {
  ThreadPool threads(1);
  Stream stream(threads);
  int tested = 0;
  for (const auto& c : all_cases()) {
    int64_t rows = 0;
    for (const auto& o : c.operands) {
      if (o.by_row) rows = o.shape[0];
    }
    if (rows < 3) continue;
    tested++;
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const auto whole = materialise(c, dtype, dtype);
      c.run(*GetParam(), stream, views(whole));
      for (const auto& [begin, end] : {std::pair{rows / 2, rows / 2 + 1}, std::pair{int64_t{1}, rows - 1}}) {
        const auto part = materialise(c, dtype, dtype);
        auto tensors = views(part);
        for (size_t i = 0; i < tensors.size(); i++) {
          if (c.operands[i].by_row) tensors[i] = tensors[i].rows(begin, end);
        }
        c.run(*GetParam(), stream, tensors);
        for (size_t i = 0; i < tensors.size(); i++) {
          if (!c.operands[i].by_row || !c.operands[i].out) continue;
          ASSERT_EQ(bits_of(tensors[i]), bits_of(whole[i].view().rows(begin, end)))
              << c.name << ", " << GetParam()->isa << " " << name_of(dtype) << ", " << c.operands[i].name << " rows ["
              << begin << ", " << end << ")";
        }
      }
    }
  }
  EXPECT_GT(tested, 20);
}

INSTANTIATE_TEST_SUITE_P(Isa, OpsParity, ::testing::ValuesIn(cpu::all_ops()),
                         [](const auto& info) { return std::string(info.param->isa); });

TEST(Reduce, SumAndFinite) {
  Random random(9);
  for (const auto* ops : cpu::all_ops()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const Shape& shape : {Shape{1, 1}, Shape{7, 19}, Shape{5, 20000}}) {
        const Values values = round_to(dtype, random.normal(count(shape)));
        const Array whole(dtype, shape, values), strided(dtype, shape, values, 3);
        ThreadPool one(1), two(2);
        Stream s1(one), s2(two);
        const double exact = inner(values, values), sum = ops->sum_of_squares(s1, whole);
        EXPECT_NEAR(sum, exact, tolerance(DType::f64, DType::f64, count(shape), exact, exact));
        EXPECT_EQ(sum, ops->sum_of_squares(s2, whole));
        EXPECT_NEAR(ops->sum_of_squares(s1, strided), exact,
                    tolerance(DType::f64, DType::f64, count(shape), exact, exact));
        EXPECT_TRUE(ops->all_finite(s2, strided));
        for (const double bad : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
          Values broken = values;
          broken.back() = bad;
          EXPECT_FALSE(ops->all_finite(s2, Array(dtype, shape, broken, 3)));
          EXPECT_FALSE(ops->all_finite(s1, Array(dtype, shape, broken)));
        }
      }
    }
  }
}

TEST(Reduce, SetZeroKeepsWhatLiesBetweenStridedRows) {
  ThreadPool threads(1);
  Stream stream(threads);
  const Array wide(DType::bf16, {3, 5}, Values(15, 2.0));
  set_zero(stream, wide.view().columns(1, 3));
  EXPECT_EQ(wide.values(), (Values{2, 0, 0, 2, 2, 2, 0, 0, 2, 2, 2, 0, 0, 2, 2}));
}

}  // namespace
}  // namespace furlong::test
