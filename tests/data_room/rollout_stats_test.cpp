#include "data/rollout_stats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

namespace furlong {
namespace {

Trajectory sample(int64_t group, std::optional<double> reward, int32_t length = 4) {
  Trajectory t;
  t.group_index = group;
  t.reward = reward;
  t.response_length = length;
  t.tokens.assign(static_cast<size_t>(length) + 2, 1);
  t.loss_mask.assign(static_cast<size_t>(length), 1);
  return t;
}

std::map<std::string, double> metrics_of(const std::vector<Trajectory>& all) {
  std::map<std::string, double> map;
  for (const auto& [name, value] : rollout_metrics(all)) {
    EXPECT_TRUE(map.emplace(name, value).second) << name << " twice";
    EXPECT_TRUE(std::isfinite(value)) << name;
  }
  return map;
}

TEST(RolloutStats, Lengths) {
  std::vector<Trajectory> all = {sample(0, 1, 4), sample(0, 0, 10), sample(1, 0, 1), sample(1, 0, 6)};
  all[1].loss_mask[0] = 0;
  all[3].status = Trajectory::Status::truncated;
  const auto m = metrics_of(all);
  EXPECT_EQ(m.at("rollout/response_len/mean"), 5);  // 4, 9, 1, 6
  EXPECT_EQ(m.at("rollout/response_len/median"), 5);
  EXPECT_EQ(m.at("rollout/response_len/max"), 9);
  EXPECT_EQ(m.at("rollout/response_len/min"), 1);
  EXPECT_EQ(m.at("rollout/response_lengths"), 5.25);
  EXPECT_EQ(m.at("rollout/total_lengths"), 7.25);
  EXPECT_EQ(m.at("rollout/truncated_ratio"), 0.25);
  EXPECT_EQ(m.at("rollout/truncated"), 0.25);
  EXPECT_EQ(m.count("rollout/spec_accept_rate"), 0u);
}

TEST(RolloutStats, GroupsWithoutSpread) {
  // Groups: all 0, all 1, mixed, all 0.04 (rounds to 0.0 but is not 0), all -1, and one that is not scored at all.
  const std::vector<Trajectory> all = {sample(0, 0),  sample(0, 0),  sample(1, 1),    sample(1, 1.0),
                                       sample(2, 0),  sample(2, 1),  sample(3, 0.04), sample(3, 0.04),
                                       sample(4, -1), sample(4, {}), sample(5, {}),   sample(5, std::nan(""))};
  const auto m = metrics_of(all);
  EXPECT_EQ(m.at("rollout/zero_std/count_0.0"), 2);
  EXPECT_EQ(m.at("rollout/zero_std/count_1.0"), 1);
  EXPECT_EQ(m.at("rollout/zero_std/count_-1.0"), 1);
  EXPECT_EQ(m.at("rollout/zero_std/all_zero_percentage"), 0.2);
  EXPECT_EQ(m.at("rollout/zero_std/all_one_percentage"), 0.2);
  EXPECT_EQ(m.at("rollout/frac_reward_zero_std"), 0.8);
  EXPECT_EQ(m.at("rollout/unscored"), 3);
  EXPECT_DOUBLE_EQ(m.at("rollout/raw_reward"), 2.08 / 9);
}

TEST(RolloutStats, NothingScored) {
  const auto m = metrics_of({sample(0, {}), sample(0, {})});
  EXPECT_EQ(m.at("rollout/unscored"), 2);
  EXPECT_EQ(m.count("rollout/raw_reward"), 0u);
  EXPECT_EQ(m.count("rollout/frac_reward_zero_std"), 0u);
  EXPECT_TRUE(rollout_metrics({}).empty());
  EXPECT_EQ(metrics_of({sample(0, 3)}).at("rollout/raw_reward_std"), 0);
}

TEST(RolloutStats, Speculation) {
  std::vector<Trajectory> all = {sample(0, 1), sample(0, 1), sample(1, 1)};
  all[0].spec_accepted = 6, all[0].spec_drafted = 12, all[0].spec_verify_steps = 4;  // 0.5, 10 tokens in 4
  all[1].spec_accepted = 0, all[1].spec_drafted = 4, all[1].spec_verify_steps = 4;   // 0, 1
  const auto m = metrics_of(all);
  EXPECT_EQ(m.at("rollout/spec_accept_rate"), 0.25);
  EXPECT_EQ(m.at("rollout/spec_accept_length"), 1.75);
}

TEST(RolloutStats, OrderDoesNotDependOnTheValues) {
  const auto first = rollout_metrics(std::vector<Trajectory>{sample(0, 0), sample(1, 0)});
  EXPECT_EQ(first.front().first, "rollout/response_len/mean");
  EXPECT_EQ(first.back().first, "rollout/frac_reward_zero_std");
}

TEST(Stats, Basics) {
  EXPECT_EQ(median_of({3, 1, 2}), 2);
  EXPECT_EQ(median_of({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(mean_of(std::vector<double>{1, 2, 6}), 3);
  EXPECT_DOUBLE_EQ(sample_std_of(std::vector<double>{1, 2, 3, 4}), std::sqrt(5.0 / 3.0));
}

}  // namespace
}  // namespace furlong
