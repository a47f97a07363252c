// The rollout phase: prompts to scored trajectories.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "data/trajectory.h"
#include "trainer/groups.h"

namespace furlong {

using Metrics = std::vector<std::pair<std::string, double>>;

SamplingLimits rollout_limits(const Session&, const Settings&);
// The most tokens of prompt and response.
int64_t context_limit(const Session&, const Settings&);
// The checkpoint's stop ids and these.
std::vector<int32_t> stop_ids_with(const Session&, const Settings&, const Integers& more);

// Where rewards come from by the settings. `directory`: for the standard error of commands.
JudgeOptions judge_options(const Settings&, const std::string& directory);

// What answers the model's turns by the settings, or nothing. Throws Error(Exit::usage) where ranks share a batch, and
// without a chat template.
std::unique_ptr<CallPool> make_environment(const Settings&, const Session&, const std::string& directory);

// Samples and judges the drawn prompts: task.samples trajectories each, in order of (draw, sample). A response that
// nobody could judge has no reward; the first reason is logged. On a mesh the data parallel ranks share out the draws,
// all ranks call with the same ones, and all get all trajectories.
std::vector<Trajectory> generate_trajectories(const Session&, Engine&, const PreparedPrompts&,
                                              const std::vector<PromptCursor::Draw>& draws, const RolloutTask&,
                                              const Engine::Progress& = {});

}  // namespace furlong
