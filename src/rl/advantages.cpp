#include "rl/advantages.h"

#include <cmath>
#include <map>

namespace furlong {

std::vector<double> group_advantages(std::span<const Trajectory> trajectories, const AdvantageOptions& options) {
  std::vector<double> advantages(trajectories.size(), 0.0);
  std::map<int64_t, std::vector<size_t>> groups;
  for (size_t i = 0; i < trajectories.size(); i++) {
    if (trajectories[i].reward) groups[trajectories[i].group_index].push_back(i);
  }
  for (const auto& [group, members] : groups) {
    if (!options.normalise) {
      for (const size_t i : members) advantages[i] = *trajectories[i].reward;
      continue;
    }
    if (members.size() < 2) continue;
    const auto n = static_cast<double>(members.size());
    // Differences to the first reward: equal rewards then have exactly their own value as mean.
    const double first = *trajectories[members.front()].reward;
    double mean = 0;
    for (const size_t i : members) mean += (*trajectories[i].reward - first) / n;
    mean += first;
    double squares = 0;
    for (const size_t i : members) squares += std::pow(*trajectories[i].reward - mean, 2);
    const double deviation = std::sqrt(squares / (n - 1));
    const double divisor = options.divide_by_std && deviation > 0 ? deviation + 1e-6 : 1.0;
    for (const size_t i : members) advantages[i] = (*trajectories[i].reward - mean) / divisor;
  }
  return advantages;
}

}  // namespace furlong
