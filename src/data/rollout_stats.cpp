#include "data/rollout_stats.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "base/check.h"

namespace furlong {
namespace {

using Metrics = std::vector<std::pair<std::string, double>>;

void add_lengths(Metrics& metrics, std::span<const Trajectory> trajectories) {
  std::vector<double> kept, responses, totals, truncated;
  for (const Trajectory& t : trajectories) {
    kept.push_back(std::accumulate(t.loss_mask.begin(), t.loss_mask.end(), 0.0));
    responses.push_back(t.response_length);
    totals.push_back(static_cast<double>(t.tokens.size()));
    truncated.push_back(t.status == Trajectory::Status::truncated ? 1 : 0);
  }
  metrics.emplace_back("rollout/response_len/mean", mean_of(kept));
  metrics.emplace_back("rollout/response_len/median", median_of(kept));
  metrics.emplace_back("rollout/response_len/max", *std::max_element(kept.begin(), kept.end()));
  metrics.emplace_back("rollout/response_len/min", *std::min_element(kept.begin(), kept.end()));
  metrics.emplace_back("rollout/truncated_ratio", mean_of(truncated));
  metrics.emplace_back("rollout/truncated", mean_of(truncated));
  metrics.emplace_back("rollout/response_lengths", mean_of(responses));
  metrics.emplace_back("rollout/total_lengths", mean_of(totals));
}

void add_rewards(Metrics& metrics, std::span<const Trajectory> trajectories) {
  std::vector<double> rewards;
  std::map<int64_t, std::vector<double>> groups;
  for (const Trajectory& t : trajectories) {
    if (!t.reward || !std::isfinite(*t.reward)) continue;
    rewards.push_back(*t.reward);
    groups[t.group_index].push_back(*t.reward);
  }
  if (!rewards.empty()) {
    metrics.emplace_back("rollout/raw_reward", mean_of(rewards));
    metrics.emplace_back("rollout/raw_reward_std", sample_std_of(rewards));
  }
  metrics.emplace_back("rollout/unscored", static_cast<double>(trajectories.size() - rewards.size()));
  if (groups.empty()) return;
  std::map<double, std::pair<std::string, double>> buckets;  // ordered by reward
  double zeros = 0, ones = 0, equal = 0;
  for (const auto& [group, values] : groups) {
    const double first = values[0];
    if (!std::all_of(values.begin(), values.end(), [first](double r) { return r == first; })) continue;
    equal++;
    zeros += first == 0 ? 1 : 0;
    ones += first == 1 ? 1 : 0;
    const std::string name = reward_bucket(first);
    auto& bucket = buckets[std::stod(name)];
    bucket.first = name;
    bucket.second++;
  }
  const auto n = static_cast<double>(groups.size());
  for (const auto& [value, bucket] : buckets) {
    metrics.emplace_back("rollout/zero_std/count_" + bucket.first, bucket.second);
  }
  metrics.emplace_back("rollout/zero_std/all_zero_percentage", zeros / n);
  metrics.emplace_back("rollout/zero_std/all_one_percentage", ones / n);
  metrics.emplace_back("rollout/frac_reward_zero_std", equal / n);
}

void add_speculation(Metrics& metrics, std::span<const Trajectory> trajectories) {
  std::vector<double> rates, lengths;
  for (const Trajectory& t : trajectories) {
    if (t.spec_drafted <= 0 || t.spec_verify_steps <= 0) continue;
    const auto accepted = static_cast<double>(t.spec_accepted), steps = static_cast<double>(t.spec_verify_steps);
    rates.push_back(accepted / static_cast<double>(t.spec_drafted));
    lengths.push_back((accepted + steps) / steps);
  }
  if (rates.empty()) return;
  metrics.emplace_back("rollout/spec_accept_rate", mean_of(rates));
  metrics.emplace_back("rollout/spec_accept_length", mean_of(lengths));
}

}  // namespace

std::string reward_bucket(double reward) {
  std::string name = fmt::format("{:.1f}", reward);
  return name == "-0.0" ? "0.0" : name;
}

std::vector<std::pair<std::string, double>> rollout_metrics(std::span<const Trajectory> trajectories) {
  Metrics metrics;
  if (trajectories.empty()) return metrics;
  add_lengths(metrics, trajectories);
  add_rewards(metrics, trajectories);
  add_speculation(metrics, trajectories);
  return metrics;
}

double mean_of(std::span<const double> values) {
  CHECK(!values.empty());
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double median_of(std::vector<double> values) {
  CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

double sample_std_of(std::span<const double> values) {
  const double mean = mean_of(values);
  if (values.size() == 1) return 0;
  double sum = 0;
  for (const double x : values) sum += (x - mean) * (x - mean);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

}  // namespace furlong
