// How a model is spread over GPUs, and what of it one of them holds.
#pragma once
#include <string>
#include <vector>

#include "model/weights.h"

namespace furlong {

// Megatron's mesh (parallel/mesh.h) over so many GPUs.
struct PlanLayout {
  int64_t tensor = 1, pipeline = 1, context = 1, expert = 1, expert_tensor = 1;
  int64_t gpus = 1;
  ParallelSizes sizes() const { return {tensor, pipeline, context, expert, expert_tensor}; }
  int64_t data() const { return gpus / (tensor * pipeline * context); }
  int64_t expert_data() const { return gpus / (pipeline * expert * expert_tensor); }
};

// What does not divide: one sentence each, none when the layout is sound.
std::vector<std::string> layout_problems(const ModelConfig&, const PlanLayout&);

// Numbers and bytes of the stage that holds most. `part`: of the MTP head only, or without it.
struct RankSize {
  int64_t dense = 0, experts = 0;  // numbers
  uint64_t bytes = 0;              // as Weights holds them in `dtype`
  uint64_t largest = 0;            // numbers of the largest tensor
  uint64_t largest_part = 0;       // of the largest layer (or embedding, head, MTP head)
};
RankSize size_of_rank(const ModelConfig&, const PlanLayout&, DType dtype, std::optional<bool> only_mtp = std::nullopt);

// The model that one rank computes: its heads, its widths, its layers, its experts. With experts spread, as many rows
// arrive on average as leave, so that the rows of a micro-batch stay what they are.
ModelConfig rank_model(const ModelConfig&, const PlanLayout&);

}  // namespace furlong
