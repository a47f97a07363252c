// A model run once over packed sequences: forward, losses and backward, with everything it kept.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/model.h"
#include "model/mtp.h"
#include "rl/loss_head.h"

namespace furlong::test {

using Sequences = std::vector<std::vector<int32_t>>;

struct PassOptions {
  int threads = 1;
  Recompute recompute = Recompute::none;
  bool backward = true;
  bool mtp = true;        // also the MTP head and its loss
  bool trunk = true;      // the trunk's loss and backward
  double row_weight = 0;  // of each token's loss; 0: 1 / the number of tokens, so that the loss is a mean
  double temperature = 1;
  double entropy = 0;  // the loss is -log p + entropy * H
  const Mesh* mesh = &Mesh::alone();
  const Sequences* plan = nullptr;  // sequences whose need of memory is that of all; null: those that are run
};

// The trunk's loss is over the next tokens of every sequence, the MTP loss over the tokens after those. Gradients are
// float32 (float64 for a float64 model). Over a mesh: weights and sequences are those of this rank, and tensors, losses
// and gradients its part of them.
class Pass {
 public:
  Pass(const ModelConfig& config, const Weights& weights, const Sequences& sequences, const PassOptions& options);
  Pass(const Pass&) = delete;
  Pass& operator=(const Pass&) = delete;

  int64_t start(size_t sequence) const { return starts_[sequence]; }
  Tensor hidden() const { return hidden_; }   // (T,H)
  Tensor mtp_hidden() const { return mtp_; }  // (T,H)
  const ModelSaved& saved() const { return saved_; }
  // (T,H) the residual stream after layer l.
  Tensor after_layer(size_t l) const { return l + 1 < saved_.layers.size() ? saved_.layers[l + 1].input : saved_.last; }
  const MtpSaved& mtp_saved() const { return mtp_saved_; }
  const Weights& grads() const { return grads_; }
  // Per token of the losses, sequences in order.
  const std::vector<double>& log_probs() const { return log_probs_; }
  const std::vector<double>& entropies() const { return entropies_; }
  const std::vector<double>& mtp_log_probs() const { return mtp_log_probs_; }
  double loss() const { return loss_; }
  double mtp_loss() const { return mtp_loss_; }
  // Log-softmax of lm_head(rows of `hidden`), row by row, computed in double from the model's logits.
  std::vector<double> log_softmax(Tensor hidden);

 private:
  void pack(const Sequences& sequences);
  void run(Exec& exec);
  void losses(Exec& exec, const Batch& batch);

  const ModelConfig& config_;
  const Weights& weights_;
  PassOptions options_;
  ThreadPool threads_;
  Arena arena_;
  Weights grads_;
  BatchBuilder builder_;
  std::vector<int64_t> starts_;
  std::vector<int32_t> next_;
  std::vector<HeadRow> rows_, mtp_rows_;
  Tensor hidden_, mtp_;
  ModelSaved saved_;
  MtpSaved mtp_saved_;
  std::vector<double> log_probs_, entropies_, mtp_log_probs_;
  double loss_ = 0, mtp_loss_ = 0;
};

// Numbers of a contiguous float tensor, and its bytes.
std::vector<double> values_of(const Tensor& t);
std::string bytes_of(const Tensor& t);

// The reference checkpoint in tests/data/tiny.
ModelConfig tiny_config();
Weights tiny_weights(const ModelConfig& config, DType dtype);
// The same numbers in float64.
Weights widened(const ModelConfig& config, const Weights& weights);

// Weights of any float dtype such that every part of the model matters: matrices normal with a standard deviation of
// 1/sqrt(columns), norms near their neutral value, decays from slow to fast.
void fill_random(Weights& weights, uint32_t seed);

// A small architecture whose every size differs from the others where the layout allows it.
ModelConfig odd_config();

// Sequences of these lengths; no token of one occurs in another.
Sequences disjoint_sequences(const std::vector<int64_t>& lengths, int64_t vocab, uint32_t seed);

}  // namespace furlong::test
