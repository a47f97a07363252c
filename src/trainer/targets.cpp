#include "trainer/targets.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/check.h"
#include "base/error.h"
#include "rl/mismatch.h"
#include "trainer/options.h"
#include "trainer/step_figures.h"

namespace furlong {
namespace {

using Scores = std::vector<std::vector<float>>;

void fill(std::vector<TokenTargets>& targets, std::optional<std::vector<float>> TokenTargets::*member,
          const std::function<Scores()>& pass, const char* metric, Metrics& out) {
  const bool complete =
      std::all_of(targets.begin(), targets.end(), [&](const TokenTargets& t) { return (t.*member).has_value(); });
  if (complete) return;
  const auto start = std::chrono::steady_clock::now();
  Scores scores = pass();
  for (size_t i = 0; i < targets.size(); i++) {
    if (!(targets[i].*member)) targets[i].*member = std::move(scores[i]);
  }
  out.emplace_back(metric, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

// What the reward's penalty is made of: old policy against reference, token by token.
TokenNumbers divergence(const std::vector<TokenTargets>& targets, KlType type) {
  TokenNumbers kl;
  for (const TokenTargets& t : targets) {
    CHECK(t.old_log_probs && t.ref_log_probs, "a KL penalty without log-probs");
    kl.emplace_back();
    for (size_t i = 0; i < t.old_log_probs->size(); i++) {
      kl.back().push_back(
          kl_estimate(type, static_cast<double>((*t.old_log_probs)[i]) - static_cast<double>((*t.ref_log_probs)[i])));
    }
  }
  return kl;
}

// Means over samples of the means of their masked-in tokens, as everything in rollout/ is.
double mean_over_samples(std::span<const Trajectory> trajectories, const TokenNumbers& numbers) {
  double sum = 0;
  for (size_t s = 0; s < trajectories.size(); s++) {
    double in = 0, n = 0;
    for (size_t i = 0; i < numbers[s].size(); i++) {
      in += trajectories[s].loss_mask[i] != 0 ? numbers[s][i] : 0;
      n += trajectories[s].loss_mask[i];
    }
    sum += in / std::max(n, 1.0);
  }
  return sum / static_cast<double>(std::max<size_t>(1, trajectories.size()));
}

// By how much the sampler's log-probs are off those of `trainer`, over each optimizer step's samples, and what the
// settings do about it.
void correct(const Settings& s, std::span<const Trajectory> trajectories, const Scores& trainer,
             std::vector<TokenTargets>& targets, Metrics& out) {
  std::vector<SampledLogProbs> all;
  for (size_t i = 0; i < trajectories.size(); i++) {
    const Trajectory& t = trajectories[i];
    if (t.rollout_log_probs.size() != t.loss_mask.size()) {
      fail(Exit::input,
           "sample {} of the rollout has no rollout_log_probs, which {} compares with; sample anew, or leave it out",
           t.index, s.get_mismatch_metrics ? "--get-mismatch-metrics" : "--use-tis");
    }
    all.push_back({trainer[i], t.rollout_log_probs, t.loss_mask});
  }
  const auto per_step = static_cast<size_t>(s.global_batch_size.value_or(std::ssize(all)));
  std::vector<Metrics> steps;
  for (size_t from = 0; from == 0 || from + per_step <= all.size(); from += per_step) {
    const auto step = std::span(all).subspan(from, std::min(per_step, all.size() - from));
    Metrics figures = mismatch_figures(step, s.calculate_per_token_loss);
    if (corrects_mismatch(s)) {
      auto corrections = mismatch_corrections(step, mismatch_options(s), figures);
      for (size_t i = 0; i < step.size(); i++) {
        targets[from + i].weights = std::move(corrections[i].weights);
        targets[from + i].kept = std::move(corrections[i].kept);
      }
    }
    for (auto& figure : figures) figure.first = "train/" + figure.first;
    steps.push_back(std::move(figures));
  }
  append_means(out, steps, false);
}

Scores old_log_probs_of(const std::vector<TokenTargets>& targets) {
  Scores scores;
  for (const TokenTargets& t : targets) scores.push_back(*t.old_log_probs);
  return scores;
}

}  // namespace

AdvantageOptions advantage_options(const Settings& s) {
  return {.estimator = parse_estimator(s.advantage_estimator),
          .normalise = !s.disable_rewards_normalization,
          .divide_by_std = !s.disable_grpo_std_normalization,
          .whiten = s.normalize_advantages,
          .kl_coef = s.kl_coef,
          .gamma = s.gamma,
          .lambda = s.lambd};
}

std::vector<TokenTargets> token_targets(const Settings& s, std::span<const Trajectory> trajectories,
                                        const Passes& passes, bool several, bool reference, Metrics& out) {
  std::vector<TokenTargets> targets(trajectories.size());
  for (size_t i = 0; i < trajectories.size(); i++) {
    targets[i].old_log_probs = trajectories[i].log_probs;
    targets[i].ref_log_probs = trajectories[i].ref_log_probs;
    if (s.use_rollout_logprobs) targets[i].old_log_probs = trajectories[i].rollout_log_probs;
    targets[i].old_is_sampler = s.use_rollout_logprobs;
  }
  const bool compares = s.get_mismatch_metrics || corrects_mismatch(s);
  if ((several || s.kl_coef != 0 || compares) && !s.skip_actor_forward_only)
    fill(targets, &TokenTargets::old_log_probs, passes.old_log_probs, "perf/log_probs_time", out);
  if (reference) fill(targets, &TokenTargets::ref_log_probs, passes.ref_log_probs, "perf/ref_log_probs_time", out);
  if (compares) {
    // The sampler's own log-probs say nothing against themselves.
    correct(s, trajectories, s.use_rollout_logprobs ? passes.old_log_probs() : old_log_probs_of(targets), targets, out);
  }
  TokenNumbers kl, values;
  if (s.kl_coef != 0) {
    kl = divergence(targets, parse_kl_type(s.kl_loss_type));
    out.emplace_back("rollout/kl", mean_over_samples(trajectories, kl));
  }
  for (const auto& v : passes.values) values.emplace_back(v.begin(), v.end());
  TokenAdvantages found = token_advantages(trajectories, advantage_options(s), kl, values);
  out.emplace_back("rollout/advantages", mean_over_samples(trajectories, found.advantages));
  out.emplace_back("rollout/returns", mean_over_samples(trajectories, found.returns));
  if (!values.empty()) out.emplace_back("rollout/values", mean_over_samples(trajectories, values));
  for (size_t i = 0; i < targets.size(); i++) {
    targets[i].advantages = std::move(found.advantages[i]);
    if (values.empty()) continue;
    targets[i].returns = std::move(found.returns[i]);
    targets[i].old_values = std::move(values[i]);
  }
  return targets;
}

}  // namespace furlong
