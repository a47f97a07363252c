#include "rl/advantages.h"

#include <cmath>
#include <map>

#include "base/check.h"
#include "base/error.h"

namespace furlong {
namespace {

bool by_group(Estimator e) {
  return e == Estimator::grpo || e == Estimator::gspo || e == Estimator::reinforce_plus_plus_baseline;
}

size_t length_of(const Trajectory& t) { return static_cast<size_t>(t.response_length); }

// -kl_coef k at each token, and the reward at the last one that is masked in.
std::vector<double> token_rewards(const Trajectory& t, const std::vector<double>& kl, double kl_coef, double reward) {
  std::vector<double> rewards(length_of(t), 0.0);
  for (size_t i = 0; i < kl.size(); i++) rewards[i] = -kl_coef * kl[i];
  for (size_t i = rewards.size(); i-- > 0;) {
    if (t.loss_mask[i] == 0) continue;
    rewards[i] += reward;
    break;
  }
  return rewards;
}

// Advantages of the masked-in tokens; masked ones are no steps of the process.
std::vector<double> estimate(const Trajectory& t, const std::vector<double>& rewards, const std::vector<double>& values,
                             const AdvantageOptions& o) {
  std::vector<double> advantages(rewards.size(), 0.0);
  double next_value = 0, advantage = 0;
  for (size_t i = rewards.size(); i-- > 0;) {
    if (t.loss_mask[i] == 0) continue;
    advantage = rewards[i] + o.gamma * next_value - values[i] + o.gamma * o.lambda * advantage;
    next_value = values[i];
    advantages[i] = advantage;
  }
  return advantages;
}

// Of one scored sample.
std::vector<double> advantages_of(const Trajectory& t, double reward, const std::vector<double>& kl,
                                  const std::vector<double>& values, const AdvantageOptions& o) {
  std::vector<double> a(length_of(t), reward);
  switch (o.estimator) {
    case Estimator::grpo:
    case Estimator::gspo: break;
    case Estimator::reinforce_plus_plus_baseline:
      for (size_t i = 0; i < kl.size(); i++) a[i] -= o.kl_coef * kl[i];
      break;
    case Estimator::reinforce_plus_plus: {
      a = token_rewards(t, kl, o.kl_coef, reward);
      for (size_t i = a.size(); i-- > 1;) a[i - 1] += o.gamma * a[i];
      break;
    }
    case Estimator::ppo: a = estimate(t, token_rewards(t, kl, o.kl_coef, reward), values, o); break;
  }
  return a;
}

void whiten(std::span<const Trajectory> trajectories, TokenNumbers& advantages) {
  double sum = 0, n = 0;
  const auto each = [&](auto&& f) {
    for (size_t s = 0; s < trajectories.size(); s++) {
      if (!trajectories[s].reward) continue;
      for (size_t i = 0; i < advantages[s].size(); i++) f(advantages[s][i], trajectories[s].loss_mask[i] != 0);
    }
  };
  each([&](double a, bool in) {
    sum += in ? a : 0;
    n += in;
  });
  if (n == 0) return;
  const double mean = sum / n;
  double squares = 0;
  each([&](double a, bool in) { squares += in ? (a - mean) * (a - mean) : 0; });
  const double scale = 1 / std::sqrt(squares / (n >= 2 ? n - 1 : 1) + 1e-8);
  each([&](double& a, bool) { a = (a - mean) * scale; });
}

}  // namespace

Estimator parse_estimator(const std::string& name) {
  if (name == "grpo") return Estimator::grpo;
  if (name == "gspo") return Estimator::gspo;
  if (name == "reinforce_plus_plus") return Estimator::reinforce_plus_plus;
  if (name == "reinforce_plus_plus_baseline") return Estimator::reinforce_plus_plus_baseline;
  if (name == "ppo") return Estimator::ppo;
  fail(Exit::usage,
       "--advantage-estimator {}: one of grpo, gspo, reinforce_plus_plus, reinforce_plus_plus_baseline, ppo wanted",
       name);
}

std::vector<double> group_advantages(std::span<const Trajectory> trajectories, const AdvantageOptions& options) {
  std::vector<double> advantages(trajectories.size(), 0.0);
  std::map<int64_t, std::vector<size_t>> groups;
  for (size_t i = 0; i < trajectories.size(); i++) {
    if (trajectories[i].reward) groups[trajectories[i].group_index].push_back(i);
  }
  const bool normalise = options.normalise && by_group(options.estimator);
  const bool divide = options.divide_by_std && options.estimator != Estimator::reinforce_plus_plus_baseline;
  for (const auto& [group, members] : groups) {
    if (!normalise) {
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
    const double divisor = divide && deviation > 0 ? deviation + 1e-6 : 1.0;
    for (const size_t i : members) advantages[i] = (*trajectories[i].reward - mean) / divisor;
  }
  return advantages;
}

TokenAdvantages token_advantages(std::span<const Trajectory> trajectories, const AdvantageOptions& options,
                                 const TokenNumbers& kl, const TokenNumbers& values) {
  CHECK(options.estimator != Estimator::ppo || values.size() == trajectories.size(), "ppo without values");
  const std::vector<double> rewards = group_advantages(trajectories, options);
  const std::vector<double> none;
  TokenAdvantages out;
  for (size_t s = 0; s < trajectories.size(); s++) {
    const Trajectory& t = trajectories[s];
    const auto& value = values.empty() ? none : values[s];
    out.advantages.push_back(t.reward ? advantages_of(t, rewards[s], kl.empty() ? none : kl[s], value, options)
                                      : std::vector<double>(length_of(t), 0.0));
    out.returns.push_back(out.advantages.back());
    for (size_t i = 0; i < value.size(); i++) {
      if (t.loss_mask[i] != 0) out.returns.back()[i] += value[i];
    }
  }
  if (options.whiten) whiten(trajectories, out.advantages);
  return out;
}

}  // namespace furlong
