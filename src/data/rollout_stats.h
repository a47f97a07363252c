// Figures of a rollout that follow from its trajectories alone, under the names that dashboards of such runs know.
#pragma once
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data/trajectory.h"

namespace furlong {

// In this order (an empty span gives nothing):
//   rollout/response_len/{mean,median,max,min}   tokens that the loss mask keeps, per sample
//   rollout/truncated_ratio, rollout/truncated   share of samples cut by the length limit (one figure, two names)
//   rollout/response_lengths, total_lengths      mean tokens of the response; of prompt and response
//   rollout/raw_reward, raw_reward_std           over the scored samples; std with n - 1, 0 for one sample
//   rollout/unscored                             number of samples without a reward
//   rollout/zero_std/count_{r}                   groups whose scored rewards are all equal to r, r rounded to 0.1
//   rollout/zero_std/all_{zero,one}_percentage   groups whose rewards are all exactly 0 (1) / groups, from 0 to 1
//   rollout/frac_reward_zero_std                 groups whose scored rewards are all equal / groups
//   rollout/spec_accept_rate                     mean over samples of accepted / drafted
//   rollout/spec_accept_length                   mean over samples of (accepted + verify steps) / verify steps: each
//                                                verification yields its accepted drafts and one token of the target
// Groups are the samples of one group_index; those with no scored sample are left out. Reward figures are left out
// when nothing is scored, the speculative ones when nothing was drafted. Samples without drafts do not enter the
// speculative means.
std::vector<std::pair<std::string, double>> rollout_metrics(std::span<const Trajectory> trajectories);

// A reward rounded to one decimal, which is always shown: "0.0", "1.0", "-0.5".
std::string reward_bucket(double reward);

// Of values.size() > 0 numbers; an even count's median is the mean of the two middle ones.
double mean_of(std::span<const double> values);
double median_of(std::vector<double> values);
double sample_std_of(std::span<const double> values);  // with n - 1; 0 for one value

}  // namespace furlong
