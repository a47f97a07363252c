// Advantages from rewards (rl-spec 4).
#pragma once
#include <span>
#include <vector>

#include "data/trajectory.h"

namespace furlong {

struct AdvantageOptions {
  bool normalise = true;      // subtract the group's mean
  bool divide_by_std = true;  // and divide by its standard deviation (n-1) + 1e-6
};

// One advantage per trajectory, the same for all of its tokens: within each group_index, over the scored samples only,
// r - mean, then / (std + 1e-6) where std > 0. An unscored sample gets 0, and so does every sample of a group with
// fewer than two scored ones when normalising.
std::vector<double> group_advantages(std::span<const Trajectory> trajectories, const AdvantageOptions& options);

}  // namespace furlong
