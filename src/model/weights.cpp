#include "model/weights.h"

#include "ops/reduce.h"

namespace furlong {
namespace {

using Visit = std::function<void(Tensor&, TensorSpec)>;

struct Visitor {
  const ModelConfig& config;
  const Visit& visit;
  bool mtp = false;

  void operator()(Tensor& tensor, std::string name, std::vector<int64_t> shape, Split split = Split::replicated) const {
    visit(tensor, {.name = std::move(name), .shape = std::move(shape), .split = split, .mtp = mtp});
  }

  void attention(AttentionWeights& w, const std::string& prefix) const {
    const auto& c = config;
    const int64_t d = c.head_dim;
    (*this)(w.q, prefix + "q_proj.weight", {2 * c.num_heads * d, c.hidden_size}, Split::heads);
    (*this)(w.k, prefix + "k_proj.weight", {c.num_kv_heads * d, c.hidden_size}, Split::heads);
    (*this)(w.v, prefix + "v_proj.weight", {c.num_kv_heads * d, c.hidden_size}, Split::heads);
    (*this)(w.o, prefix + "o_proj.weight", {c.hidden_size, c.num_heads * d}, Split::row);
    (*this)(w.q_norm, prefix + "q_norm.weight", {d});
    (*this)(w.k_norm, prefix + "k_norm.weight", {d});
  }

  void delta(DeltaNetWeights& w, const std::string& prefix) const {
    const auto& c = config;
    const int64_t heads = c.linear_num_value_heads;
    (*this)(w.qkv, prefix + "in_proj_qkv.weight", {c.conv_dim(), c.hidden_size}, Split::heads);
    (*this)(w.z, prefix + "in_proj_z.weight", {c.value_dim(), c.hidden_size}, Split::heads);
    (*this)(w.b, prefix + "in_proj_b.weight", {heads, c.hidden_size}, Split::heads);
    (*this)(w.a, prefix + "in_proj_a.weight", {heads, c.hidden_size}, Split::heads);
    (*this)(w.conv, prefix + "conv1d.weight", {c.conv_dim(), 1, c.conv_kernel}, Split::heads);
    visit(w.A_log, {.name = prefix + "A_log", .shape = {heads}, .split = Split::heads, .always_f32 = true, .mtp = mtp});
    (*this)(w.dt_bias, prefix + "dt_bias", {heads}, Split::heads);
    (*this)(w.norm, prefix + "norm.weight", {c.linear_value_head_dim});
    (*this)(w.out, prefix + "out_proj.weight", {c.hidden_size, c.value_dim()}, Split::row);
  }

  void moe(MoeWeights& w, const std::string& prefix) const {
    const auto& c = config;
    const int64_t h = c.hidden_size, e = c.num_experts, f = c.moe_intermediate_size, s = c.shared_intermediate_size;
    (*this)(w.router, prefix + "gate.weight", {e, h});
    visit(w.gate_up, {.name = prefix + "experts.gate_up_proj",
                      .shape = {e, 2 * f, h},
                      .split = Split::expert,
                      .mtp = mtp,
                      .per_expert = prefix + "experts.{}.gate_proj.weight|" + prefix + "experts.{}.up_proj.weight"});
    visit(w.down, {.name = prefix + "experts.down_proj",
                   .shape = {e, h, f},
                   .split = Split::expert,
                   .mtp = mtp,
                   .per_expert = prefix + "experts.{}.down_proj.weight"});
    (*this)(w.shared_gate, prefix + "shared_expert.gate_proj.weight", {s, h}, Split::column);
    (*this)(w.shared_up, prefix + "shared_expert.up_proj.weight", {s, h}, Split::column);
    (*this)(w.shared_down, prefix + "shared_expert.down_proj.weight", {h, s}, Split::row);
    (*this)(w.shared_expert_gate, prefix + "shared_expert_gate.weight", {1, h});
  }

  void layer(LayerWeights& w, const std::string& prefix, bool full) const {
    w.full_attention = full;
    (*this)(w.input_norm, prefix + "input_layernorm.weight", {config.hidden_size});
    if (full) {
      attention(w.attention, prefix + "self_attn.");
    } else {
      delta(w.delta, prefix + "linear_attn.");
    }
    (*this)(w.post_norm, prefix + "post_attention_layernorm.weight", {config.hidden_size});
    moe(w.moe, prefix + "mlp.");
  }
};

void visit_tensors(const ModelConfig& c, Weights& w, const Visit& visit) {
  Visitor v{c, visit};
  const std::string trunk = "model.language_model.";
  v(w.embed, trunk + "embed_tokens.weight", {c.vocab_size, c.hidden_size}, Split::vocab);
  w.layers.resize(static_cast<size_t>(c.num_layers));
  for (size_t i = 0; i < w.layers.size(); i++) {
    v.layer(w.layers[i], fmt::format("{}layers.{}.", trunk, i), c.full_attention[i]);
  }
  v(w.final_norm, trunk + "norm.weight", {c.hidden_size});
  v(w.lm_head, "lm_head.weight", {c.vocab_size, c.hidden_size}, Split::vocab);
  v.mtp = true;
  w.mtp.resize(static_cast<size_t>(c.mtp_num_layers));
  for (auto& m : w.mtp) {
    v(m.norm_embedding, "mtp.pre_fc_norm_embedding.weight", {c.hidden_size});
    v(m.norm_hidden, "mtp.pre_fc_norm_hidden.weight", {c.hidden_size});
    v(m.fc, "mtp.fc.weight", {c.hidden_size, 2 * c.hidden_size}, Split::column);
    v.layer(m.layer, "mtp.layers.0.", true);
    v(m.norm, "mtp.norm.weight", {c.hidden_size});
  }
}

constexpr size_t alignment = 64;

}  // namespace

int64_t TensorSpec::numel() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::vector<TensorSpec> tensor_registry(const ModelConfig& config) {
  std::vector<TensorSpec> specs;
  Weights unbound;
  visit_tensors(config, unbound, [&](Tensor&, TensorSpec spec) { specs.push_back(std::move(spec)); });
  return specs;
}

Weights::Weights(const ModelConfig& config, DType dtype, Device device, std::optional<bool> only_mtp) {
  bind(config, dtype, device, only_mtp, false);
}

Weights Weights::outline(const ModelConfig& config, DType dtype, Device device, std::optional<bool> only_mtp) {
  Weights weights;
  weights.bind(config, dtype, device, only_mtp, true);
  return weights;
}

void Weights::bind(const ModelConfig& config, DType dtype, Device device, std::optional<bool> only_mtp, bool outline) {
  dtype_ = dtype;
  std::vector<Tensor*> slots;
  size_t total = 0;
  const auto bytes_of = [&](const TensorSpec& spec) {
    const size_t bytes =
        static_cast<size_t>(spec.numel()) * size_of(spec.always_f32 && dtype == DType::bf16 ? DType::f32 : dtype);
    return (bytes + alignment - 1) / alignment * alignment;
  };
  visit_tensors(config, *this, [&](Tensor& slot, TensorSpec spec) {
    if (!only_mtp || *only_mtp == spec.mtp) total += bytes_of(spec);
    slots.push_back(&slot);
    specs_.push_back(std::move(spec));
  });
  storage_ = Buffer(outline ? 0 : total, device);
  bytes_ = total;
  auto* base = outline ? reinterpret_cast<uint8_t*>(alignment) : static_cast<uint8_t*>(storage_.data());
  size_t offset = 0;
  for (size_t i = 0; i < specs_.size(); i++) {
    const auto& spec = specs_[i];
    if (!only_mtp || *only_mtp == spec.mtp) {
      const DType t = spec.always_f32 && dtype == DType::bf16 ? DType::f32 : dtype;
      *slots[i] = Tensor(base + offset, t, spec.shape.data(), static_cast<int>(spec.shape.size()), device);
      offset += bytes_of(spec);
    }
    tensors_.push_back(*slots[i]);
  }
}

void Weights::zero(Stream& stream) {
  const auto bytes = static_cast<int64_t>(bytes_);
  if (bytes > 0) set_zero(stream, Tensor(storage_.data(), DType::u8, {bytes}, storage_.device()));
}

}  // namespace furlong
