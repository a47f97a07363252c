// The order of a pipeline's turns, and what crosses its edges.
#include "trainer/pipeline.h"

#include <gtest/gtest.h>

#include <set>

#include "parallel/threads.h"

namespace furlong::test {
namespace {

// Stages that add their number to a stream and multiply its gradient by it: every number that arrives is known.
TEST(Pipeline, OneForwardOneBackward) {
  for (const int stages : {1, 2, 3, 4}) {
    for (const size_t micro_batches : {1u, 2u, 3u, 4u, 7u}) {
      SCOPED_TRACE(fmt::format("{} stages, {} micro-batches", stages, micro_batches));
      run_ranks(stages, [&](World& world) {
        const Mesh mesh(world, {.pipeline = stages});
        ThreadPool threads(1);
        Stream stream(threads);
        const int me = world.rank();
        const size_t lanes = in_flight(mesh.place(), micro_batches);
        EXPECT_EQ(lanes, std::min(micro_batches, static_cast<size_t>(stages - me)));
        struct Lane {
          float input = 0, d_input = 0, output = 0, d_output = 0;
        };
        std::vector<Lane> lane(lanes);
        const auto at = [&](size_t i) -> Lane& { return lane[i % lanes]; };
        const auto tensor = [](float& x) { return Tensor(&x, DType::f32, {1}); };
        std::set<size_t> open;
        std::vector<std::string> order;
        StageWork work;
        work.input = [&](size_t i) {
          EXPECT_TRUE(open.insert(i).second);
          EXPECT_LE(open.size(), lanes);
          at(i).input = me == 0 ? static_cast<float>(i) : -1;
          return tensor(at(i).input);
        };
        work.forward = [&](size_t i) {
          float want = static_cast<float>(i);
          for (int s = 0; s < me; s++) want += static_cast<float>(10 * s);
          EXPECT_EQ(at(i).input, want);
          at(i).output = at(i).input + static_cast<float>(10 * me);
          at(i).d_output = static_cast<float>(i + 1);  // on the last stage
          order.push_back(fmt::format("f{}", i));
        };
        work.output = [&](size_t i) { return tensor(at(i).output); };
        work.d_output = [&](size_t i) { return tensor(at(i).d_output); };
        work.backward = [&](size_t i) {
          float want = static_cast<float>(i + 1);
          for (int s = me + 1; s < stages; s++) want *= static_cast<float>(s + 1);
          EXPECT_EQ(at(i).d_output, want);
          at(i).d_input = at(i).d_output * static_cast<float>(me + 1);
          order.push_back(fmt::format("b{}", i));
          open.erase(i);
        };
        work.d_input = [&](size_t i) { return tensor(at(i).d_input); };
        run_stage(stream, mesh, micro_batches, work);
        std::vector<std::string> want;
        size_t forward = 0, backward = 0;
        while (forward + 1 < lanes) want.push_back(fmt::format("f{}", forward++));
        while (backward < micro_batches) {
          if (forward < micro_batches) want.push_back(fmt::format("f{}", forward++));
          want.push_back(fmt::format("b{}", backward++));
        }
        EXPECT_EQ(order, want);
      });
    }
  }
}

}  // namespace
}  // namespace furlong::test
