// Advantages from rewards (rl-spec 4).
#pragma once
#include <span>
#include <string>
#include <vector>

#include "data/trajectory.h"

namespace furlong {

enum class Estimator { grpo, gspo, reinforce_plus_plus, reinforce_plus_plus_baseline, ppo };
Estimator parse_estimator(const std::string& name);  // Exit::usage for another name

struct AdvantageOptions {
  Estimator estimator = Estimator::grpo;
  bool normalise = true;      // subtract the group's mean (grpo, gspo, reinforce_plus_plus_baseline)
  bool divide_by_std = true;  // and divide by its standard deviation (n-1) + 1e-6 (grpo, gspo)
  bool whiten = false;        // then whiten over all masked-in tokens
  double kl_coef = 0;         // of the penalty in a token's reward (the two reinforce_plus_plus, ppo)
  double gamma = 1, lambda = 1;
};

// One number per trajectory: within each group_index, over the scored samples only, r - mean, then / (std + 1e-6) where
// std > 0. An unscored sample gets 0, and so does every sample of a group with fewer than two scored ones when
// normalising. Estimators that do not normalise by group have the raw reward.
std::vector<double> group_advantages(std::span<const Trajectory> trajectories, const AdvantageOptions& options);

// Per trajectory, one number per response token. Empty: 0 throughout.
using TokenNumbers = std::vector<std::vector<double>>;

struct TokenAdvantages {
  TokenNumbers advantages;  // whitened where asked for
  TokenNumbers returns;     // what a critic learns; before whitening
};

// With r the number of group_advantages, and k the divergence from the reference at each token:
//   grpo, gspo                    r at every token
//   reinforce_plus_plus_baseline  r - kl_coef k
//   reinforce_plus_plus           sum over u >= t of gamma^(u-t) times the token reward: -kl_coef k, and r at the last
//                                 masked-in token
//   ppo                           generalised advantage estimation (Schulman et al. 2016) of the same token rewards,
//                                 over the masked-in tokens alone; the value after the last one is 0. returns:
//                                 advantage + value
// An unscored sample has advantage 0 everywhere (under ppo its returns are its values) and no part in the whitening,
// (a - mean) / sqrt(variance (n-1) + 1e-8).
TokenAdvantages token_advantages(std::span<const Trajectory> trajectories, const AdvantageOptions& options,
                                 const TokenNumbers& kl = {}, const TokenNumbers& values = {});

}  // namespace furlong
