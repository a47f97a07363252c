// What a training step sums over its tokens, and the figures that come of it.
#pragma once
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "rl/policy_loss.h"
#include "trainer/rollout.h"

namespace furlong {

// Weighted sums over the step; weights add up to 1 over its tokens, so that these are means.
struct TokenSums {
  double policy = 0, clipped = 0, kl = 0, entropy = 0, ppo_kl = 0, ratio = 0, weight = 0;
  double abs_diff = 0, rollout_kl = 0, rollout_weight = 0;
  double importance = 0, importance_abs = 0, importance_clipped = 0, dropped = 0;
  double mtp = 0;
  double choices = 0, differing = 0;  // of replayed routes; see RouteDifference
  int64_t tokens = 0;
  bool has_reference = false;
};

struct StepSums : TokenSums {
  // Of each of the step's samples, as far as it has tokens here: how many, their ratios and the squares of these.
  struct Ratios {
    double tokens = 0, sum = 0, squares = 0;
  };
  std::vector<Ratios> ratios;

  void add(const StepSums& other);
  // As if the weights had been these times as large.
  void scale(double by_policy, double by_mtp);
  // Of one token of the step's sample `sample` with this weight in the step's mean.
  void add_policy(size_t sample, double token_weight, const TokenInputs& in, const TokenLoss& loss, double entropy);

  // To another rank and back.
  std::string message() const;
  static StepSums of_message(const std::string& message);

  // (Σw)²/(n Σw²) of a sample's n tokens with ratios w, 1 where all are alike; mean over the step's samples, or tokens.
  double effective_samples(int64_t samples, bool per_token) const;
  // pg_loss and what else is told of a policy's step of so many samples.
  void policy_metrics(Metrics& out, const PolicyLossOptions& loss, bool entropy, int64_t samples, bool per_token) const;
};

}  // namespace furlong
