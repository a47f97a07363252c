// Rows and columns on their way between ranks: what arrives, and in which order it is added.
#include "model/collectives.h"

#include <gtest/gtest.h>

#include <cmath>

#include "parallel/threads.h"

namespace furlong {
namespace {

// Runs body(exec) as ranks of a mesh, on a measuring arena first; what it takes must be what was measured.
void run_mesh(int ranks, const ParallelSizes& sizes, const std::function<void(Exec&)>& body) {
  run_ranks(ranks, [&](World& world) {
    const Mesh mesh(world, sizes);
    ThreadPool threads(1);
    Stream dry = Stream::dry(threads), stream(threads);
    Arena measure = Arena::measuring();
    Exec planned{dry, measure, mesh};
    body(planned);
    Arena arena(measure.high_mark());
    Exec exec{stream, arena, mesh};
    body(exec);
    EXPECT_EQ(arena.high_mark(), measure.high_mark());
  });
}

template <class T>
void fill(Exec& exec, const Tensor& t, const std::function<float(int64_t row, int64_t column)>& f) {
  if (exec.stream.is_dry()) return;
  for (int64_t r = 0; r < t.rows(); r++) {
    for (int64_t c = 0; c < t.dim(1); c++) t.as<T>()[r * t.row_stride() + c] = T(f(r, c));
  }
}

TEST(Collectives, RowsAreGatheredInTheOrderOfRanks) {
  for (const int64_t rows : {0, 2, 3, 11}) {
    run_mesh(3, {.tensor = 3}, [&](Exec& exec) {
      const RowBlocks blocks = tensor_rows(exec.mesh, rows);
      const Range mine = blocks.mine();
      const Tensor here = exec.arena.make("here", DType::f32, {mine.size(), 2});
      fill<float>(exec, here, [&](int64_t r, int64_t c) { return static_cast<float>(10 * (mine.begin + r) + c); });
      const Tensor all = all_gather(exec, blocks, "all", here);
      ASSERT_EQ(all.rows(), rows);
      for (int64_t i = 0; i < 2 * rows && !exec.stream.is_dry(); i++) {
        EXPECT_EQ(all.as<float>()[i], static_cast<float>(10 * (i / 2) + i % 2));
      }
    });
  }
}

// (1e8 + 1) - 1e8 is 0 in fp32 and (1e8 - 1e8) + 1 is 1. In bf16, 1 + 2^-9 rounds to 1, however often it is added; four
// times 2^-9 added in fp32 give 1 + 2^-7, which bf16 holds.
TEST(Collectives, SumsAreInTheOrderOfRanksInFp32) {
  run_mesh(3, {.tensor = 3}, [](Exec& exec) {
    const RowBlocks blocks = tensor_rows(exec.mesh, 7);
    const int64_t rank = exec.mesh.place().tensor;
    const Tensor partial = exec.arena.make("partial", DType::f32, {7, 3});
    const Tensor out = exec.arena.make("out", DType::f32, {blocks.mine().size(), 3});
    fill<float>(exec, partial, [&](int64_t, int64_t) { return rank == 0 ? 1e8f : rank == 1 ? 1.0f : -1e8f; });
    reduce_scatter(exec, blocks, out, partial);
    for (int64_t i = 0; i < out.numel() && !exec.stream.is_dry(); i++) EXPECT_EQ(out.as<float>()[i], 0.0f);
  });
  run_mesh(5, {.tensor = 5}, [](Exec& exec) {
    const RowBlocks blocks = tensor_rows(exec.mesh, 5);
    const int64_t rank = exec.mesh.place().tensor;
    const Tensor partial = exec.arena.make("partial", DType::bf16, {5, 8});
    const Tensor out = exec.arena.make("out", DType::bf16, {blocks.mine().size(), 8});
    fill<bf16>(exec, partial, [&](int64_t, int64_t) { return rank == 0 ? 1.0f : std::ldexp(1.0f, -9); });
    reduce_scatter(exec, blocks, out, partial);
    for (int64_t i = 0; i < out.numel() && !exec.stream.is_dry(); i++) {
      EXPECT_EQ(static_cast<float>(out.as<bf16>()[i]), 1 + std::ldexp(1.0f, -7));
    }
  });
}

// Ranks 0 and 1 share columns 2 and 3, as they would a key head; the way back adds what they made of these.
TEST(Collectives, RowsBecomeHeadsAndHeadsRows) {
  const RankColumns columns = {{{0, 1}, {2, 4}}, {{1, 2}, {2, 4}}};
  run_mesh(2, {.context = 2}, [&](Exec& exec) {
    const RowBlocks blocks = context_rows(exec.mesh, 5);
    const Range mine = blocks.mine();
    const int64_t rank = exec.mesh.place().context;
    const bool dry = exec.stream.is_dry();
    const Tensor x = exec.arena.make("x", DType::f32, {mine.size(), 4});
    fill<float>(exec, x, [&](int64_t r, int64_t c) { return static_cast<float>(10 * (mine.begin + r) + c); });
    const Tensor heads = exec.arena.make("heads", DType::f32, {5, 3}), back = exec.arena.make_like("back", x);
    rows_to_heads(exec, blocks, {{heads, x, columns}});
    const std::vector<int64_t> own = rank == 0 ? std::vector<int64_t>{0, 2, 3} : std::vector<int64_t>{1, 2, 3};
    for (int64_t i = 0; i < heads.numel() && !dry; i++) {
      EXPECT_EQ(heads.as<float>()[i], static_cast<float>(10 * (i / 3) + own[static_cast<size_t>(i % 3)]));
    }
    heads_to_rows(exec, blocks, {{back, heads, columns}});
    for (int64_t i = 0; i < back.numel() && !dry; i++) {
      EXPECT_EQ(back.as<float>()[i], x.as<float>()[i] * (i % 4 >= 2 ? 2.0f : 1.0f));
    }
  });
}

}  // namespace
}  // namespace furlong
