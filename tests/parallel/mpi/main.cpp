// The tests of groups over MPI: mpirun -n 4 test_mpi. A message goes in many pieces here.
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/error.h"
#include "base/log.h"
#include "parallel/mpi.h"
#include "parallel/on_ranks.h"

namespace furlong::test {
namespace {

World* the_world = nullptr;

}  // namespace

void on_ranks(const std::function<void(World&)>& body) {
  body(*the_world);
  // Nobody begins the next test while others are in this one.
  const int all[test_ranks] = {0, 1, 2, 3};
  the_world->group(all)->gather_bytes("");
}

// The ranks of a host share its cores, and a rank's number there picks its GPU.
TEST(MpiWorld, KnowsItsHost) {
  EXPECT_EQ(the_world->local_size(), test_ranks);
  EXPECT_EQ(the_world->local_rank(), the_world->rank());
  EXPECT_EQ(the_world->cores(), std::max(1, available_cores() / test_ranks));
  EXPECT_NE(the_world->watchdog(), nullptr);
}

}  // namespace furlong::test

int main(int argc, char** argv) {
  using namespace furlong;
  testing::InitGoogleTest(&argc, argv);
  try {
    const char* ranks = std::getenv("OMPI_COMM_WORLD_SIZE");
    if (ranks == nullptr || std::atoi(ranks) != test::test_ranks) fail(Exit::usage, "start with mpirun -n 4");
    const auto world = mpi_world({.ranks = test::test_ranks, .timeout_seconds = 60, .piece_bytes = 50001});
    test::the_world = world.get();
    if (world->rank() != 0) {
      auto& listeners = testing::UnitTest::GetInstance()->listeners();
      delete listeners.Release(listeners.default_result_printer());
    }
    const int result = RUN_ALL_TESTS();
    if (result != 0) log::error("rank {}: a test failed; run it with the output of this rank alone", world->rank());
    return result;
  } catch (const Error& e) {
    log::error("{}", e.what());
    return static_cast<int>(e.code());
  }
}
