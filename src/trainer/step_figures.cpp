#include "trainer/step_figures.h"

#include "data/rollout_stats.h"

namespace furlong {

double figure_of(const Metrics& metrics, const std::string& name, double otherwise) {
  for (const auto& [key, value] : metrics) {
    if (key == name) return value;
  }
  return otherwise;
}

Metrics staleness(std::span<const Trajectory> trajectories, int64_t version) {
  std::vector<double> versions;
  for (const auto& t : trajectories) versions.push_back(static_cast<double>(t.weight_version));
  const double mean = mean_of(versions);
  return {{"rollout/weight_version", mean}, {"rollout/weight_version_lag", static_cast<double>(version) - mean}};
}

void append_means(Metrics& out, const std::vector<Metrics>& results, bool by_weights) {
  if (results.empty()) return;
  for (const auto& [name, first] : results.front()) {
    if (by_weights && name.starts_with("train/train_rollout_")) {
      out.emplace_back(name, first);
      continue;
    }
    double sum = 0;
    for (const auto& result : results) sum += figure_of(result, name, first);
    out.emplace_back(name, name.ends_with("skipped_steps") ? figure_of(results.back(), name)
                                                           : sum / static_cast<double>(results.size()));
  }
}

}  // namespace furlong
