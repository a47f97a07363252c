// What the files of TrainStep share: the sums of a step, a micro-batch's place in memory, a step a part at a time.
#pragma once
#include <array>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "trainer/train_step.h"

namespace furlong {

// Weighted sums over the step; weights add up to 1 over its tokens, so that these are means.
struct MicroBatch::Sums {
  double policy = 0, clipped = 0, kl = 0, entropy = 0, ppo_kl = 0, ratio = 0, ratio_squared = 0, weight = 0;
  double abs_diff = 0, rollout_kl = 0, rollout_weight = 0;
  double mtp = 0;
  double choices = 0, differing = 0;  // of replayed routes; see RouteDifference
  int64_t tokens = 0;
  bool has_reference = false;

  // Means over the policy's tokens.
  static constexpr auto weighted() {
    return std::to_array<double Sums::*>({&Sums::policy, &Sums::clipped, &Sums::kl, &Sums::entropy, &Sums::ppo_kl,
                                          &Sums::ratio, &Sums::ratio_squared, &Sums::weight, &Sums::abs_diff,
                                          &Sums::rollout_kl, &Sums::rollout_weight});
  }
  void add(const Sums& s) {
    for (auto member : weighted()) this->*member += s.*member;
    for (auto member : {&Sums::mtp, &Sums::choices, &Sums::differing}) this->*member += s.*member;
    tokens += s.tokens;
    has_reference |= s.has_reference;
  }
  // As if the weights had been these times as large.
  void scale(double by_policy, double by_mtp) {
    for (auto member : weighted()) this->*member *= by_policy;
    mtp *= by_mtp;
  }
};

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
  Sums sums;
  double seconds = 0, exchanged = 0;
};

}  // namespace furlong
