// Training during the tail of a rollout: groups that are complete are learnt from while the last sequences are still
// being sampled, with the same weights.
#pragma once
#include <functional>
#include <set>
#include <span>
#include <vector>

#include "trainer/beside.h"
#include "trainer/train_step.h"

namespace furlong {

class TailTraining {
 public:
  using Targets = std::function<std::vector<TokenTargets>(std::span<const Trajectory>)>;

  // samples: of the step; targets: of whole groups, called where their micro-batches run.
  TailTraining(TrainStep& step, Beside& beside, const PackOptions& pack, int64_t samples, Targets targets)
      : step_(step), beside_(beside), pack_(pack), samples_(samples), targets_(std::move(targets)) {}

  // A group of the step with its rewards. Groups are learnt from as soon as they fill a micro-batch, in the order of
  // their index.
  void take(std::vector<Trajectory> group);
  bool has_begun() const { return begun_; }
  // Learns from the groups of `all` that are left over, and updates. Of what began before this call are
  // perf/tail_train_time, its seconds so far, and perf/tail_tokens, its samples' tokens.
  Metrics finish(const std::vector<Trajectory>& all);

 private:
  bool is_full() const;
  void hand_over(std::vector<Trajectory> trajectories, bool last);

  TrainStep& step_;
  Beside& beside_;
  PackOptions pack_;
  int64_t samples_;
  Targets targets_;
  std::vector<Trajectory> waiting_;
  std::set<int64_t> taken_;  // group_index
  int64_t tokens_ = 0;
  bool begun_ = false;
};

}  // namespace furlong
