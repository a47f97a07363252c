// One optimizer step from trajectories: pack, forward, losses, backward, update.
#pragma once
#include <functional>
#include <memory>
#include <optional>

#include "data/trajectory.h"
#include "model/model.h"
#include "optim/adam.h"
#include "rl/packing.h"
#include "trainer/policy_objective.h"
#include "trainer/step_sums.h"

namespace furlong {

enum class Objective { policy, supervised, value };

struct TrainOptions {
  Objective objective = Objective::policy;
  PolicyLossOptions loss;
  PackOptions pack;
  OptimOptions optim;
  Recompute recompute = Recompute::none;
  bool per_token = false;
  double value_clip = 0.2;     // Objective::value: how far a value may move from its old one (rl/policy_loss.h)
  bool replay_routes = false;  // of the trajectories (trainer/replay.h)
  bool mtp = false;
  double mtp_factor = 0.2;
  double temperature = 1;
  int64_t head_chunk = -1;
  bool entropy = false;  // compute entropies (for a coefficient or to observe)
  std::string dump_grads;
  // Called between the gradients and the update of every step, so that tests can break it there.
  std::function<void(Stream&)> before_update;
};

// Training steps in a row with a loss or gradient that is not finite, after which a run ends.
constexpr int64_t stop_after_skipped = 3;

// What a micro-batch is computed with.
class MicroBatch {
 protected:
  // A step's trajectories, and what it sums over them.
  struct Samples {
    const std::vector<const Trajectory*>& trajectories;
    const std::vector<TokenTargets>& targets;
    StepSums& sums;
    size_t first = 0;  // of the trajectories, in the step
  };
  // A micro-batch between its forward and its backward pass. Tensors are those of this rank's rows.
  struct Flight {
    Pack* pack = nullptr;
    Optimizer* told = nullptr;  // what gets the gradients, of the last micro-batch of a step
    Batch batch;
    ModelSaved saved;
    // At the edges of the stage: of the first one no input, on the last one the losses' own d_output.
    Tensor input, d_input, output, d_output;
  };
  // Makes what crosses the edges of the stage, with room for `rows` rows. It lies before everything else, at the same
  // place for every micro-batch of so many, because the gradient of one leaves while the next one's rows arrive.
  void start(Arena&, Flight&, int64_t rows) const;
  // Forward, on the last stage with the losses and their derivatives with respect to the trunk's output.
  void forward(Exec&, Flight&, const Samples&);
  void backward(Exec&, Flight&);
  void policy_loss(Exec&, Flight&, const Samples&, Weights& grads);
  // Of all rows of the pack.
  void score_log_probs(Exec&, const Weights&, const Tensor& hidden, const Pack&, std::vector<double>& log_probs) const;
  void value_loss_of(Exec&, Flight&, const Samples&, Weights& grads);
  void mtp_loss(Exec&, Flight&, Weights& grads, StepSums&);
  // A micro-batch has computed its gradients of a part.
  void part_done(Stream&, int part, Optimizer* told);

  MicroBatch(const ModelConfig& config, Weights& weights, TrainOptions options, const Mesh& mesh, Weights grads,
             Weights partial);
  Weights& accumulated() { return partial_.tensors().empty() ? grads_ : partial_; }
  bool is_first_stage() const { return mesh_.place().stage == 0; }
  bool is_last_stage() const { return mesh_.place().stage + 1 == mesh_.place().sizes.pipeline; }

  ModelConfig config_;
  Weights& weights_;
  TrainOptions options_;
  const Mesh& mesh_;
  Weights grads_;    // f32, or bf16 with --main-grads-dtype bf16
  Weights partial_;  // then a micro-batch's own in f32, a part of the model at a time; they begin as zeros
};

// Bytes by name, and in all.
struct WorkingMemory {
  std::vector<std::pair<std::string, uint64_t>> parts;
  uint64_t bytes = 0;
};

class TrainStep : private MicroBatch {
 public:
  // memory: where the working memory lies, which others may use between calls; undefined, or too small for a step: the
  // trainer's own, as large as needed. On a mesh each rank has its own, with what it holds of the weights; all call the
  // same functions with the same arguments, and get the same results.
  TrainStep(const ModelConfig&, Weights& weights, ThreadPool&, TrainOptions options, Share memory = {},
            const Mesh& mesh = Mesh::alone());
  ~TrainStep();

  // The working memory of a micro-batch of `tokens` tokens in `segments` sequences whose lengths need most of it, by
  // part of the model, at the weights' place in their mesh. Found by a dry run; the weights may be an outline.
  static WorkingMemory working_memory(const ModelConfig&, Weights& weights, ThreadPool&, const TrainOptions& options,
                                      int64_t tokens, int64_t segments, Dispatcher dispatcher = Dispatcher::alltoall);

  // One step over all of `trajectories`, which the data parallel ranks share out. The metrics are train/...; the first
  // of them are loss and grad_norm. A loss or gradient that is not finite skips the update (skipped() counts) and
  // leaves weights and moments as they were.
  Metrics run(const std::vector<const Trajectory*>& trajectories, const std::vector<TokenTargets>& targets);

  // The same step a part at a time, so that others may work in between, which leave the weights alone: begin(), add()
  // as trajectories become known, advance(), and finish() when the last ones were added. The gradients are those of
  // run() but for the order of sums, and the same bits where all are added at once. Not on pipeline stages. samples: of
  // the whole step.
  void begin(int64_t samples);
  void add(std::vector<Trajectory> trajectories, std::vector<TokenTargets> targets, bool last);
  // Forward and backward of the next micro-batch of what was added; false: there is none.
  bool advance();
  // What advance() has left over, and the update.
  Metrics finish();

  // log-probs (of a critic: values) of the response tokens of each trajectory under `weights`, in packed forward
  // passes; under the trained ones, with replayed routes where they are trained with them.
  std::vector<std::vector<float>> score(const Weights& weights, const std::vector<const Trajectory*>& trajectories);

  Optimizer& optimizer() { return optimizer_; }
  size_t working_bytes() const;
  uint64_t gradient_bytes() const { return grads_.bytes() + partial_.bytes(); }
  // After weights and optimizer were filled from a checkpoint.
  void weights_loaded() { optimizer_.weights_loaded(stream_); }
  int64_t skipped_in_a_row() const { return skipped_in_a_row_; }
  int64_t skipped() const { return skipped_; }
  void set_skipped(int64_t total, int64_t in_a_row) {
    skipped_ = total;
    skipped_in_a_row_ = in_a_row;
  }

 private:
  struct Lane;
  struct Parts;
  struct Packs {
    std::vector<Pack> mine;      // of this data parallel rank
    std::vector<Pack> measured;  // that its working memory must be enough for; none: its own
  };
  // As many lanes as micro-batches are held at a time, large enough for what `body` needs of a lane.
  void fit(size_t lanes, Packs&, const std::function<void(Lane&, Stream&, Pack&)>& body);
  // Forward and backward of all micro-batches of this rank; returns their seconds.
  double learn(Packs&, const Samples&);
  Packs packs_of(const std::vector<const Trajectory*>& trajectories, bool mtp,
                 const std::optional<StepTotals>& whole = {}) const;
  void rescale(double policy, double mtp);
  // What the gradients are there for. Seconds: of the gradients, of them with other ranks.
  Metrics update(const StepSums& mine, int64_t samples, double gradients, double exchanged);
  // What this rank counts and what the others do.
  StepSums over_ranks(const StepSums& mine) const;
  Metrics metrics_of(const StepSums&, int64_t samples, double loss, const StepResult&) const;
  void dump_gradients();

  Stream stream_, dry_;
  Optimizer optimizer_;
  Share share_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::unique_ptr<Parts> parts_;  // of the step under way
  int64_t skipped_ = 0, skipped_in_a_row_ = 0;
};

}  // namespace furlong
