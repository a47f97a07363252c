#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <set>

#include "base/error.h"
#include "parallel/threads.h"

namespace furlong {
namespace {

TEST(Mesh, NumbersRanksAsMegatronDoes) {
  // tensor fastest, then context, data, pipeline; experts: expert-tensor, expert, expert-data.
  const ParallelSizes sizes{.tensor = 2, .pipeline = 2, .context = 2, .expert = 4, .expert_tensor = 2};
  const MeshRank m = mesh_rank(sizes, 8 + 5, 16);
  EXPECT_EQ(m.data_size, 2);
  EXPECT_EQ(m.expert_data_size, 1);
  EXPECT_EQ(std::tuple(m.tensor, m.context, m.data, m.stage), std::tuple(1, 0, 1, 1));
  EXPECT_EQ(std::tuple(m.expert_tensor, m.expert, m.expert_data), std::tuple(1, 2, 0));
  EXPECT_EQ(m.row_part(), 1);
}

TEST(Mesh, EveryPlaceIsTakenOnce) {
  for (const auto& s : {ParallelSizes{.tensor = 2, .pipeline = 2, .context = 1, .expert = 2},
                        ParallelSizes{.context = 2, .expert = 8}, ParallelSizes{.expert = 2, .expert_tensor = 2}}) {
    std::set<std::tuple<int64_t, int64_t, int64_t, int64_t>> dense, experts;
    for (int r = 0; r < 8; r++) {
      const MeshRank m = mesh_rank(s, r, 8);
      EXPECT_EQ(m.ranks(), 8);
      EXPECT_TRUE(dense.insert({m.tensor, m.context, m.data, m.stage}).second);
      EXPECT_TRUE(experts.insert({m.expert_tensor, m.expert, m.expert_data, m.stage}).second);
    }
  }
}

TEST(Mesh, SizesThatDoNotFitAreNamed) {
  EXPECT_NE(mesh_problem({.tensor = 3}, 8).find("8 rank(s) cannot be split by tensor 3"), std::string::npos);
  EXPECT_NE(mesh_problem({.expert = 16}, 8).find("expert 16"), std::string::npos);
  EXPECT_NE(mesh_problem({.context = 0}, 8).find("context parallel size is 0"), std::string::npos);
  EXPECT_EQ(mesh_problem({.tensor = 2, .context = 2, .expert = 8}, 8), "");
}

TEST(Mesh, APlannedMeshHasTheGroupsOfARealOne) {
  const ParallelSizes sizes{.tensor = 2, .pipeline = 2, .context = 2, .expert = 4, .expert_tensor = 2};
  run_ranks(16, [&](World& world) {
    const Mesh real(world, sizes), planned = Mesh::planned(mesh_rank(sizes, world.rank(), 16));
    for (const auto group : {&Mesh::world, &Mesh::stage, &Mesh::tensor, &Mesh::context, &Mesh::rows, &Mesh::data,
                             &Mesh::pipeline, &Mesh::experts}) {
      EXPECT_EQ((real.*group)().size(), (planned.*group)().size());
      EXPECT_EQ((real.*group)().rank(), (planned.*group)().rank());
    }
    ThreadPool threads(1);
    Stream dry = Stream::dry(threads);
    planned.world().exchange(dry, {}, {});
  });
}

TEST(Ranks, ExchangeAndGather) {
  std::vector<int> sums(4, 0);
  run_ranks(4, [&](World& world) {
    ThreadPool threads(1);
    Stream stream(threads);
    Mesh mesh(world, {.tensor = 2, .expert = 2});
    EXPECT_EQ(mesh.data().size(), 2);
    // Everyone sends 10·me + r to r; nothing goes from 2 to 1.
    std::vector<int32_t> out(4), in(4, -1);
    std::vector<Tensor> from, to;
    const int me = world.rank();
    for (int r = 0; r < 4; r++) {
      out[static_cast<size_t>(r)] = 10 * me + r;
      from.push_back(me == 2 && r == 1 ? Tensor() : Tensor(&out[static_cast<size_t>(r)], DType::i32, {1}));
      to.push_back(me == 1 && r == 2 ? Tensor() : Tensor(&in[static_cast<size_t>(r)], DType::i32, {1}));
    }
    mesh.world().exchange(stream, to, from);
    for (int r = 0; r < 4; r++) EXPECT_EQ(in[static_cast<size_t>(r)], me == 1 && r == 2 ? -1 : 10 * r + me);
    const auto names = mesh.stage().gather_bytes(std::to_string(me));
    for (const auto& name : names) sums[static_cast<size_t>(me)] += std::stoi(name);
  });
  EXPECT_EQ(sums, std::vector<int>({6, 6, 6, 6}));
}

TEST(Ranks, AnErrorOfOneEndsAll) {
  EXPECT_THROW(run_ranks(3,
                         [](World& world) {
                           if (world.rank() == 1) fail(Exit::input, "rank 1 has had enough");
                           Mesh mesh(world, {});
                           mesh.world().gather_bytes("waiting");
                         }),
               Error);
}

}  // namespace
}  // namespace furlong
