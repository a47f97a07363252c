// PPO's critic: a model of the policy's architecture with a number per token in place of logits, its gradients and its
// optimizer.
#pragma once
#include <memory>

#include "checkpoint/resume.h"
#include "trainer/session.h"
#include "trainer/train_step.h"

namespace furlong {

// Of a policy's: no MTP head, and a value head.
ModelConfig critic_config(const ModelConfig& policy);

class Critic {
 public:
  // `options` are the policy's in a run of `iterations` optimizer steps. The weights are those of --critic-load, else
  // the session's as they are; a head that is not there begins at random with a deviation of 0.02. `memory` as for
  // TrainStep. On a mesh all ranks make one and call the same functions. Throws Error(Exit::usage) or Exit::input.
  Critic(const Session& session, const Settings& settings, const TrainOptions& options, int64_t iterations,
         Share memory);

  // Of every response token, before it was drawn.
  std::vector<std::vector<float>> values(const std::vector<const Trajectory*>& trajectories);
  // One optimizer step towards the returns; the metrics are train/critic-...
  Metrics run(const std::vector<const Trajectory*>& trajectories, const std::vector<TokenTargets>& targets);
  TrainStep& step() { return *step_; }
  // What a checkpoint holds of it.
  std::vector<NamedWeights> sets();
  // After those were filled from a checkpoint.
  void loaded(int64_t optimizer_steps, int64_t skipped, int64_t skipped_in_a_row);

 private:
  ModelConfig config_;
  Weights weights_;
  std::unique_ptr<TrainStep> step_;
};

}  // namespace furlong
