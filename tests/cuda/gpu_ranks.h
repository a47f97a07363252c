// The ranks of tests that run under NCCL: this process by itself, or one of those that mpirun started, with a GPU each.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>

#include "parallel/mpi.h"
#include "parallel/nccl.h"
#include "tensor/cuda_devices.h"

namespace furlong::test {

// The world of all tests; it ends before the program does, as MPI wants it.
class Ranks : public ::testing::Environment {
 public:
  static std::unique_ptr<World>& world() {
    static std::unique_ptr<World> instance;
    return instance;
  }
  // The ranks without NCCL.
  static World*& host_world() {
    static World* instance = nullptr;
    return instance;
  }
  static World& get() {
    if (world() == nullptr) {
      const char* ranks = std::getenv("OMPI_COMM_WORLD_SIZE");
      auto host = mpi_world({.ranks = ranks == nullptr ? 1 : std::atoi(ranks), .timeout_seconds = 60});
      host_world() = host.get();
      world() = nccl_world(std::move(host), {.timeout_seconds = 60, .even_alone = true});
      cuda::open(cuda::device_of(world()->local_rank(), cuda::device_count()));
    }
    return *world();
  }
  void TearDown() override { world().reset(); }
};
inline const auto* const gpu_ranks = ::testing::AddGlobalTestEnvironment(new Ranks);

}  // namespace furlong::test
