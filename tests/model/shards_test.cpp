// What the ranks of a mesh hold of a model.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "model/weights.h"

namespace furlong {
namespace {

ModelConfig four_heads() {
  ModelConfig c;
  c.vocab_size = 101;
  c.hidden_size = 32;
  c.num_layers = 5;
  c.full_attention = {false, false, false, true, false};
  c.num_heads = 8;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.rotary_dim = 4;
  c.linear_num_key_heads = 4;
  c.linear_num_value_heads = 8;
  c.linear_key_head_dim = 8;
  c.linear_value_head_dim = 12;
  c.num_experts = 8;
  c.experts_per_token = 2;
  c.moe_intermediate_size = 16;
  c.shared_intermediate_size = 20;
  c.mtp_num_layers = 1;
  c.max_position_embeddings = 4096;
  return c;
}

struct Case {
  ParallelSizes sizes;
  int64_t ranks;
};

const Case cases[] = {{{}, 1},
                      {{.tensor = 2}, 2},
                      {{.tensor = 4, .expert = 2, .expert_tensor = 2}, 4},
                      {{.pipeline = 2, .expert = 4}, 8},
                      {{.tensor = 2, .pipeline = 2, .context = 2, .expert = 2, .expert_tensor = 2}, 16}};

// Every number of every tensor lies on exactly the ranks that holders_of names, and on one rank at least.
TEST(Shards, EveryNumberIsHeldByItsHolders) {
  const ModelConfig c = four_heads();
  for (const Case& layout : cases) {
    ASSERT_TRUE(layout_problems(c, layout.sizes).empty());
    std::map<std::string, std::vector<int>> counts;
    std::map<std::string, std::map<int64_t, std::set<std::vector<int>>>> holders;
    for (int64_t r = 0; r < layout.ranks; r++) {
      const MeshRank place = mesh_rank(layout.sizes, r, layout.ranks);
      for (const auto& spec : tensor_registry(c, place)) {
        if (!spec.here || spec.copied) continue;
        auto& count = counts[spec.name];
        count.resize(static_cast<size_t>(spec.full_numel()));
        const auto mine = holders_of(c, spec, place);
        EXPECT_TRUE(std::find(mine.begin(), mine.end(), place.stage_rank()) != mine.end()) << spec.name;
        int64_t next = 0;
        for_each_run(spec, [&](int64_t first, int64_t full, int64_t n) {
          EXPECT_EQ(first, next) << spec.name;
          next = first + n;
          for (int64_t i = 0; i < n; i++) count[static_cast<size_t>(full + i)]++;
          holders[spec.name][full].insert(mine);
        });
        EXPECT_EQ(next, spec.numel()) << spec.name;
      }
    }
    for (const auto& [name, count] : counts) {
      for (const auto& [first, sets] : holders[name]) {
        ASSERT_EQ(sets.size(), 1u) << name;
        EXPECT_EQ(count[static_cast<size_t>(first)], static_cast<int>(sets.begin()->size())) << name;
      }
      EXPECT_GE(*std::min_element(count.begin(), count.end()), 1) << name;
    }
    EXPECT_EQ(counts.size(), tensor_registry(c).size());
  }
}

TEST(Shards, TheLastStageCopiesTheEmbeddingForTheMtpHead) {
  const ModelConfig c = four_heads();
  for (int64_t stage = 0; stage < 3; stage++) {
    const auto specs = tensor_registry(c, mesh_rank({.pipeline = 3}, stage, 3));
    EXPECT_EQ(specs.front().here, stage != 1);
    EXPECT_EQ(specs.front().copied, stage == 2);
    EXPECT_EQ(specs.back().here, stage == 2);
  }
}

TEST(Shards, OwnedNumbersAreFlat) {
  const ModelConfig c = four_heads();
  const Weights w(c, DType::f32, {.owned = [](const TensorSpec& spec) { return block_of(spec.numel(), 1, 3); }});
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& t) {
        EXPECT_EQ(t.rank(), 1) << spec.name;
        EXPECT_EQ(t.numel(), block_of(spec.full_numel(), 1, 3).size()) << spec.name;
      },
      w);
}

TEST(Shards, WhatCannotBeSplitIsNamed) {
  const ModelConfig c = four_heads();
  EXPECT_TRUE(layout_problems(c, {.tensor = 4, .context = 2}).empty());
  EXPECT_EQ(layout_problems(c, {.tensor = 3}).size(), 4u);  // every kind of head
  EXPECT_EQ(layout_problems(c, {.expert = 3}).size(), 1u);
  EXPECT_EQ(layout_problems(c, {.expert_tensor = 3}).size(), 1u);
  EXPECT_EQ(layout_problems(c, {.pipeline = 6}).size(), 1u);
}

}  // namespace
}  // namespace furlong
