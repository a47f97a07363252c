// The tests of groups run on four ranks of either kind: threads in test_parallel, processes in test_mpi.
#pragma once
#include <functional>

#include "parallel/group.h"

namespace furlong::test {

constexpr int test_ranks = 4;

// Runs the body once on each of the four ranks, in lockstep with other calls.
void on_ranks(const std::function<void(World&)>& body);

}  // namespace furlong::test
