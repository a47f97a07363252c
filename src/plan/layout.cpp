#include "plan/layout.h"

#include <algorithm>
#include <charconv>
#include <map>

namespace furlong {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// N of "...layers.N.", or -1.
int64_t layer_of(const std::string& name) {
  const size_t at = name.find(".layers.");
  if (at == std::string::npos) return -1;
  int64_t layer = -1;
  std::from_chars(name.data() + at + 8, name.data() + name.size(), layer);
  return layer;
}

bool of_keys_or_values(const std::string& name) {
  return name.ends_with(".k_proj.weight") || name.ends_with(".v_proj.weight");
}

constexpr int64_t alignment = 64;  // of a tensor in Weights, bytes

}  // namespace

std::vector<std::string> layout_problems(const ModelConfig& c, const PlanLayout& l) {
  std::vector<std::string> problems;
  const auto divides = [&](int64_t number, int64_t by, const char* what, const char* sizes) {
    if (by > 0 && number % by != 0)
      problems.push_back(
          fmt::format("{} {} cannot be split by {} {}: change one of these sizes", number, what, sizes, by));
  };
  divides(l.gpus, l.tensor * l.pipeline * l.context, "GPU(s)", "tensor x pipeline x context parallel size");
  divides(l.gpus, l.pipeline * l.expert * l.expert_tensor, "GPU(s)", "pipeline x expert x expert-tensor parallel size");
  divides(c.num_heads, l.tensor, "attention heads", "tensor parallel size");
  if (c.num_kv_heads % l.tensor != 0 && l.tensor % c.num_kv_heads != 0) {
    problems.push_back(
        fmt::format("{} key and value heads cannot be split by tensor parallel size {}", c.num_kv_heads, l.tensor));
  }
  divides(c.linear_num_key_heads, l.tensor, "DeltaNet key heads", "tensor parallel size");
  divides(c.linear_num_value_heads, l.tensor, "DeltaNet value heads", "tensor parallel size");
  divides(c.num_experts, l.expert, "experts", "expert parallel size");
  divides(c.moe_intermediate_size, l.expert_tensor, "numbers of an expert's width", "expert-tensor parallel size");
  if (l.pipeline > c.num_layers) {
    problems.push_back(fmt::format("{} layers are too few for pipeline parallel size {}", c.num_layers, l.pipeline));
  }
  return problems;
}

int64_t stage_of(const ModelConfig& c, const TensorSpec& spec, const PlanLayout& l) {
  if (spec.mtp) return l.pipeline - 1;
  const int64_t layer = layer_of(spec.name);
  if (layer >= 0) return std::min(l.pipeline - 1, layer / ceil_div(c.num_layers, l.pipeline));
  return spec.name.find("embed_tokens") != std::string::npos ? 0 : l.pipeline - 1;
}

int64_t numel_of_rank(const ModelConfig& c, const TensorSpec& spec, const PlanLayout& l) {
  const auto share = [&](int64_t of, int64_t by) { return spec.numel() / std::max<int64_t>(of, 1) * ceil_div(of, by); };
  switch (spec.split) {
    case Split::replicated: return spec.numel();
    case Split::heads:
      if (of_keys_or_values(spec.name)) return share(c.num_kv_heads, l.tensor);
      return share(spec.shape[0], l.tensor);
    case Split::vocab:
    case Split::column: return share(spec.shape[0], l.tensor);
    case Split::row: return share(spec.shape.back(), l.tensor);
    case Split::expert: break;
  }
  return spec.numel() / (c.num_experts * c.moe_intermediate_size) * ceil_div(c.num_experts, l.expert) *
         ceil_div(c.moe_intermediate_size, l.expert_tensor);
}

RankSize size_of_rank(const ModelConfig& c, const PlanLayout& l, DType dtype, std::optional<bool> only_mtp) {
  std::vector<RankSize> stages(static_cast<size_t>(l.pipeline));
  std::map<int64_t, uint64_t> layers;
  for (const auto& spec : tensor_registry(c)) {
    if (only_mtp && *only_mtp != spec.mtp) continue;
    RankSize& stage = stages[static_cast<size_t>(stage_of(c, spec, l))];
    const int64_t numbers = numel_of_rank(c, spec, l);
    const DType t = spec.always_f32 && dtype == DType::bf16 ? DType::f32 : dtype;
    (spec.split == Split::expert ? stage.experts : stage.dense) += numbers;
    stage.bytes += static_cast<uint64_t>(ceil_div(numbers * static_cast<int64_t>(size_of(t)), alignment) * alignment);
    stage.largest = std::max(stage.largest, static_cast<uint64_t>(numbers));
    const int64_t layer = spec.mtp ? c.num_layers : layer_of(spec.name);
    const uint64_t part = layer >= 0 ? layers[layer] += static_cast<uint64_t>(numbers) : static_cast<uint64_t>(numbers);
    stage.largest_part = std::max(stage.largest_part, part);
  }
  return *std::max_element(stages.begin(), stages.end(),
                           [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
}

ModelConfig rank_model(const ModelConfig& c, const PlanLayout& l) {
  ModelConfig r = c;
  r.vocab_size = ceil_div(c.vocab_size, l.tensor);
  r.num_heads = ceil_div(c.num_heads, l.tensor);
  r.num_kv_heads = std::max<int64_t>(1, c.num_kv_heads / l.tensor);
  r.linear_num_key_heads = ceil_div(c.linear_num_key_heads, l.tensor);
  r.linear_num_value_heads = ceil_div(c.linear_num_value_heads, l.tensor);
  r.shared_intermediate_size = ceil_div(c.shared_intermediate_size, l.tensor);
  r.num_experts = std::max(c.experts_per_token, ceil_div(c.num_experts, l.expert));
  r.moe_intermediate_size = ceil_div(c.moe_intermediate_size, l.expert_tensor);
  r.num_layers = ceil_div(c.num_layers, l.pipeline);
  r.full_attention.resize(static_cast<size_t>(r.num_layers));
  return r;
}

}  // namespace furlong
