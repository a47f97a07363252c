#include "model/weights.h"

#include <algorithm>
#include <map>

#include "model/heads.h"
#include "ops/reduce.h"

namespace furlong {
namespace {

using Visit = std::function<void(Tensor&, TensorSpec)>;

using Held = std::array<std::vector<Range>, 3>;

int64_t product(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

Range scaled(const Range& r, int64_t by, int64_t offset = 0) { return {offset + r.begin * by, offset + r.end * by}; }

struct Visitor {
  const ModelConfig& config;
  const MeshRank& rank;
  const Visit& visit;
  HeadRanges heads;
  bool mtp = false, here = true, copied = false;
  int part = embed_part, also_part = -1;

  void operator()(Tensor& tensor, std::string name, std::vector<int64_t> shape, Split split = Split::replicated,
                  Held held = {}, bool always_f32 = false, std::string per_expert = {}, JoinedRows joined = {}) const {
    TensorSpec spec{.name = std::move(name),
                    .split = split,
                    .always_f32 = always_f32,
                    .mtp = mtp,
                    .part = part,
                    .also_part = also_part,
                    .per_expert = std::move(per_expert),
                    .joined = std::move(joined),
                    .full_shape = shape,
                    .here = here,
                    .copied = copied};
    for (size_t d = 0; d < held.size() && d < shape.size(); d++) {
      int64_t size = 0;
      for (const Range& r : held[d]) size += r.size();
      if (held[d].empty() || size == shape[d]) continue;
      shape[d] = size;
      spec.held[d] = std::move(held[d]);
    }
    spec.shape = std::move(shape);
    visit(tensor, std::move(spec));
  }

  void attention(AttentionWeights& w, const std::string& prefix) const {
    const auto& c = config;
    const int64_t d = c.head_dim;
    const Held keys = {{{scaled(heads.kv, d)}}};
    (*this)(w.q, prefix + "q_proj.weight", {2 * c.num_heads * d, c.hidden_size}, Split::heads,
            {{{scaled(heads.query, 2 * d)}}});
    (*this)(w.k, prefix + "k_proj.weight", {c.num_kv_heads * d, c.hidden_size}, Split::kv_heads, keys);
    (*this)(w.v, prefix + "v_proj.weight", {c.num_kv_heads * d, c.hidden_size}, Split::kv_heads, keys);
    (*this)(w.o, prefix + "o_proj.weight", {c.hidden_size, c.num_heads * d}, Split::row,
            {{{}, {scaled(heads.query, d)}}});
    (*this)(w.q_norm, prefix + "q_norm.weight", {d});
    (*this)(w.k_norm, prefix + "k_norm.weight", {d});
  }

  void delta(DeltaNetWeights& w, const std::string& prefix) const {
    const auto& c = config;
    const int64_t vh = c.linear_num_value_heads, dk = c.linear_key_head_dim, dv = c.linear_value_head_dim;
    const Held channels = {{{scaled(heads.delta_key, dk), scaled(heads.delta_key, dk, c.key_dim()),
                             scaled(heads.delta_value, dv, 2 * c.key_dim())}}};
    const Held values = {{{scaled(heads.delta_value, dv)}}}, by_head = {{{heads.delta_value}}};
    // Qwen3-Next: per key head its q, k, v and z rows in one matrix, its b and a rows in another.
    const int64_t kh = c.linear_num_key_heads, n = vh / kh, keys = c.key_dim();
    const auto joined = [&](const char* name, int64_t rows, std::vector<JoinedRows::Block> blocks) {
      return JoinedRows{prefix + name, kh, rows, std::move(blocks)};
    };
    const auto qkvz = [&](std::vector<JoinedRows::Block> blocks) {
      return joined("in_proj_qkvz.weight", 2 * (dk + n * dv), std::move(blocks));
    };
    const int64_t h = c.hidden_size;
    (*this)(w.qkv, prefix + "in_proj_qkv.weight", {c.conv_dim(), h}, Split::heads, channels, false, {},
            qkvz({{0, dk, 0}, {keys, dk, dk}, {2 * keys, n * dv, 2 * dk}}));
    (*this)(w.z, prefix + "in_proj_z.weight", {c.value_dim(), h}, Split::heads, values, false, {},
            qkvz({{0, n * dv, 2 * dk + n * dv}}));
    (*this)(w.b, prefix + "in_proj_b.weight", {vh, h}, Split::heads, by_head, false, {},
            joined("in_proj_ba.weight", 2 * n, {{0, n, 0}}));
    (*this)(w.a, prefix + "in_proj_a.weight", {vh, h}, Split::heads, by_head, false, {},
            joined("in_proj_ba.weight", 2 * n, {{0, n, n}}));
    (*this)(w.conv, prefix + "conv1d.weight", {c.conv_dim(), 1, c.conv_kernel}, Split::heads, channels);
    (*this)(w.A_log, prefix + "A_log", {vh}, Split::heads, by_head, true);
    (*this)(w.dt_bias, prefix + "dt_bias", {vh}, Split::heads, by_head);
    (*this)(w.norm, prefix + "norm.weight", {dv});
    (*this)(w.out, prefix + "out_proj.weight", {c.hidden_size, c.value_dim()}, Split::row,
            {{{}, {scaled(heads.delta_value, dv)}}});
  }

  void moe(MoeWeights& w, const std::string& prefix) const {
    const auto& c = config;
    const int64_t h = c.hidden_size, e = c.num_experts, f = c.moe_intermediate_size, s = c.shared_intermediate_size;
    const Range experts = block_of(e, rank.expert, rank.sizes.expert);
    const Range width = block_of(f, rank.expert_tensor, rank.sizes.expert_tensor);
    (*this)(w.router, prefix + "gate.weight", {e, h});
    (*this)(w.gate_up, prefix + "experts.gate_up_proj", {e, 2 * f, h}, Split::expert,
            {{{experts}, {width, scaled(width, 1, f)}}}, false,
            prefix + "experts.{}.gate_proj.weight|" + prefix + "experts.{}.up_proj.weight");
    (*this)(w.down, prefix + "experts.down_proj", {e, h, f}, Split::expert, {{{experts}, {}, {width}}}, false,
            prefix + "experts.{}.down_proj.weight");
    (*this)(w.shared_gate, prefix + "shared_expert.gate_proj.weight", {s, h});
    (*this)(w.shared_up, prefix + "shared_expert.up_proj.weight", {s, h});
    (*this)(w.shared_down, prefix + "shared_expert.down_proj.weight", {h, s});
    (*this)(w.shared_expert_gate, prefix + "shared_expert_gate.weight", {1, h});
  }

  void mlp(MlpWeights& w, const std::string& prefix) const {
    const int64_t h = config.hidden_size, f = config.intermediate_size;
    const Range mine = block_of(f, rank.tensor, rank.sizes.tensor);
    (*this)(w.gate, prefix + "gate_proj.weight", {f, h}, Split::width, {{{mine}}});
    (*this)(w.up, prefix + "up_proj.weight", {f, h}, Split::width, {{{mine}}});
    (*this)(w.down, prefix + "down_proj.weight", {h, f}, Split::row, {{{}, {mine}}});
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
    if (config.dense()) {
      mlp(w.mlp, prefix + "mlp.");
    } else {
      moe(w.moe, prefix + "mlp.");
    }
  }
};

void visit_tensors(const ModelConfig& c, const MeshRank& rank, Weights& w, const Visit& visit) {
  Visitor v{c, rank, visit, projected_heads(c, rank)};
  const std::string trunk = "model.language_model.";
  const Held vocabulary = {{{block_of(c.vocab_size, rank.tensor, rank.sizes.tensor)}}};
  const bool first = rank.stage == 0, last = rank.stage + 1 == rank.sizes.pipeline;
  v.copied = !first && last && (c.mtp_num_layers > 0 || c.head_is_embedding());
  v.here = first || v.copied;
  if (c.head_is_embedding()) v.also_part = head_part(c);
  v(w.embed, trunk + "embed_tokens.weight", {c.vocab_size, c.hidden_size}, Split::vocab, vocabulary);
  v.copied = false;
  v.also_part = -1;
  const Range mine = stage_layers(c, rank);
  w.layers.resize(static_cast<size_t>(c.num_layers));
  for (size_t i = 0; i < w.layers.size(); i++) {
    v.part = layer_part(i);
    v.here = mine.begin <= static_cast<int64_t>(i) && static_cast<int64_t>(i) < mine.end;
    v.layer(w.layers[i], fmt::format("{}layers.{}.", trunk, i), c.full_attention[i]);
  }
  v.here = last;
  v.part = norm_part(c);
  v(w.final_norm, trunk + "norm.weight", {c.hidden_size});
  v.part = head_part(c);
  if (c.value_head) {
    v(w.lm_head, "value_head.weight", {1, c.hidden_size});
  } else if (!c.tied_embeddings) {
    v(w.lm_head, "lm_head.weight", {c.vocab_size, c.hidden_size}, Split::vocab, vocabulary);
  }
  v.mtp = true;
  v.part = mtp_part(c);
  w.mtp.resize(static_cast<size_t>(c.mtp_num_layers));
  for (auto& m : w.mtp) {
    v(m.norm_embedding, "mtp.pre_fc_norm_embedding.weight", {c.hidden_size});
    v(m.norm_hidden, "mtp.pre_fc_norm_hidden.weight", {c.hidden_size});
    v(m.fc, "mtp.fc.weight", {c.hidden_size, 2 * c.hidden_size});
    v.layer(m.layer, "mtp.layers.0.", true);
    v(m.norm, "mtp.norm.weight", {c.hidden_size});
  }
}

// As far as copies go. The gradient of a tied embedding's copy is the head's.
bool holds(const Placement& placement, const TensorSpec& spec) {
  return placement.copies || !spec.copied || spec.also_part >= 0;
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

int64_t TensorSpec::numel() const { return product(shape); }
int64_t TensorSpec::full_numel() const { return product(full_shape); }

Range stage_layers(const ModelConfig& config, const MeshRank& place) {
  return block_of(config.num_layers, place.stage, place.sizes.pipeline);
}

void for_each_run(const TensorSpec& spec, const std::function<void(int64_t, int64_t, int64_t)>& f) {
  const size_t rank = spec.full_shape.size();
  // The last dimension that is held in part; everything after it is contiguous.
  size_t inner = 0;
  for (size_t d = 0; d < rank && d < spec.held.size(); d++) {
    if (!spec.held[d].empty()) inner = d;
  }
  int64_t tail = 1;
  for (size_t d = inner + 1; d < rank; d++) tail *= spec.full_shape[d];
  const auto ranges = [&](size_t d) {
    return d >= spec.held.size() || spec.held[d].empty() ? std::vector<Range>{{0, spec.full_shape[d]}} : spec.held[d];
  };
  int64_t first = 0;
  const auto walk = [&](const auto& self, size_t d, int64_t offset) -> void {
    for (const Range& r : ranges(d)) {
      if (d == inner) {
        const int64_t count = r.size() * tail;
        if (count > 0) f(first, (offset * spec.full_shape[d] + r.begin) * tail, count);
        first += count;
      } else {
        for (int64_t i = r.begin; i < r.end; i++) self(self, d + 1, offset * spec.full_shape[d] + i);
      }
    }
  };
  if (rank > 0) walk(walk, 0, 0);
}

std::vector<int> holders_of(const ModelConfig& config, const TensorSpec& spec, const MeshRank& place) {
  std::vector<int> holders;
  const int64_t ranks = place.stage_ranks();
  for (int64_t r = 0; r < ranks; r++) {
    const MeshRank m = mesh_rank(place.sizes, place.stage * ranks + r, place.ranks());
    bool same = true;
    switch (spec.split) {
      case Split::replicated: break;
      case Split::kv_heads: same = projected_heads(config, m).kv == projected_heads(config, place).kv; break;
      case Split::vocab:
      case Split::heads:
      case Split::width:
      case Split::row: same = m.tensor == place.tensor; break;
      case Split::expert: same = m.expert == place.expert && m.expert_tensor == place.expert_tensor; break;
    }
    if (same) holders.push_back(static_cast<int>(r));
  }
  return holders;
}

std::vector<std::string> layout_problems(const ModelConfig& c, const ParallelSizes& s) {
  std::vector<std::string> problems;
  const auto divides = [&](int64_t number, int64_t by, const char* what, const char* sizes) {
    if (by > 0 && number % by != 0)
      problems.push_back(
          fmt::format("{} {} cannot be split by {} {}: change one of these sizes", number, what, sizes, by));
  };
  // Few heads that many share lie on several ranks each, so that either number may be the larger.
  const auto fits = [&](int64_t heads, int64_t by, const char* what, const char* sizes) {
    if (by > 0 && heads % by != 0 && by % heads != 0)
      problems.push_back(
          fmt::format("{} {} cannot be split by {} {}: change one of these sizes", heads, what, sizes, by));
  };
  divides(c.num_heads, s.tensor * s.context, "attention heads", "tensor x context parallel size");
  divides(c.linear_num_value_heads, s.tensor * s.context, "DeltaNet value heads", "tensor x context parallel size");
  fits(c.num_kv_heads, s.tensor, "key and value heads", "tensor parallel size");
  fits(std::max<int64_t>(1, c.num_kv_heads / std::max<int64_t>(1, s.tensor)), s.context,
       "key and value heads of a tensor parallel rank", "context parallel size");
  divides(c.linear_num_key_heads, s.tensor, "DeltaNet key heads", "tensor parallel size");
  fits(std::max<int64_t>(1, c.linear_num_key_heads / std::max<int64_t>(1, s.tensor)), s.context,
       "DeltaNet key heads of a tensor parallel rank", "context parallel size");
  if (c.dense()) {
    divides(c.intermediate_size, s.tensor, "numbers of the feed-forward width", "tensor parallel size");
    if (s.expert > 1 || s.expert_tensor > 1)
      problems.push_back(
          fmt::format("expert parallel size {} and expert-tensor parallel size {}: a dense model has no experts; both "
                      "must be 1",
                      s.expert, s.expert_tensor));
  }
  divides(c.num_experts, s.expert, "experts", "expert parallel size");
  divides(c.moe_intermediate_size, s.expert_tensor, "numbers of an expert's width", "expert-tensor parallel size");
  if (s.pipeline > c.num_layers) {
    problems.push_back(fmt::format("{} layers are too few for pipeline parallel size {}", c.num_layers, s.pipeline));
  }
  return problems;
}

std::vector<TensorSpec> tensor_registry(const ModelConfig& config, const MeshRank& place) {
  std::vector<TensorSpec> specs;
  Weights unbound;
  visit_tensors(config, place, unbound, [&](Tensor&, TensorSpec spec) { specs.push_back(std::move(spec)); });
  return specs;
}

Weights::Weights(const ModelConfig& config, DType dtype, Device device, std::optional<bool> only_mtp) {
  bind(config, dtype, Placement{.device = device, .only_mtp = only_mtp}, false);
}

Weights::Weights(const ModelConfig& config, DType dtype, const Placement& placement) {
  bind(config, dtype, placement, false);
}

Weights Weights::outline(const ModelConfig& config, DType dtype, const Placement& placement) {
  Weights weights;
  weights.bind(config, dtype, placement, true);
  return weights;
}

int64_t Weights::full_vocabulary() const {
  for (const auto& spec : specs_) {
    if (spec.split == Split::vocab) return spec.full_shape[0];
  }
  return 0;
}

Range Weights::vocabulary() const { return block_of(full_vocabulary(), rank_.tensor, rank_.sizes.tensor); }

std::vector<Tensor*> Weights::declare(const ModelConfig& config, DType dtype, const Placement& placement) {
  dtype_ = dtype;
  rank_ = placement.rank;
  std::vector<Tensor*> slots;
  visit_tensors(config, rank_, *this, [&](Tensor& slot, TensorSpec spec) {
    if (placement.owned && spec.here) {
      spec.owned = placement.owned(spec);
      spec.shape = {spec.owned->size()};
    }
    slots.push_back(&slot);
    specs_.push_back(std::move(spec));
  });
  return slots;
}

void Weights::bind(const ModelConfig& config, DType dtype, const Placement& placement, bool outline) {
  const std::vector<Tensor*> slots = declare(config, dtype, placement);
  const auto on_host = [&](size_t i) { return !placement.on_host.empty() && placement.on_host[i]; };
  const auto wanted = [&](size_t i) {
    return specs_[i].here && holds(placement, specs_[i]) &&
           (!placement.only_mtp || *placement.only_mtp == specs_[i].mtp) && (on_host(i) || !placement.only_on_host);
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
  if (config.head_is_embedding()) lm_head = embed;
}

Weights Weights::one_part_at_a_time(const ModelConfig& config, DType dtype, const Placement& placement) {
  Weights w;
  const std::vector<Tensor*> slots = w.declare(config, dtype, placement);
  std::map<int, size_t> bytes;
  for (const auto& spec : w.specs_) {
    if (spec.here && holds(placement, spec)) bytes[spec.part] += memory_of(spec, dtype);
  }
  size_t largest = 0;
  for (const auto& [part, size] : bytes) largest = std::max(largest, size);
  w.storage_ = Buffer(largest, placement.device);
  w.bytes_ = w.storage_.bytes();
  std::map<int, size_t> offset;
  for (size_t i = 0; i < slots.size(); i++) {
    if (w.specs_[i].here && holds(placement, w.specs_[i])) {
      size_t& at = offset[w.specs_[i].part];
      *slots[i] = placed_at(w.specs_[i], dtype, static_cast<uint8_t*>(w.storage_.data()) + at, placement.device);
      at += memory_of(w.specs_[i], dtype);
    }
    w.tensors_.push_back(*slots[i]);
  }
  if (config.head_is_embedding()) w.lm_head = w.embed;
  return w;
}

void Weights::zero(Stream& stream) {
  for (const Buffer* storage : {&storage_, &host_storage_}) {
    const auto bytes = static_cast<int64_t>(storage->bytes());
    if (bytes > 0) set_zero(stream, Tensor(storage->data(), DType::u8, {bytes}, storage->device()));
  }
}

}  // namespace furlong
