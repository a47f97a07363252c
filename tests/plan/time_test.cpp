// The limits of performance.md, section 3, from this room's formulas.
#include "plan/time.h"

#include <gtest/gtest.h>

#include "plan/shapes.h"

namespace furlong {
namespace {

double find(const std::vector<PhaseTime>& phases, const std::string& name) {
  for (const auto& p : phases) {
    if (p.name == name) return p.seconds;
  }
  ADD_FAILURE() << name;
  return 0;
}

// The page gives three or four digits.
void expect_close(double got, double wanted) { EXPECT_NEAR(got / wanted, 1, 0.01) << got << " instead of " << wanted; }

TEST(Time, CostOfAToken) {
  const ModelCost m = model_cost(qwen35(), DType::bf16);
  expect_close(m.forward(4096), 6.41e9);
  expect_close(m.forward(8192), 6.74e9);
  expect_close(m.forward(32768), 8.76e9);
  EXPECT_EQ(m.kv_bytes, 20480);
  expect_close(m.state_bytes, 62.9e6);
  expect_close(m.window_bytes, 1.47e6);
}

// Every weight but the embedding is read and used once a token.
TEST(Time, CostOfADenseToken) {
  const ModelConfig c = make_preset("27b", {}).config;
  const ModelCost m = model_cost(c, DType::bf16);
  const double text = 26'895'998'464, embedding = 248320.0 * 5120;
  expect_close(m.dense + m.head, text - embedding);
  EXPECT_EQ(m.expert, 0);
  expect_close(m.linear_flops + m.head_flops, 2 * (text - embedding));
  const TimeInputs in{.model = c, .machine = machine_h200()};
  expect_close(decode_step_seconds(in, 1, 1024), (2 * (text - embedding) + 2 * m.state_bytes) / 4.3e12);
}

TEST(Time, DecodeOnOneGpu) {
  TimeInputs in{.model = qwen35(), .machine = machine_h200()};
  for (const auto& [batch, ms] : {std::pair(1, 1.42), {8, 4.66}, {32, 12.0}, {64, 17.1}, {128, 22.0}, {256, 28.5}}) {
    expect_close(1e3 * decode_step_seconds(in, batch, 4096), ms);
  }
  in.drafts = 2;
  EXPECT_NEAR(accept_length(2), 2.49, 0.005);
  for (const auto& [batch, rate] : {std::pair(1, 873.0), {64, 7793.0}, {256, 20671.0}}) {
    expect_close(accept_length(2) * batch / decode_step_seconds(in, batch, 4096), rate);
  }
}

TEST(Time, TheRecipesStep) {
  TimeInputs in{.model = qwen35(),
                .layout = {.expert = 8, .gpus = 8},
                .machine = machine_h100(),
                .sequences = 256,
                .running = 64,
                .prompt = 204,
                .response = 8192,
                .prompts = 32};
  expect_close(find(step_times(in), "rollout: decode"), 51.5);
  in.machine = machine_h200();
  expect_close(find(step_times(in), "rollout: decode"), 35.9);
  in.machine = machine_h100();
  in.prompt = 200;
  EXPECT_NEAR(find(step_times(in), "training: forward and backward"), 6.9, 0.1);
  in.recompute = true;
  EXPECT_NEAR(find(step_times(in), "training: forward and backward"), 8.9, 0.1);
  EXPECT_NEAR(find(step_times(in), "AdamW"), 0.044, 0.001);
  in.offload = true;
  EXPECT_NEAR(find(step_times(in), "AdamW on the host"), 2.66, 0.02);
  in.response = 4585;
  EXPECT_NEAR(find(step_times(in), "training: expert exchange"), 1.55, 0.02);
}

TEST(Time, OperationsOfASequence) {
  const ModelConfig c = qwen35();
  const ModelCost m = model_cost(c, DType::bf16);
  const auto all = sequence_flops(c, m, 8192, 8192, false);
  expect_close(all.forward, 8192 * 6.74e9);
  EXPECT_EQ(all.training, 3 * all.forward);
  // Only what is sampled needs logits.
  expect_close(all.forward - sequence_flops(c, m, 8192, 192, false).forward, 8000 * 1.017e9);
  // Ten layers of 40 have attention over all tokens before: 4 x 16 heads x 256 a pair of tokens and layer. A count that
  // took all 40 for such would say four times as much.
  const double twice = sequence_flops(c, m, 16384, 0, false).forward,
               once = sequence_flops(c, m, 8192, 0, false).forward;
  expect_close(twice - 2 * once, 8192.0 * 8192.0 * 10 * 4 * 16 * 256);
  // MTP: three times a layer of 27.26 + 3.15 + 0.52 M numbers, its projection's 8.39 M and 8 experts of 3.146 M, and
  // twice the head.
  expect_close((sequence_flops(c, m, 64, 64, true).training - sequence_flops(c, m, 64, 64, false).training) / 64,
               6 * 64.49e6 + 2 * 1.017e9);
}

TEST(Time, MeasuredAcceptanceAndHalves) {
  TimeInputs in{
      .model = qwen35(), .machine = machine_h100(), .sequences = 8, .running = 8, .prompt = 24, .response = 1000};
  in.drafts = 2;
  const double assumed = find(step_times(in), "rollout: decode");
  in.accept = accept_length(2) / 2;
  EXPECT_NEAR(find(step_times(in), "rollout: decode"), 2 * assumed, 1e-9 * assumed);
  in.rolls = false;
  EXPECT_EQ(step_times(in).front().name, "training: forward and backward");
  EXPECT_EQ(machine_cpu(DType::f32, 8).flops, 4 * machine_cpu(DType::f32).flops);
}

// A critic is a second model of the policy's size: all that training takes but for the head, and a pass for its values.
TEST(Time, ACriticHasItsOwnPasses) {
  TimeInputs in{.model = qwen35(), .machine = machine_h100(), .sequences = 8, .prompt = 24, .response = 1000};
  const auto alone = step_times(in);
  in.critic = true;
  in.steps = 2;
  const auto both = step_times(in);
  EXPECT_EQ(both.size(), alone.size() + 3);
  const ModelCost m = model_cost(in.model, in.dtype);
  const double tokens = 8 * 1024, rate = in.machine.flops;
  const double values = find(both, "critic: values"), training = find(both, "critic: forward and backward");
  expect_close(values, tokens * (m.forward(1024) - m.head_flops) / rate);
  EXPECT_EQ(find(both, "training: forward and backward"), find(alone, "training: forward and backward"));
  // The policy's head and its backward are not there.
  expect_close(find(both, "training: forward and backward") - training, 3 * tokens * m.head_flops / rate);
  EXPECT_EQ(find(both, "critic: AdamW"), 2 * find(alone, "AdamW"));
  in.layout = {.expert = 8, .gpus = 8};
  TimeInputs policy = in;
  policy.critic = false;
  const double exchange = find(step_times(policy), "training: expert exchange");
  const double share = 1.0 / 8;
  EXPECT_NEAR(find(step_times(in), "critic: values"), share * values + exchange / 2, 1e-9);
}

TEST(Time, SmallerPacksReadTheWeightsMoreOften) {
  TimeInputs in{.model = qwen35(), .machine = machine_h100(), .sequences = 8, .prompt = 24, .response = 1000};
  const double large = find(step_times(in), "training: forward and backward");
  in.micro_tokens = 1024;
  EXPECT_GT(find(step_times(in), "training: forward and backward"), 2 * large);
}

}  // namespace
}  // namespace furlong
