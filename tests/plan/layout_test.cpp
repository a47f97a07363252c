// What one rank of a layout holds.
#include "plan/layout.h"

#include <gtest/gtest.h>

#include "plan/shapes.h"

namespace furlong {
namespace {

int64_t numbers(const RankSize& r) { return r.dense + r.experts; }

TEST(Layout, OneGpuHoldsTheModelAsWeightsDo) {
  const ModelConfig c = toy();
  for (const DType t : {DType::f32, DType::bf16}) {
    EXPECT_EQ(size_of_rank(c, {}, t).bytes, Weights(c, t).bytes());
    EXPECT_EQ(size_of_rank(c, {}, t, false).bytes, Weights(c, t, Device::cpu, false).bytes());
    EXPECT_EQ(size_of_rank(c, {}, t, true).bytes, Weights(c, t, Device::cpu, true).bytes());
    EXPECT_EQ(Weights::outline(c, t).bytes(), Weights(c, t).bytes());
  }
}

TEST(Layout, TheTrueModel) {
  const RankSize whole = size_of_rank(qwen35(), {}, DType::bf16);
  // performance.md 2.1: 35,505 million with the MTP layer, of them 33,017 in routed experts.
  EXPECT_NEAR(static_cast<double>(numbers(whole)) / 1e6, 35505, 2);
  EXPECT_NEAR(static_cast<double>(whole.experts) / 1e6, 805.3 * 41, 2);
  const RankSize eight = size_of_rank(qwen35(), {.expert = 8, .gpus = 8}, DType::bf16);
  EXPECT_EQ(eight.experts * 8, whole.experts);
  EXPECT_EQ(eight.dense, whole.dense);
}

// Parameters of the released dense models, text and MTP head.
TEST(Layout, TheDenseModels) {
  const std::tuple<const char*, int64_t, int64_t> models[] = {
      {"4b", 4'205'751'296, 120'599'552}, {"9b", 8'953'803'264, 243'290'624}, {"27b", 26'895'998'464, 424'699'392}};
  for (const auto& [name, text, mtp] : models) {
    const ModelConfig c = make_preset(name, {}).config;
    EXPECT_EQ(numbers(size_of_rank(c, {}, DType::bf16, false)), text) << name;
    EXPECT_EQ(numbers(size_of_rank(c, {}, DType::bf16, true)), mtp) << name;
    EXPECT_EQ(size_of_rank(c, {}, DType::bf16).experts, 0) << name;
    EXPECT_TRUE(layout_problems(c, {.tensor = 4, .pipeline = 2, .context = 2, .gpus = 16}).empty()) << name;
    EXPECT_EQ(layout_problems(c, {.expert = 2, .gpus = 2}).size(), 1u) << name;
    EXPECT_EQ(rank_model(c, {.tensor = 4, .gpus = 4}).intermediate_size * 4, c.intermediate_size) << name;
  }
  // The tied embedding lies on the first stage and, as the head, on the last.
  const ModelConfig c = make_preset("4b", {}).config;
  const PlanLayout l{.pipeline = 2, .gpus = 2};
  for (int64_t stage = 0; stage < 2; stage++) {
    const auto specs = tensor_registry(c, mesh_rank(l.sizes(), stage, 2));
    EXPECT_TRUE(specs.front().here);
    EXPECT_EQ(specs.front().copied, stage == 1);
  }
}

TEST(Layout, TheLargestStageCounts) {
  const ModelConfig c = qwen35();
  const PlanLayout l{.pipeline = 3, .gpus = 3};
  std::vector<int64_t> stages(3);
  for (int64_t stage = 0; stage < 3; stage++) {
    for (const auto& spec : tensor_registry(c, mesh_rank(l.sizes(), stage, 3))) {
      if (spec.here) stages[static_cast<size_t>(stage)] += spec.numel();
    }
  }
  EXPECT_EQ(numbers(size_of_rank(c, l, DType::bf16)), *std::max_element(stages.begin(), stages.end()));
}

TEST(Layout, WhatDoesNotDivideIsNamed) {
  const ModelConfig c = qwen35();
  EXPECT_TRUE(layout_problems(c, {.expert = 8, .gpus = 8}).empty());
  EXPECT_TRUE(layout_problems(c, {.tensor = 2, .context = 2, .expert = 8, .gpus = 8}).empty());
  EXPECT_EQ(layout_problems(c, {.tensor = 3, .gpus = 8}).size(), 5u);  // GPUs and every kind of head
  EXPECT_EQ(layout_problems(c, {.expert = 6, .gpus = 6}).size(), 1u);
  EXPECT_EQ(layout_problems(c, {.pipeline = 64, .gpus = 64}).size(), 1u);
}

TEST(Layout, ARankComputesItsPart) {
  const ModelConfig r = rank_model(qwen35(), {.tensor = 4, .pipeline = 2, .expert = 8, .gpus = 64});
  EXPECT_EQ(r.num_heads, 4);
  EXPECT_EQ(r.num_kv_heads, 1);
  EXPECT_EQ(r.linear_num_value_heads, 8);
  EXPECT_EQ(r.num_layers, 20);
  EXPECT_EQ(r.num_experts, 32);
  EXPECT_EQ(r.hidden_size, 2048);
  EXPECT_EQ(rank_model(toy(), {.expert = 8, .gpus = 8}).num_experts, toy().experts_per_token);
}

}  // namespace
}  // namespace furlong
