// What the files of TrainStep share: a micro-batch's place in memory, a step a part at a time.
#pragma once
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "trainer/train_step.h"

namespace furlong {

// A micro-batch's place in the working memory.
struct TrainStep::Lane {
  explicit Lane(Arena memory) : arena(std::move(memory)) {}
  Arena arena;
  std::optional<Arena::Scope> scope;
  Flight flight;
  void begin(const TrainStep& step, Pack& pack, int64_t rows) {
    scope.reset();
    scope.emplace(arena);
    flight = {.pack = &pack};
    step.start(arena, flight, rows);
  }
};

struct TrainStep::Parts {
  struct Added {
    std::vector<Trajectory> trajectories;
    std::vector<TokenTargets> targets;
    std::vector<const Trajectory*> pointers;
    size_t first = 0;  // of them, in the step
  };
  struct Queued {
    Added* of;
    Pack pack;
  };
  int64_t samples = 0;
  StepTotals added_totals;
  StepTotals divisors;  // that the weights so far were made with
  bool complete = false;
  std::deque<Added> added;    // the elements stay where they are
  std::deque<Queued> queued;  // those before `next` have had their turn
  size_t next = 0;
  StepSums sums;
  double seconds = 0, exchanged = 0;
};

}  // namespace furlong
