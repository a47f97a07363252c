#include "checkpoint/dist_names.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "base/check.h"

namespace furlong {
namespace {

constexpr std::string_view trunk_layers = "model.language_model.layers.", mtp_layer = "mtp.layers.0.",
                           linear = "linear_attn.";
// Megatron stacks layers in axis 0 of one key when they are all alike; the key then has no number.
constexpr std::string_view numbered_trunk = "decoder.layers.", numbered_mtp = "mtp.layers.";

struct Renamed {
  std::string_view ours;
  std::array<std::string_view, 3> theirs;  // the first is written
};

constexpr std::array<Renamed, 7> outside_layers = {{
    {"model.language_model.embed_tokens.weight", {"embedding.word_embeddings.weight"}},
    {"lm_head.weight", {"output_layer.weight"}},
    {"model.language_model.norm.weight", {"decoder.final_layernorm.weight"}},
    {"mtp.pre_fc_norm_embedding.weight", {"mtp.layers.0.enorm.weight"}},
    {"mtp.pre_fc_norm_hidden.weight", {"mtp.layers.0.hnorm.weight"}},
    {"mtp.fc.weight", {"mtp.layers.0.eh_proj.weight"}},
    {"mtp.norm.weight", {"mtp.layers.0.final_layernorm.weight"}},
}};

constexpr Renamed full_input_norm = {
    "input_layernorm.weight",
    {"self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight", "self_attention.input_layernorm.weight"}};
constexpr Renamed linear_input_norm = {"input_layernorm.weight",
                                       {"self_attention.input_layernorm.weight", "input_layernorm.weight"}};

constexpr std::array<Renamed, 7> inside_layers = {{
    {"post_attention_layernorm.weight", {"pre_mlp_layernorm.weight"}},
    {"self_attn.o_proj.weight", {"self_attention.linear_proj.weight"}},
    {"self_attn.q_norm.weight", {"self_attention.q_layernorm.weight"}},
    {"self_attn.k_norm.weight", {"self_attention.k_layernorm.weight"}},
    {"mlp.gate.weight", {"mlp.router.weight"}},
    {"mlp.shared_expert.down_proj.weight", {"mlp.shared_experts.linear_fc2.weight"}},
    {"mlp.shared_expert_gate.weight", {"mlp.shared_experts.gate_weight"}},
}};

constexpr const char* qkv_key = "self_attention.linear_qkv.weight";
// A dense network's norm is its first matrix's in Megatron; the second spelling is that of layers that keep it apart.
constexpr std::array<Renamed, 2> inside_dense_layers = {{
    {"post_attention_layernorm.weight", {"mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"}},
    {"mlp.down_proj.weight", {"mlp.linear_fc2.weight"}},
}};
constexpr const char* dense_fc1 = "mlp.linear_fc1.weight";
constexpr const char* shared_fc1 = "mlp.shared_experts.linear_fc1.weight";
constexpr const char* experts_key = "mlp.experts.experts.";

DistPlace whole(std::string key, const std::vector<int64_t>& shape, int64_t ours = 0) {
  int64_t numel = 1;
  for (const int64_t d : shape) numel *= d;
  return {std::move(key), shape, {{ours, 0, numel}}};
}

class Namer {
 public:
  Namer(const TensorSpec& spec, const ModelConfig& config) : spec_(spec), c_(config) {}

  std::vector<DistPlaces> run() {
    for (const auto& row : outside_layers) {
      if (spec_.name == row.ours) renamed(row, "");
    }
    if (spec_.name.starts_with(trunk_layers)) {
      const std::string_view rest = std::string_view(spec_.name).substr(trunk_layers.size());
      int64_t layer = 0;
      const auto end = std::from_chars(rest.data(), rest.data() + rest.size(), layer).ptr;
      const std::string prefix = fmt::format("{}{}.", numbered_trunk, layer);
      in_layer(rest.substr(static_cast<size_t>(end - rest.data()) + 1), prefix,
               c_.full_attention[static_cast<size_t>(layer)]);
      stacked(numbered_trunk, layer, c_.num_layers);
    } else if (spec_.name.starts_with(mtp_layer)) {
      const std::string_view rest = std::string_view(spec_.name).substr(mtp_layer.size());
      in_layer(rest, "mtp.layers.0.transformer_layer.", true);
      in_layer(rest, "mtp.layers.0.mtp_model_layer.", true);
    }
    if (spec_.mtp) stacked(numbered_mtp, 0, c_.mtp_num_layers);
    CHECK(!out_.empty(), "no place for {}", spec_.name);
    return std::move(out_);
  }

 private:
  void add(DistPlace place) { out_.push_back({std::move(place)}); }

  void renamed(const Renamed& row, const std::string& prefix) {
    for (const auto key : row.theirs) {
      if (key.empty()) continue;
      add(whole(prefix + std::string(key), spec_.shape));
      out_.back()[0].padded = spec_.split == Split::vocab;
    }
  }

  void in_layer(std::string_view name, const std::string& prefix, bool full) {
    if (name == full_input_norm.ours) return renamed(full ? full_input_norm : linear_input_norm, prefix);
    for (const auto& row : inside_dense_layers) {
      if (c_.dense() && name == row.ours) return renamed(row, prefix);
    }
    for (const auto& row : inside_layers) {
      if (name == row.ours) return renamed(row, prefix);
    }
    if (name.starts_with(linear)) return delta_net(std::string(name), prefix + "self_attention.");
    if (name == "self_attn.q_proj.weight") return qkv(QkvPart::q, prefix);
    if (name == "self_attn.k_proj.weight") return qkv(QkvPart::k, prefix);
    if (name == "self_attn.v_proj.weight") return qkv(QkvPart::v, prefix);
    if (name == "mlp.shared_expert.gate_proj.weight") return half(prefix + shared_fc1, 0, "_w");
    if (name == "mlp.shared_expert.up_proj.weight") return half(prefix + shared_fc1, 1, "_v");
    if (name == "mlp.gate_proj.weight") return half(prefix + dense_fc1, 0, "_w");
    if (name == "mlp.up_proj.weight") return half(prefix + dense_fc1, 1, "_v");
    if (name == "mlp.experts.gate_up_proj") return experts(prefix + experts_key, "linear_fc1.weight", 2);
    if (name == "mlp.experts.down_proj") return experts(prefix + experts_key, "linear_fc2.weight", 1);
    CHECK(false, "no place for {}", spec_.name);
  }

  // Under its own name, or among the rows of the matrix that it is joined in where checkpoints group projections.
  void delta_net(const std::string& name, const std::string& prefix) {
    const JoinedRows& j = spec_.joined;
    if (!c_.grouped_projections || j.name.empty()) return add(whole(prefix + name, spec_.shape));
    const int64_t width = spec_.shape[1];
    DistPlace place{prefix + j.name.substr(j.name.find(linear)), {j.groups * j.group_rows, width}, {}};
    for (const auto& block : j.blocks) {
      for (int64_t g = 0; g < j.groups; g++) {
        place.runs.push_back(
            {(block.first + g * block.rows) * width, (g * j.group_rows + block.at) * width, block.rows * width});
      }
    }
    add(std::move(place));
    add(whole(prefix + name, spec_.shape));
  }

  void qkv(QkvPart part, const std::string& prefix) {
    const int64_t width = spec_.shape[1];
    DistPlace place{prefix + qkv_key,
                    {2 * (c_.num_heads + c_.num_kv_heads) * c_.head_dim, width},
                    qkv_runs(part, c_.num_heads, c_.num_kv_heads, c_.head_dim)};
    for (DistRun& run : place.runs) run = {run.ours * width, run.theirs * width, run.count * width};
    add(std::move(place));
  }

  // The first matrix of a shared expert or a dense network: gate rows, then up rows.
  void half(const std::string& key, int64_t which, const char* alone) {
    const int64_t rows = spec_.shape[0], width = spec_.shape[1], numel = rows * width;
    add({key, {2 * rows, width}, {{0, which * numel, numel}}});
    add(whole(key + alone, spec_.shape));
  }

  void experts(const std::string& prefix, const std::string& name, int64_t halves) {
    const int64_t count = spec_.shape[0], rows = spec_.shape[1], width = spec_.shape[2], numel = rows * width;
    add(whole(prefix + name, spec_.shape));
    out_.back()[0].box = {1, rows / halves, width};
    DistPlaces one_by_one, cut;
    for (int64_t e = 0; e < count; e++) {
      const std::string key = fmt::format("{}{}.{}", prefix, e, name);
      one_by_one.push_back(whole(key, {rows, width}, e * numel));
      cut.push_back(whole(key + "_w", {rows / 2, width}, e * numel));
      cut.push_back(whole(key + "_v", {rows / 2, width}, e * numel + numel / 2));
    }
    out_.push_back(std::move(one_by_one));
    if (halves == 1) return;
    out_.push_back(std::move(cut));
    DistPlaces fused(2);
    for (int64_t h = 0; h < 2; h++) {
      auto& place = fused[static_cast<size_t>(h)];
      place = {prefix + name + (h == 0 ? "_w" : "_v"), {count, rows / 2, width}, {}};
      for (int64_t e = 0; e < count; e++)
        place.runs.push_back({e * numel + h * (numel / 2), e * (numel / 2), numel / 2});
    }
    out_.push_back(std::move(fused));
  }

  // For every way so far, the same with the layers of one key stacked in its axis 0.
  void stacked(std::string_view before, int64_t layer, int64_t layers) {
    const std::string numbered = fmt::format("{}{}.", before, layer);
    const size_t ways = out_.size();
    for (size_t i = 0; i < ways; i++) {
      DistPlaces places = out_[i];
      for (DistPlace& place : places) {
        CHECK(place.key.starts_with(numbered), "{}", place.key);
        int64_t numel = 1;
        for (const int64_t d : place.shape) numel *= d;
        place.key = std::string(before) + place.key.substr(numbered.size());
        place.shape.insert(place.shape.begin(), layers);
        place.box.clear();
        for (DistRun& run : place.runs) run.theirs += layer * numel;
      }
      out_.push_back(std::move(places));
    }
  }

  const TensorSpec& spec_;
  const ModelConfig& c_;
  std::vector<DistPlaces> out_;
};

}  // namespace

std::vector<DistRun> qkv_runs(QkvPart part, int64_t query_heads, int64_t groups, int64_t head_dim) {
  const int64_t d = head_dim, r = query_heads / groups, group = (2 * r + 2) * d;
  std::vector<DistRun> runs;
  for (int64_t g = 0; g < groups; g++) {
    if (part == QkvPart::k) runs.push_back({g * d, g * group + 2 * r * d, d});
    if (part == QkvPart::v) runs.push_back({g * d, g * group + (2 * r + 1) * d, d});
    for (int64_t j = 0; part == QkvPart::q && j < r; j++) {
      const int64_t head = g * r + j;
      runs.push_back({2 * head * d, g * group + j * d, d});
      runs.push_back({(2 * head + 1) * d, g * group + (r + j) * d, d});
    }
  }
  return runs;
}

std::vector<DistPlaces> dist_places(const TensorSpec& spec, const ModelConfig& config) {
  return Namer(spec, config).run();
}

bool is_state_key(std::string_view key) {
  return key.find("optimizer") != std::string_view::npos || key.find("_state") != std::string_view::npos;
}

}  // namespace furlong
