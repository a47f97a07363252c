#include "trainer/policy_objective.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace furlong {

PolicyObjective::PolicyObjective(const PolicyLossOptions& options, const std::vector<const Trajectory*>& trajectories,
                                 const std::vector<TokenTargets>& targets, const std::vector<LossRow>& rows)
    : options_(options), trajectories_(trajectories), targets_(targets), rows_(rows), samples_(targets.size()) {
  for (const LossRow& row : rows_) samples_[static_cast<size_t>(row.sample)].tokens++;
  if (options_.sequence_ratio && !needs_log_probs()) sum_derivatives({});
}

// Without old log-probs every log-ratio is 0, whatever the policy.
bool PolicyObjective::needs_log_probs() const {
  if (!may_need_log_probs(options_)) return false;
  if (options_.sequence_ratio && options_.importance != Importance::none) return true;
  return std::any_of(rows_.begin(), rows_.end(), [&](const LossRow& row) {
    return targets_[static_cast<size_t>(row.sample)].old_log_probs.has_value();
  });
}

void PolicyObjective::set_log_probs(std::span<const double> log_probs) {
  CHECK(log_probs.size() == rows_.size(), "{} log-probs of {} rows", log_probs.size(), rows_.size());
  for (size_t i = 0; i < rows_.size(); i++) {
    const auto& old = targets_[static_cast<size_t>(rows_[i].sample)].old_log_probs;
    Sample& sample = samples_[static_cast<size_t>(rows_[i].sample)];
    if (old) {
      sample.log_ratio += (log_probs[i] - static_cast<double>((*old)[static_cast<size_t>(rows_[i].offset)])) /
                          static_cast<double>(sample.tokens);
    }
  }
  for (Sample& sample : samples_) {
    if (!std::isfinite(sample.log_ratio)) sample.log_ratio = 0;
  }
  if (options_.sequence_ratio) sum_derivatives(log_probs);
}

void PolicyObjective::sum_derivatives(std::span<const double> log_probs) {
  for (size_t i = 0; i < rows_.size(); i++) {
    const TokenLoss loss = token_loss(inputs(i, log_probs.empty() ? 0 : log_probs[i]), options_);
    Sample& sample = samples_[static_cast<size_t>(rows_[i].sample)];
    sample.d_log_prob += rows_[i].weight * loss.d_log_ratio / static_cast<double>(sample.tokens);
  }
}

TokenInputs PolicyObjective::inputs(size_t i, double log_prob) const {
  const auto number = static_cast<size_t>(rows_[i].sample), offset = static_cast<size_t>(rows_[i].offset);
  const Sample& sample = samples_[number];
  const TokenTargets& target = targets_[number];
  const Trajectory& t = *trajectories_[number];
  TokenInputs in{.log_prob = log_prob, .advantage = target.advantages.empty() ? 0 : target.advantages[offset]};
  if (target.old_log_probs) in.old_log_prob = (*target.old_log_probs)[offset];
  if (target.ref_log_probs) in.ref_log_prob = (*target.ref_log_probs)[offset];
  if (!t.rollout_log_probs.empty()) in.sampled_log_prob = t.rollout_log_probs[offset];
  if (options_.sequence_ratio) in.sequence_log_ratio = sample.log_ratio;
  if (!target.weights.empty()) in.scale = target.weights[offset];
  if (options_.divisor > 0) in.scale *= static_cast<double>(sample.tokens) / options_.divisor;
  in.rejected = !target.kept.empty() && target.kept[offset] == 0;
  in.dropped = options_.opsm_delta && in.advantage < 0 && -sample.log_ratio > *options_.opsm_delta;
  return in;
}

double PolicyObjective::derivative(size_t i, const TokenLoss& loss) const {
  if (!options_.sequence_ratio) return rows_[i].weight * loss.d_log_prob;
  return samples_[static_cast<size_t>(rows_[i].sample)].d_log_prob +
         rows_[i].weight * options_.kl_loss_coef * loss.d_kl;
}

}  // namespace furlong
