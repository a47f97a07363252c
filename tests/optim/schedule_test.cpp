// The learning rate's courses against their formulas, at the points where one piece meets the next.
#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "base/error.h"

namespace furlong {
namespace {

// 2 steps of warm-up from 0.2 to 1, then down to 0.1 at step 10.
LrSchedule down(LrDecay decay) {
  return {.min_lr = 0.1, .warmup_steps = 2, .warmup_init = 0.2, .decay = decay, .decay_steps = 10};
}

void expect_rates(const LrSchedule& schedule, const std::vector<double>& want) {
  for (size_t i = 0; i < want.size(); i++) {
    EXPECT_NEAR(schedule.rate(1, static_cast<int64_t>(i)), want[i], 1e-15) << "after " << i << " steps";
  }
}

TEST(LearningRate, WarmsUpLinearlyThenStays) {
  expect_rates({.warmup_steps = 4, .warmup_init = 0.2}, {0.2, 0.4, 0.6, 0.8, 1, 1, 1});
  expect_rates({.warmup_steps = 2.5}, {0, 0.4, 0.8, 1, 1});  // a fraction of the steps need not be whole
  EXPECT_EQ(LrSchedule{}.rate(0.3, 0), 0.3);
  EXPECT_EQ(LrSchedule{}.rate(0.3, 1000000), 0.3);
}

TEST(LearningRate, FallsLinearly) {
  std::vector<double> want = {0.2, 0.6};
  for (int i = 0; i <= 8; i++) want.push_back(1 - 0.9 * i / 8);
  want.insert(want.end(), {0.1, 0.1});
  expect_rates(down(LrDecay::linear), want);
  // Without a warm-up the first step has the full rate, and the last of a run is above the lowest.
  expect_rates({.decay = LrDecay::linear, .decay_steps = 4}, {1, 0.75, 0.5, 0.25, 0, 0});
}

TEST(LearningRate, FallsAsACosine) {
  const double root = std::sqrt(0.5);  // the cosine of an eighth of a turn
  expect_rates({.min_lr = 0.2, .decay = LrDecay::cosine, .decay_steps = 4},
               {1, 0.6 + 0.4 * root, 0.6, 0.6 - 0.4 * root, 0.2, 0.2});
  std::vector<double> want = {0.2, 0.6};
  for (int i = 0; i <= 8; i++) want.push_back(0.1 + 0.45 * (1 + std::cos(std::numbers::pi * i / 8)));
  expect_rates(down(LrDecay::cosine), want);
}

TEST(LearningRate, FallsAsAnInverseRoot) {
  std::vector<double> want = {0.2, 0.6};
  for (int i = 2; i <= 10; i++) want.push_back(std::sqrt(2.0 / i));
  want.insert(want.end(), {0.1, 0.1});
  expect_rates(down(LrDecay::inverse_square_root), want);
  LrSchedule high = down(LrDecay::inverse_square_root);
  high.min_lr = 0.7;
  expect_rates(high, {0.2, 0.6, 1, std::sqrt(2.0 / 3), std::sqrt(0.5), 0.7, 0.7});
}

TEST(LearningRate, WsdStaysThenFalls) {
  for (const auto& [decay, left] :
       {std::pair(WsdDecay::linear, std::vector<double>{1, 0.75, 0.5, 0.25, 0}),
        std::pair(WsdDecay::cosine,
                  std::vector<double>{1, 0.5 + 0.5 * std::sqrt(0.5), 0.5, 0.5 - 0.5 * std::sqrt(0.5), 0}),
        std::pair(WsdDecay::exponential, std::vector<double>{1, 2 * std::pow(2, -0.25) - 1, 2 * std::pow(2, -0.5) - 1,
                                                             2 * std::pow(2, -0.75) - 1, 0}),
        std::pair(WsdDecay::minus_sqrt, std::vector<double>{1, 0.5, 1 - std::sqrt(0.5), 1 - std::sqrt(0.75), 0})}) {
    LrSchedule schedule = down(LrDecay::wsd);
    schedule.wsd_decay = decay;
    schedule.wsd_steps = 4;
    std::vector<double> want = {0.2, 0.6, 1, 1, 1, 1};
    for (const double x : left) want.push_back(0.1 + 0.9 * x);
    want.insert(want.end(), {0.1, 0.1});
    expect_rates(schedule, want);
  }
}

TEST(LearningRate, NamesAreMegatrons) {
  EXPECT_EQ(parse_lr_decay("inverse-square-root"), LrDecay::inverse_square_root);
  EXPECT_EQ(parse_lr_decay("WSD"), LrDecay::wsd);
  EXPECT_EQ(parse_wsd_decay("minus_sqrt"), WsdDecay::minus_sqrt);
  EXPECT_THROW(parse_lr_decay("wsd"), Error);
  EXPECT_THROW(parse_wsd_decay(""), Error);
}

}  // namespace
}  // namespace furlong
