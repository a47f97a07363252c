// Evaluation: sets of prompts, each with its own samples, lengths, sampling and rule.
#pragma once
#include <string>
#include <vector>

#include "trainer/eval_config.h"
#include "trainer/rollout.h"

namespace furlong {

struct EvalSet {
  EvalSpec spec;
  SamplingLimits limits;
  PreparedPrompts prompts;
};

// The sets of --eval-prompt-data or --eval-config. `judge` must know how to score every row of them.
std::vector<EvalSet> load_eval_sets(const Session&, const Settings&, Judge& judge);

// The longest sequence of these sets, and the most samples of one.
struct EvalWork {
  int64_t longest = 0, requests = 0;
};
EvalWork work_of(const std::vector<EvalSet>& sets);

// For each set eval/{name} (mean reward), -truncated_ratio, -none_reward_ratio, -pass@k (unbiased, with
// --log-passrate), response lengths. Keys: the same on every call, so that two evaluations differ only by the weights.
Metrics evaluate(const Session&, const Settings&, Engine&, const std::vector<EvalSet>&, Judge&,
                 CallPool* environment = nullptr, std::vector<Trajectory>* kept = nullptr);

// 1 - C(n-c,k)/C(n,k): the unbiased estimate of pass@k from c correct of n (Chen et al., 2021).
double pass_at_k(int64_t n, int64_t c, int64_t k);

}  // namespace furlong
