// What a rollout's trajectories are trained towards: advantages, and the log-probs that a loss compares with.
#pragma once
#include <functional>
#include <span>

#include "rl/advantages.h"
#include "trainer/policy_objective.h"
#include "trainer/rollout.h"
#include "trainer/settings.h"

namespace furlong {

AdvantageOptions advantage_options(const Settings& settings);

// Forward passes over all trajectories, made only where they are needed; one number per response token.
struct Passes {
  std::function<std::vector<std::vector<float>>()> old_log_probs, ref_log_probs;
  std::vector<std::vector<float>> values = {};  // of a critic; empty: none
};

// Of every trajectory, in order. `several`: the rollout is trained on in several optimizer steps, so that the old
// log-probs are not those of the step itself; `reference`: the reference is run (where a trajectory does not bring its
// log-probs). Times and figures of the passes go to `out`.
std::vector<TokenTargets> token_targets(const Settings& settings, std::span<const Trajectory> trajectories,
                                        const Passes& passes, bool several, bool reference, Metrics& out);

}  // namespace furlong
