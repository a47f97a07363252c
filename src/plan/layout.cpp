#include "plan/layout.h"

#include <algorithm>
#include <map>

namespace furlong {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t alignment = 64;  // of a tensor in Weights, bytes

}  // namespace

std::vector<std::string> layout_problems(const ModelConfig& c, const PlanLayout& l) {
  std::vector<std::string> problems = layout_problems(c, l.sizes());
  if (std::string problem = mesh_problem(l.sizes(), l.gpus); !problem.empty()) {
    problems.insert(problems.begin(), std::move(problem));
  }
  return problems;
}

RankSize size_of_rank(const ModelConfig& c, const PlanLayout& l, DType dtype, std::optional<bool> only_mtp) {
  RankSize most;
  const int64_t in_stage = l.gpus / l.pipeline;
  for (int64_t stage = 0; stage < l.pipeline; stage++) {
    RankSize size;
    std::map<int, uint64_t> parts;
    // The last rank of a stage holds the larger share where one does not divide.
    for (const auto& spec : tensor_registry(c, mesh_rank(l.sizes(), (stage + 1) * in_stage - 1, l.gpus))) {
      if (!spec.here || (only_mtp && *only_mtp != spec.mtp)) continue;
      const int64_t numbers = spec.numel();
      const DType t = spec.always_f32 && dtype == DType::bf16 ? DType::f32 : dtype;
      (spec.split == Split::expert ? size.experts : size.dense) += numbers;
      size.bytes += static_cast<uint64_t>(ceil_div(numbers * static_cast<int64_t>(size_of(t)), alignment) * alignment);
      size.largest = std::max(size.largest, static_cast<uint64_t>(numbers));
      size.largest_part = std::max(size.largest_part, parts[spec.part] += static_cast<uint64_t>(numbers));
    }
    if (size.bytes > most.bytes) most = size;
  }
  return most;
}

ModelConfig rank_model(const ModelConfig& c, const PlanLayout& l) {
  ModelConfig r = c;
  r.vocab_size = ceil_div(c.vocab_size, l.tensor);
  r.num_heads = ceil_div(c.num_heads, l.tensor);
  r.num_kv_heads = std::max<int64_t>(1, c.num_kv_heads / l.tensor);
  r.linear_num_key_heads = ceil_div(c.linear_num_key_heads, l.tensor);
  r.linear_num_value_heads = ceil_div(c.linear_num_value_heads, l.tensor);
  r.intermediate_size = ceil_div(c.intermediate_size, l.tensor);
  r.num_experts = std::max(c.experts_per_token, ceil_div(c.num_experts, l.expert));
  r.moe_intermediate_size = ceil_div(c.moe_intermediate_size, l.expert_tensor);
  r.num_layers = ceil_div(c.num_layers, l.pipeline);
  r.full_attention.resize(static_cast<size_t>(r.num_layers));
  return r;
}

}  // namespace furlong
