// A step's figures from those of its parts.
#pragma once
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "data/trajectory.h"
#include "trainer/rollout.h"

namespace furlong {

// The figure of this name.
double figure_of(const Metrics& metrics, const std::string& name, double otherwise = std::nan(""));

// Versions of the weights that sampled a rollout, and how many updates they are behind those that learn from it.
Metrics staleness(std::span<const Trajectory> trajectories, int64_t version);

// Several optimizer steps of one rollout report the mean of their figures, but, where these say how far the trainer is
// off the sampler by the weights as they are (`by_weights`), those: after the first step the weights are others.
void append_means(Metrics& out, const std::vector<Metrics>& results, bool by_weights);

}  // namespace furlong
