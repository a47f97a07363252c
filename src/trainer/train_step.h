// One optimizer step from trajectories: pack, forward, losses, backward, update.
#pragma once
#include <optional>

#include "data/trajectory.h"
#include "model/model.h"
#include "optim/adam.h"
#include "rl/packing.h"
#include "rl/policy_loss.h"
#include "trainer/rollout.h"

namespace furlong {

enum class Objective { policy, supervised };

struct TrainOptions {
  Objective objective = Objective::policy;
  PolicyLossOptions loss;
  PackOptions pack;
  OptimOptions optim;
  Recompute recompute = Recompute::none;
  bool per_token = false;
  bool mtp = false;
  double mtp_factor = 0.2;
  double temperature = 1;
  int64_t head_chunk = -1;
  bool entropy = false;  // compute entropies (for a coefficient or to observe)
  std::string dump_grads;
};

// What only the caller knows of each trajectory of a step.
struct TokenTargets {
  double advantage = 0;
  std::optional<std::vector<float>> old_log_probs, ref_log_probs;  // per response token
};

// Training steps in a row with a loss or gradient that is not finite, after which a run ends.
constexpr int64_t stop_after_skipped = 3;

class TrainStep {
 public:
  TrainStep(const ModelConfig&, Weights& weights, ThreadPool&, TrainOptions options);

  // One step over all of `trajectories`. The metrics are train/...; the first of them are loss and grad_norm. A loss or
  // gradient that is not finite skips the update (skipped() counts) and leaves weights and moments as they were.
  Metrics run(const std::vector<const Trajectory*>& trajectories, const std::vector<TokenTargets>& targets);

  // log-probs of the response tokens of each trajectory under `weights`, in packed forward passes.
  std::vector<std::vector<float>> score(const Weights& weights, const std::vector<const Trajectory*>& trajectories);

  Optimizer& optimizer() { return optimizer_; }
  uint64_t gradient_bytes() const { return grads_.bytes() + partial_.bytes(); }
  // After weights and optimizer were filled from a checkpoint.
  void weights_loaded() { optimizer_.weights_loaded(stream_); }
  int64_t skipped_in_a_row() const { return skipped_in_a_row_; }
  int64_t skipped() const { return skipped_; }
  void set_skipped(int64_t total, int64_t in_a_row) {
    skipped_ = total;
    skipped_in_a_row_ = in_a_row;
  }
  // Bytes of working memory that a micro-batch of one sequence of `tokens` needs, by name.
  std::vector<std::pair<std::string, uint64_t>> plan(int64_t tokens);

 private:
  struct Sums;
  void micro_step(Exec&, Pack&, const std::vector<const Trajectory*>&, const std::vector<TokenTargets>&, Sums&,
                  bool last = false);
  void mtp_loss(Exec&, Pack&, const Batch&, Tensor hidden, Weights& grads, Sums&);
  // A micro-batch has computed its gradients of a part; after the last one they are what the optimizer gets.
  void part_done(Stream&, int part, bool last);
  // Makes the arena large enough for these packs by running them dry.
  template <class F>
  void fit(std::vector<Pack>& packs, F&& body);
  void dump_gradients() const;

  ModelConfig config_;
  Weights& weights_;
  Stream stream_, dry_;
  TrainOptions options_;
  Weights grads_;    // f32, or bf16 with --main-grads-dtype bf16
  Weights partial_;  // then a micro-batch's own in f32, a part of the model at a time; they begin as zeros
  Optimizer optimizer_;
  Arena arena_;
  int64_t skipped_ = 0, skipped_in_a_row_ = 0;
};

}  // namespace furlong
