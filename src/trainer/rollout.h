// The rollout phase: prompts to scored trajectories, and evaluation.
#pragma once
#include <map>
#include <utility>

#include "data/trajectory.h"
#include "trainer/session.h"

namespace furlong {

using Metrics = std::vector<std::pair<std::string, double>>;

struct SamplingLimits {
  SampleParams params;
  int64_t max_response = 0;  // tokens
  int64_t max_context = 0;   // prompt and response
  std::vector<int32_t> stop_ids;
  std::function<bool(std::span<const int32_t>)> stop_when;
  bool routes = false;  // trajectories get their routes
};

SamplingLimits rollout_limits(const Session&, const Settings&);
SamplingLimits eval_limits(const Session&, const Settings&);

// Samples and scores the drawn prompts: n_samples trajectories each, in order of (draw, sample). A response that no
// rule could judge has no reward; the first reason is logged. On a mesh the data parallel ranks share out the draws,
// all ranks call with the same ones, and all get all trajectories.
std::vector<Trajectory> generate_trajectories(const Session&, Engine&, const PreparedPrompts&,
                                              const std::vector<PromptCursor::Draw>& draws, int64_t n_samples,
                                              const SamplingLimits&, const Scorer*, const std::string& reward_key,
                                              uint64_t seed, int64_t weight_version, const Engine::Progress& = {});

struct EvalSet {
  std::string name;
  PreparedPrompts prompts;
};

// The sets of --eval-prompt-data.
std::vector<EvalSet> load_eval_sets(const Session&, const Settings&);

// eval/{name} (mean reward), -truncated_ratio, -pass@k (unbiased), response lengths. Keys: the same on every call, so
// that two evaluations differ only by the weights.
Metrics evaluate(const Session&, const Settings&, Engine&, const std::vector<EvalSet>&, const Scorer&,
                 std::vector<Trajectory>* kept = nullptr);

// 1 - C(n-c,k)/C(n,k): the unbiased estimate of pass@k from c correct of n (Chen et al., 2021).
double pass_at_k(int64_t n, int64_t c, int64_t k);

}  // namespace furlong
