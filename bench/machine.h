// What the machine can do at most, measured, and how a figure is taken.
#pragma once
#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "base/threads.h"

namespace furlong::bench {

struct Limits {
  double flops = 0;  // fp32 multiply-adds from registers, all threads, FLOP/s
  double bytes = 0;  // reading memory far larger than the caches, all threads, bytes/s
};
Limits measure_limits(ThreadPool& threads);

struct Figure {
  double median = 0, low = 0, high = 0;  // seconds
};
// At least 5 runs and 0.3 s of them, after one that does not count.
template <class F>
Figure time_it(F&& f) {
  using Clock = std::chrono::steady_clock;
  f();
  std::vector<double> runs;
  double total = 0;
  while (runs.size() < 5 || (total < 0.3 && runs.size() < 1000)) {
    const auto start = Clock::now();
    f();
    runs.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    total += runs.back();
  }
  std::sort(runs.begin(), runs.end());
  return {runs[runs.size() / 2], runs.front(), runs.back()};
}

}  // namespace furlong::bench
