// The trajectories of a rollout as text: groups, samples, and what was written.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/trajectory.h"

namespace furlong {

// Which samples to show; what is not given lets all pass.
struct SampleFilter {
  std::optional<int64_t> group, sample;  // group_index, index
  std::string status;
  std::optional<double> min_reward, max_reward;  // an unscored sample passes neither
  std::string contains;                          // in the response's text
  bool mixed = false;                            // only groups whose scored rewards differ
};
std::vector<const Trajectory*> matching(std::span<const Trajectory> trajectories, const SampleFilter& filter);

// A table of the shown samples under their groups, whose line has the means over the group's shown samples; totals
// below. Rewards, lengths in tokens, status, mean log-prob of sampling, tokens a verification, version of the weights.
std::string sample_table(std::span<const Trajectory* const> shown);

// Prompt, response, label and what else is known of each sample. No character of a text reaches the terminal as a
// control character: they stand as \xNN, but for line ends.
std::string sample_texts(std::span<const Trajectory* const> shown);

}  // namespace furlong
