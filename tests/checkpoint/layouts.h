// A small model that every layout can split, the layouts, and where the numbers of a rank's tensors belong in the
// whole.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "model/weights.h"

namespace furlong {

inline ModelConfig splittable_config() {
  ModelConfig c;
  c.vocab_size = 13;
  c.hidden_size = 6;
  c.num_layers = 4;
  c.full_attention = {false, false, true, false};
  c.num_heads = 8;
  c.num_kv_heads = 2;
  c.head_dim = c.rotary_dim = 2;
  c.linear_num_key_heads = 4;
  c.linear_num_value_heads = 8;
  c.linear_key_head_dim = 2;
  c.linear_value_head_dim = 3;
  c.num_experts = 4;
  c.experts_per_token = 2;
  c.moe_intermediate_size = 6;
  c.shared_intermediate_size = 5;
  c.mtp_num_layers = 1;
  return c;
}

struct Layout {
  int ranks;
  ParallelSizes sizes;
  MeshRank place(int rank) const { return mesh_rank(sizes, rank, ranks); }
};

inline const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {1, {}},
      {2, {}},
      {5, {}},
      {2, {.tensor = 2}},
      {4, {.tensor = 4}},  // more ranks than key and value heads
      {4, {.tensor = 2, .pipeline = 2}},
      {4, {.pipeline = 2, .expert = 2}},
      {4, {.context = 2, .expert = 2}},
      {4, {.expert = 4}},
      {4, {.expert = 2, .expert_tensor = 2}},
      {3, {.expert_tensor = 3}},
      {4, {.pipeline = 4}},
      {8, {.tensor = 2, .context = 2, .expert = 4}},
      {8, {.tensor = 2, .pipeline = 2, .expert = 2}},
      {8, {.tensor = 4, .expert = 2, .expert_tensor = 2}},
  };
  return all;
}

inline std::string text_of(const Layout& l) {
  return fmt::format("{} ranks, TP {} PP {} CP {} EP {} ETP {}", l.ranks, l.sizes.tensor, l.sizes.pipeline,
                     l.sizes.context, l.sizes.expert, l.sizes.expert_tensor);
}

// An owner rule as the optimizer has it: those that hold the same numbers get a block each.
inline std::function<Range(const TensorSpec&)> owned_by(const ModelConfig& config, const MeshRank& place) {
  return [config, place](const TensorSpec& spec) {
    if (spec.copied) return Range{};
    const auto holders = holders_of(config, spec, place);
    const auto at = std::find(holders.begin(), holders.end(), place.stage_rank()) - holders.begin();
    int64_t numel = 1;
    for (const int64_t d : spec.shape) numel *= d;
    return block_of(numel, at, std::ssize(holders));
  };
}

// By number of a rank's tensor its place in the whole one.
inline std::vector<int64_t> places_of(const TensorSpec& spec) {
  std::vector<int64_t> places;
  for_each_run(spec, [&](int64_t, int64_t full_first, int64_t count) {
    for (int64_t i = 0; i < count; i++) places.push_back(full_first + i);
  });
  if (!spec.owned) return places;
  return {places.begin() + spec.owned->begin, places.begin() + spec.owned->end};
}

// Whether a rank's weights are the very numbers that `whole` has in their places. Of two parts of the model, one may be
// undefined in both.
inline ::testing::AssertionResult is_part_of(const Weights& part, const Weights& whole) {
  for (size_t t = 0; t < part.tensors().size(); t++) {
    const Tensor &x = part.tensors()[t], &y = whole.tensors()[t];
    const TensorSpec& spec = part.specs()[t];
    if (x.defined() != (y.defined() && spec.here))
      return ::testing::AssertionFailure() << spec.name << " is there on one side only";
    if (!x.defined()) continue;
    if (x.dtype() != y.dtype()) return ::testing::AssertionFailure() << spec.name << " differs in dtype";
    const auto places = places_of(spec);
    if (std::ssize(places) != x.numel()) return ::testing::AssertionFailure() << spec.name << " has another size";
    const size_t width = size_of(x.dtype());
    for (size_t i = 0; i < places.size(); i++) {
      if (std::memcmp(static_cast<const char*>(x.data()) + i * width,
                      static_cast<const char*>(y.data()) + static_cast<size_t>(places[i]) * width, width) != 0)
        return ::testing::AssertionFailure() << spec.name << ": number " << i << " is not " << places[i];
    }
  }
  return ::testing::AssertionSuccess();
}

}  // namespace furlong
