#include "model/weights.h"

#include <algorithm>
#include <map>

#include "ops/reduce.h"

namespace furlong {
namespace {

using Visit = std::function<void(Tensor&, TensorSpec)>;

struct Visitor {
  const ModelConfig& config;
  const Visit& visit;
  bool mtp = false;
  int part = embed_part;

  void operator()(Tensor& tensor, std::string name, std::vector<int64_t> shape, Split split = Split::replicated) const {
    visit(tensor, {.name = std::move(name), .shape = std::move(shape), .split = split, .mtp = mtp, .part = part});
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
    visit(w.A_log, {.name = prefix + "A_log",
                    .shape = {heads},
                    .split = Split::heads,
                    .always_f32 = true,
                    .mtp = mtp,
                    .part = part});
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
                      .part = part,
                      .per_expert = prefix + "experts.{}.gate_proj.weight|" + prefix + "experts.{}.up_proj.weight"});
    visit(w.down, {.name = prefix + "experts.down_proj",
                   .shape = {e, h, f},
                   .split = Split::expert,
                   .mtp = mtp,
                   .part = part,
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
    v.part = layer_part(i);
    v.layer(w.layers[i], fmt::format("{}layers.{}.", trunk, i), c.full_attention[i]);
  }
  v.part = norm_part(c);
  v(w.final_norm, trunk + "norm.weight", {c.hidden_size});
  v.part = head_part(c);
  v(w.lm_head, "lm_head.weight", {c.vocab_size, c.hidden_size}, Split::vocab);
  v.mtp = true;
  v.part = mtp_part(c);
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

DType dtype_of_tensor(const TensorSpec& spec, DType dtype) {
  return spec.always_f32 && dtype == DType::bf16 ? DType::f32 : dtype;
}

// Bytes that a tensor takes up among others.
size_t memory_of(const TensorSpec& spec, DType dtype) {
  const size_t bytes = static_cast<size_t>(spec.numel()) * size_of(dtype_of_tensor(spec, dtype));
  return (bytes + alignment - 1) / alignment * alignment;
}

Tensor placed_at(const TensorSpec& spec, DType dtype, void* memory, Device device) {
  return {memory, dtype_of_tensor(spec, dtype), spec.shape.data(), static_cast<int>(spec.shape.size()), device};
}

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
  bind(config, dtype, Placement{.device = device, .only_mtp = only_mtp}, false);
}

Weights::Weights(const ModelConfig& config, DType dtype, const Placement& placement) {
  bind(config, dtype, placement, false);
}

Weights Weights::outline(const ModelConfig& config, DType dtype, Device device, std::optional<bool> only_mtp) {
  Weights weights;
  weights.bind(config, dtype, Placement{.device = device, .only_mtp = only_mtp}, true);
  return weights;
}

void Weights::bind(const ModelConfig& config, DType dtype, const Placement& placement, bool outline) {
  dtype_ = dtype;
  std::vector<Tensor*> slots;
  visit_tensors(config, *this, [&](Tensor& slot, TensorSpec spec) {
    slots.push_back(&slot);
    specs_.push_back(std::move(spec));
  });
  const auto on_host = [&](size_t i) { return !placement.on_host.empty() && placement.on_host[i]; };
  const auto wanted = [&](size_t i) {
    return (!placement.only_mtp || *placement.only_mtp == specs_[i].mtp) && (on_host(i) || !placement.only_on_host);
  };
  size_t total = 0, host_total = 0;
  for (size_t i = 0; i < specs_.size(); i++) {
    if (wanted(i)) (on_host(i) ? host_total : total) += memory_of(specs_[i], dtype);
  }
  bytes_ = total + host_total;
  storage_ = Buffer(outline ? 0 : total, placement.device);
  if (host_total > 0) {
    CHECK(placement.threads != nullptr && !outline, "page-locked tensors without threads");
    host_storage_ = Buffer::page_locked(host_total, *placement.threads);
  }
  size_t offset = 0, host_offset = 0;
  for (size_t i = 0; i < specs_.size(); i++) {
    if (wanted(i)) {
      const Buffer& storage = on_host(i) ? host_storage_ : storage_;
      auto* base = outline ? reinterpret_cast<uint8_t*>(alignment) : static_cast<uint8_t*>(storage.data());
      size_t& at = on_host(i) ? host_offset : offset;
      *slots[i] = placed_at(specs_[i], dtype, base + at, storage.device());
      at += memory_of(specs_[i], dtype);
    }
    tensors_.push_back(*slots[i]);
  }
}

Weights Weights::one_part_at_a_time(const ModelConfig& config, DType dtype, Device device) {
  Weights w;
  w.dtype_ = dtype;
  std::vector<Tensor*> slots;
  std::map<int, size_t> bytes;
  visit_tensors(config, w, [&](Tensor& slot, TensorSpec spec) {
    slots.push_back(&slot);
    bytes[spec.part] += memory_of(spec, dtype);
    w.specs_.push_back(std::move(spec));
  });
  size_t largest = 0;
  for (const auto& [part, size] : bytes) largest = std::max(largest, size);
  w.storage_ = Buffer(largest, device);
  w.bytes_ = w.storage_.bytes();
  std::map<int, size_t> offset;
  for (size_t i = 0; i < slots.size(); i++) {
    size_t& at = offset[w.specs_[i].part];
    *slots[i] = placed_at(w.specs_[i], dtype, static_cast<uint8_t*>(w.storage_.data()) + at, device);
    at += memory_of(w.specs_[i], dtype);
    w.tensors_.push_back(*slots[i]);
  }
  return w;
}

void Weights::zero(Stream& stream) {
  for (const Buffer* storage : {&storage_, &host_storage_}) {
    const auto bytes = static_cast<int64_t>(storage->bytes());
    if (bytes > 0) set_zero(stream, Tensor(storage->data(), DType::u8, {bytes}, storage->device()));
  }
}

}  // namespace furlong
