#include "base/threads.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>

namespace furlong {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const int64_t n : {0, 1, 2, 7, 8, 9, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(n));
      pool.parallel(n, [&](int64_t i) { runs[static_cast<size_t>(i)]++; });
      for (const auto& count : runs) EXPECT_EQ(count, 1) << threads << " threads, " << n << " tasks";
      pool.parallel_uneven(n, [&](int64_t i) { runs[static_cast<size_t>(i)]++; });
      for (const auto& count : runs) EXPECT_EQ(count, 2) << threads << " threads, " << n << " uneven tasks";
      pool.parallel_in_order(n, [&](int64_t i) { runs[static_cast<size_t>(i)]++; });
      for (const auto& count : runs) EXPECT_EQ(count, 3) << threads << " threads, " << n << " tasks in order";
    }
  }
}

// The first task waits for all others, its thread's own ones among them.
TEST(ThreadPool, OthersTakeWhatAThreadDoesNotComeTo) {
  ThreadPool pool(2);
  for (const int kind : {0, 1, 2}) {
    std::atomic<int> done = 0;
    auto task = [&](int64_t i) {
      if (i > 0) {
        done++;
      } else {
        while (done < 7) std::this_thread::yield();
      }
    };
    if (kind == 0) pool.parallel(8, task);
    if (kind == 1) pool.parallel_uneven(8, task);
    if (kind == 2) pool.parallel_in_order(8, task);
    EXPECT_EQ(done, 7);
  }
}

TEST(ThreadPool, ManyJobsInARow) {
  ThreadPool pool(4);
  int64_t total = 0;
  for (int job = 0; job < 2000; job++) {
    std::array<int64_t, 4> part{};
    pool.parallel(4, [&](int64_t i) { part[static_cast<size_t>(i)] = i + job; });
    total += std::accumulate(part.begin(), part.end(), int64_t{0});
  }
  EXPECT_EQ(total, 2000ll * 6 + 4 * (1999ll * 2000 / 2));
}

TEST(ThreadPool, TasksMayUseThePoolThemselves) {
  ThreadPool pool(3);
  std::vector<int64_t> sums(16);
  pool.parallel(16, [&](int64_t i) {
    int64_t sum = 0;  // no race: calls from inside a task run in that task
    pool.parallel(100, [&](int64_t j) { sum += j * i; });
    sums[static_cast<size_t>(i)] = sum;
  });
  for (size_t i = 0; i < sums.size(); i++) EXPECT_EQ(sums[i], static_cast<int64_t>(i) * 4950);
}

TEST(ThreadPool, PoolsFromSeveralThreadsDoNotDisturbEachOther) {
  std::vector<std::thread> users;
  std::array<int64_t, 3> sums{};
  for (size_t user = 0; user < sums.size(); user++) {
    users.emplace_back([&, user] {
      ThreadPool pool(2);
      for (int job = 0; job < 500; job++) {
        std::array<int64_t, 2> part{};
        pool.parallel(2, [&](int64_t i) { part[static_cast<size_t>(i)] = 1; });
        sums[user] += part[0] + part[1];
      }
    });
  }
  for (auto& user : users) user.join();
  for (const int64_t sum : sums) EXPECT_EQ(sum, 1000);
}

TEST(ThreadPool, ZeroMeansTheCores) {
  EXPECT_GE(available_cores(), 1);
  EXPECT_EQ(ThreadPool(0).size(), available_cores());
}

}  // namespace
}  // namespace furlong
