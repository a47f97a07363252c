// random_schedules COUNT [FIRST]: plays that many random schedules from seed FIRST (1) on, and says what was in them.
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

#include "rollout/schedules.h"

int main(int argc, char** argv) {
  using namespace furlong;
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: random_schedules COUNT [FIRST]\n");
    return 2;
  }
  try {
    const uint64_t count = std::stoull(argv[1]), first = argc > 2 ? std::stoull(argv[2]) : 1;
    Schedules schedules;
    ScheduleCounts counts;
    const auto start = std::chrono::steady_clock::now();
    for (uint64_t seed = first; seed < first + count; seed++) {
      schedules.play(seed, counts);
      if (counts.schedules % 1000 != 0 && seed + 1 != first + count) continue;
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      std::printf("%.0f s  %s\n", seconds.count(), text_of(counts).c_str());
      std::fflush(stdout);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
