// The model's tensors. Each is declared once, in visit_tensors (weights.cpp): member, shape, checkpoint name, kind.
// Gradients, masters and moments are further Weights values of the same layout.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "tensor/buffer.h"
#include "tensor/stream.h"

namespace furlong {

// Matrices act on rows: y = x Wᵀ with W (out, in). H hidden, Hq/Hkv heads, D head dim.
struct AttentionWeights {
  Tensor q;               // (2·Hq·D, H): per head D query rows, then D gate rows
  Tensor k, v;            // (Hkv·D, H)
  Tensor o;               // (H, Hq·D)
  Tensor q_norm, k_norm;  // (D) zero-centred
};

// Kh/Vh key/value heads of Dk/Dv; conv channels C = 2·Kh·Dk + Vh·Dv ordered q, k, v.
struct DeltaNetWeights {
  Tensor qkv;      // (C, H)
  Tensor z;        // (Vh·Dv, H)
  Tensor b, a;     // (Vh, H)
  Tensor conv;     // (C, 1, taps): the last tap multiplies the current token
  Tensor A_log;    // (Vh) always fp32
  Tensor dt_bias;  // (Vh)
  Tensor norm;     // (Dv) plain weight, not zero-centred
  Tensor out;      // (H, Vh·Dv)
};

// E experts of width F, shared expert of width Fs.
struct MoeWeights {
  Tensor router;                  // (E, H)
  Tensor gate_up;                 // (E, 2F, H): F gate rows, then F up rows
  Tensor down;                    // (E, H, F)
  Tensor shared_gate, shared_up;  // (Fs, H)
  Tensor shared_down;             // (H, Fs)
  Tensor shared_expert_gate;      // (1, H)
};

struct LayerWeights {
  Tensor input_norm, post_norm;  // (H) zero-centred
  bool full_attention = false;
  AttentionWeights attention;  // when full_attention
  DeltaNetWeights delta;       // otherwise
  MoeWeights moe;
};

struct MtpWeights {
  Tensor fc;                                 // (H, 2H): embedding columns first, then hidden
  Tensor norm_embedding, norm_hidden, norm;  // (H) zero-centred
  LayerWeights layer;                        // full attention
};

// How a tensor is split when the model runs on several ranks.
enum class Split : uint8_t { replicated, vocab, column, row, expert, heads };

struct TensorSpec {
  std::string name;  // the name in a Hugging Face checkpoint, experts fused
  std::vector<int64_t> shape;
  Split split = Split::replicated;
  bool always_f32 = false;  // A_log: fp32 in every mode
  bool mtp = false;         // belongs to the MTP head
  // Tensors of one part lie together, and their gradients are complete together: 0 the embedding, 1 + i layer i, then
  // the final norm, the head, the MTP head.
  int part = 0;
  // A fused expert tensor also occurs per expert: pattern with {} for the expert's number; "a|b" are row halves.
  std::string per_expert = {};
  bool decays() const { return shape.size() >= 2; }  // AdamW's weight decay
  int64_t numel() const;
};

// Where the tensors of a Weights lie.
struct Placement {
  Device device = Device::cpu;
  std::optional<bool> only_mtp = std::nullopt;  // allocate that part of the model only
  // Tensors (by place in the registry) in page-locked host memory instead; none where empty. Needs `threads`.
  std::vector<bool> on_host = {};
  bool only_on_host = false;  // leave the others undefined
  ThreadPool* threads = nullptr;
};

class Weights {
 public:
  Weights() = default;
  // Allocates zeroed memory for every tensor: `dtype` throughout, fp32 where the spec says so. With only_mtp = true or
  // false only that part of the model is allocated and the rest stays undefined; nullopt takes all.
  Weights(const ModelConfig& config, DType dtype, Device device = Device::cpu,
          std::optional<bool> only_mtp = std::nullopt);
  Weights(const ModelConfig& config, DType dtype, const Placement& placement);
  // All parts in the same memory, that of the largest: for gradients that are moved on part by part.
  static Weights one_part_at_a_time(const ModelConfig& config, DType dtype, Device device);

  // The same tensors over addresses that must not be touched, for dry runs.
  static Weights outline(const ModelConfig& config, DType dtype, Device device = Device::cpu,
                         std::optional<bool> only_mtp = std::nullopt);

  Tensor embed;       // (V, H)
  Tensor final_norm;  // (H) zero-centred
  Tensor lm_head;     // (V, H)
  std::vector<LayerWeights> layers;
  std::vector<MtpWeights> mtp;  // none or one

  // All tensors in the registry's order; specs()[i] describes tensors()[i].
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::vector<TensorSpec>& specs() const { return specs_; }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_.device(); }
  size_t bytes() const { return bytes_; }
  size_t host_bytes() const { return host_storage_.bytes(); }  // page-locked; a part of bytes()
  void zero(Stream&);

 private:
  void bind(const ModelConfig& config, DType dtype, const Placement& placement, bool outline);

  DType dtype_ = DType::f32;
  Buffer storage_, host_storage_;
  size_t bytes_ = 0;
  std::vector<Tensor> tensors_;
  std::vector<TensorSpec> specs_;
};

// The specs of a model without its tensors.
std::vector<TensorSpec> tensor_registry(const ModelConfig& config);
// The parts of a model (TensorSpec::part) by what they are.
inline int layer_part(size_t layer) { return static_cast<int>(layer) + 1; }
inline int norm_part(const ModelConfig& config) { return static_cast<int>(config.num_layers) + 1; }
inline int head_part(const ModelConfig& config) { return norm_part(config) + 1; }
inline int mtp_part(const ModelConfig& config) { return norm_part(config) + 2; }
constexpr int embed_part = 0;

// Calls f(spec, a, b, ...) for each tensor of several Weights of one model, in the registry's order.
template <class F, class... W>
void for_each_tensor(F&& f, const Weights& first, const W&... rest) {
  for (size_t i = 0; i < first.specs().size(); i++) f(first.specs()[i], first.tensors()[i], rest.tensors()[i]...);
}

}  // namespace furlong
