// The policy's loss over a packed micro-batch. What all tokens of a sample share (GSPO's ratio, the masking of samples
// that have moved too far) is known once the log-probs of all its tokens are; the loss of a token follows.
#pragma once
#include <optional>
#include <span>
#include <vector>

#include "rl/packing.h"
#include "rl/policy_loss.h"

namespace furlong {

// What only the caller knows of each trajectory of a step; numbers are per response token.
struct TokenTargets {
  std::vector<double> advantages;  // empty: 0 throughout
  std::optional<std::vector<float>> old_log_probs = {}, ref_log_probs = {};
  // The old ones are the sampler's own, which say nothing of how far the trainer's are off.
  bool old_is_sampler = false;
  std::vector<double> returns = {}, old_values = {};  // of a critic's step
  // What a correction for the sampler's probabilities says: weights of the policy loss (empty: 1 throughout), and which
  // tokens have any loss (empty: all).
  std::vector<double> weights = {};
  std::vector<uint8_t> kept = {};
};

class PolicyObjective {
 public:
  // Keeps references; `targets` and `trajectories` are those of the whole step.
  PolicyObjective(const PolicyLossOptions& options, const std::vector<const Trajectory*>& trajectories,
                  const std::vector<TokenTargets>& targets, const std::vector<LossRow>& rows);

  // Whether the options can need all log-probs first, and whether these targets do.
  static bool may_need_log_probs(const PolicyLossOptions& o) { return o.sequence_ratio || o.opsm_delta.has_value(); }
  bool needs_log_probs() const;
  // Of all rows, by the current policy.
  void set_log_probs(std::span<const double> log_probs);

  TokenInputs inputs(size_t row, double log_prob) const;
  // Derivative of the step's loss by the row's log-prob; `loss` is that of inputs(row, ...).
  double derivative(size_t row, const TokenLoss& loss) const;
  // The same by the entropy at the row.
  double entropy_derivative(size_t row, const TokenInputs& in) const {
    return in.rejected ? 0 : -rows_[row].weight * options_.entropy_coef;
  }

 private:
  struct Sample {
    double log_ratio = 0;   // the mean of its tokens
    double d_log_prob = 0;  // GSPO: of the step's loss, by each of its log-probs
    int64_t tokens = 0;
  };
  void sum_derivatives(std::span<const double> log_probs);

  const PolicyLossOptions& options_;
  const std::vector<const Trajectory*>& trajectories_;
  const std::vector<TokenTargets>& targets_;
  const std::vector<LossRow>& rows_;
  std::vector<Sample> samples_;  // of the step; only those of the rows are filled
};

}  // namespace furlong
