#include "ops/packs.h"

#include <gtest/gtest.h>

#include "support.h"

namespace furlong::test {
namespace {

// Packs of one weight, in the order of one instruction set.
struct PacksOfOne {
  Buffer memory;
  WeightPacks packs;
  PacksOfOne(const OpTable& ops, Stream& stream, const Tensor& w)
      : memory(packed_bytes(w)), packs(std::span(&w, 1), memory.data()) {
    ops.pack_weight(stream, const_cast<void*>(packs.find(w)), w);
  }
};

std::vector<uint8_t> product(const OpTable& ops, Stream& stream, const Tensor& x, const Tensor& w, DType out) {
  const Array y(out, {x.rows(), w.rows()});
  ops.linear(stream, y, x, w);
  return y.bits();
}

// With packs a product has the bits that it has without, whatever the rows, the columns and the depth.
TEST(Packs, DoNotChangeBits) {
  Random random(71);
  ThreadPool one(1), two(2);
  int tested = 0;
  for (const auto* ops : cpu::all_ops()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const auto& [n, k] :
           {std::pair{1, 1}, {3, 2}, {15, 31}, {16, 32}, {17, 127}, {64, 128}, {65, 129}, {200, 300}}) {
        const Array w(dtype, {n, k}, random.normal(n * k));
        if (ops->packed_bytes(w) == 0 || packed_bytes(w) == 0) continue;
        ASSERT_LE(ops->packed_bytes(w), packed_bytes(w));
        for (const int64_t rows : {1, 2, 5, 8, 9, 25, 60}) {
          const Array x(dtype, {rows, k}, random.normal(rows * k), 5);
          for (ThreadPool* threads : {&one, &two}) {
            Stream stream(*threads);
            for (const DType out : {dtype, DType::f32}) {
              stream.use_packs(nullptr);
              const auto wanted = product(*ops, stream, x, w, out);
              const PacksOfOne packed(*ops, stream, w);
              stream.use_packs(&packed.packs);
              ASSERT_EQ(product(*ops, stream, x, w, out), wanted)
                  << ops->isa << " " << name_of(dtype) << " to " << name_of(out) << ", " << rows << " rows, w (" << n
                  << "," << k << ")";
              tested++;
            }
          }
        }
      }
    }
  }
  EXPECT_GT(tested, 200);
}

// So do packs that no cache keeps, whose next panel is asked for ahead, to the last column.
TEST(Packs, FromMemoryDoNotChangeBits) {
  Random random(74);
  ThreadPool threads(2);
  const int64_t n = 8333, k = 1091;
  for (const auto* ops : cpu::all_ops()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Array w(dtype, {n, k}, random.normal(n * k));
      if (ops->packed_bytes(w) == 0 || packed_bytes(w) == 0) continue;
      Stream stream(threads);
      const PacksOfOne packed(*ops, stream, w);
      for (const int64_t rows : {1, 7, 32}) {
        const Array x(dtype, {rows, k}, random.normal(rows * k));
        stream.use_packs(nullptr);
        const auto wanted = product(*ops, stream, x, w, dtype);
        stream.use_packs(&packed.packs);
        EXPECT_EQ(product(*ops, stream, x, w, dtype), wanted) << ops->isa << " " << name_of(dtype) << ", " << rows;
      }
    }
  }
}

TEST(Packs, OfExperts) {
  Random random(72);
  ThreadPool threads(2);
  const int64_t experts = 5, n = 20, k = 70;
  const std::vector<int32_t> offsets{0, 3, 3, 20, 21, 30};  // one expert without rows
  for (const auto* ops : cpu::all_ops()) {
    const Array w(DType::f32, {experts, n, k}, random.normal(experts * n * k)),
        x(DType::f32, {30, k}, random.normal(30 * k));
    const Array bounds = Array::indices(offsets), without(DType::f32, {30, n}), with(DType::f32, {30, n});
    Stream stream(threads);
    ops->grouped_linear(stream, without, x, w, bounds);
    const PacksOfOne packed(*ops, stream, w);
    stream.use_packs(&packed.packs);
    ops->grouped_linear(stream, with, x, w, bounds);
    EXPECT_EQ(with.bits(), without.bits()) << ops->isa;
  }
}

// The packs are read, not the weight; they are of one tensor only, and follow it when they are filled.
TEST(Packs, AreOfOneTensor) {
  Random random(73);
  ThreadPool threads(1);
  Stream stream(threads);
  const int64_t n = 32, k = 40;
  Array w(DType::f32, {n, k}, random.normal(n * k));
  const Array x(DType::f32, {2, k}, random.normal(2 * k));
  const Tensor weights[] = {w.view()};
  const Buffer memory(WeightPacks::bytes(weights));
  const WeightPacks packs(weights, memory.data());
  packs.fill(stream);
  const OpTable& ops = cpu::ops(DType::f32);
  const auto before = product(ops, stream, x, w, DType::f32);
  w.set(random.normal(n * k));
  const auto after = product(ops, stream, x, w, DType::f32);
  ASSERT_NE(before, after);
  stream.use_packs(&packs);
  EXPECT_EQ(product(ops, stream, x, w, DType::f32), before);
  EXPECT_EQ(packs.find(w.view().rows(0, 16)), nullptr);  // begins at the same number
  packs.fill(stream);
  EXPECT_EQ(product(ops, stream, x, w, DType::f32), after);
}

}  // namespace
}  // namespace furlong::test
