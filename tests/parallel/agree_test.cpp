#include "parallel/agree.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>

#include "base/error.h"
#include "parallel/mesh.h"
#include "parallel/threads.h"

namespace furlong {
namespace {

std::unique_ptr<Group> all_of(World& world) {
  std::vector<int> ranks(static_cast<size_t>(world.size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return world.group(ranks);
}

TEST(Agree, TheFirstErrorIsThrownOnAll) {
  std::atomic<int> same = 0, done = 0;
  run_ranks(4, [&](World& world) {
    const auto group = all_of(world);
    try {
      all_or_none(*group, [&] {
        if (world.rank() == 3) fail(Exit::usage, "the third");
        if (world.rank() == 1) fail(Exit::input, "the first of two");
        if (world.rank() == 2) throw std::runtime_error("not even an Error");
      });
    } catch (const Error& e) {
      if (e.code() == Exit::input && std::string(e.what()) == "the first of two") same++;
    }
    all_or_none(*group, [&] { done++; });  // they go on together
  });
  EXPECT_EQ(same, 4);
  EXPECT_EQ(done, 4);
}

TEST(Agree, WhatIsNoErrorIsABugToTheOthers) {
  std::atomic<int> bug = 0, own = 0;
  run_ranks(3, [&](World& world) {
    const auto group = all_of(world);
    try {
      all_or_none(*group, [&] {
        if (world.rank() == 2) throw std::out_of_range("far out");
      });
    } catch (const Error& e) {
      if (e.code() == Exit::bug && std::string(e.what()) == "far out") bug++;
    } catch (const std::out_of_range&) {
      own++;
    }
  });
  EXPECT_EQ(bug, 2);
  EXPECT_EQ(own, 1);
}

TEST(Agree, AllHaveTheTextOfRankZero) {
  run_ranks(3, [](World& world) {
    const auto group = all_of(world);
    EXPECT_EQ(from_first(*group, std::to_string(10 + world.rank())), "10");
  });
  EXPECT_EQ(from_first(*solo_group(), "alone"), "alone");
}

}  // namespace
}  // namespace furlong
