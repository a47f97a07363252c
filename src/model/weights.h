// The model's tensors. Each is declared once, in visit_tensors (weights.cpp): member, shape, checkpoint name, kind.
// Gradients, masters and moments are further Weights values of the same layout.
#pragma once
#include <array>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "parallel/mesh.h"
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

// A dense feed-forward network of width F.
struct MlpWeights {
  Tensor gate, up;  // (F, H)
  Tensor down;      // (H, F)
};

struct LayerWeights {
  Tensor input_norm, post_norm;  // (H) zero-centred
  bool full_attention = false;
  AttentionWeights attention;  // when full_attention
  DeltaNetWeights delta;       // otherwise
  MoeWeights moe;              // undefined in a dense model
  MlpWeights mlp;              // undefined in any other
};

struct MtpWeights {
  Tensor fc;                                 // (H, 2H): embedding columns first, then hidden
  Tensor norm_embedding, norm_hidden, norm;  // (H) zero-centred
  LayerWeights layer;                        // full attention
};

// Another place of a tensor in checkpoints: one whose rows are `groups` groups of `group_rows` rows, each with some of
// this tensor's and of others'.
struct JoinedRows {
  std::string name;  // empty: there is none
  int64_t groups = 0, group_rows = 0;
  struct Block {
    int64_t first, rows,
        at;  // group g has the tensor's rows [first + g rows, first + (g + 1) rows) from its row `at` on
  };
  std::vector<Block> blocks;  // by rising `first`
};

// How a tensor is split among the ranks of a stage. Vocabulary, heads and the width of a dense network by rows and
// `row` by columns over tensor parallel ranks; experts over expert x expert-tensor ranks, all else on every rank.
enum class Split : uint8_t { replicated, vocab, heads, kv_heads, width, row, expert };

struct TensorSpec {
  std::string name;            // the name in a Hugging Face checkpoint, experts fused
  std::vector<int64_t> shape;  // of what this rank holds
  Split split = Split::replicated;
  bool always_f32 = false;  // A_log: fp32 in every mode
  bool mtp = false;         // belongs to the MTP head
  // Tensors of one part lie together, and their gradients are complete together: 0 the embedding, 1 + i layer i, then
  // the final norm, the head, the MTP head.
  int part = 0;
  int also_part = -1;  // a tied embedding: the head, whose backward adds to the same gradient
  // A fused expert tensor also occurs per expert: pattern with {} for the expert's number; "a|b" are row halves.
  std::string per_expert = {};
  JoinedRows joined = {};
  std::vector<int64_t> full_shape = {};         // of the whole model's tensor
  std::array<std::vector<Range>, 3> held = {};  // by dimension: the indices of full_shape that are here; empty: all
  bool here = true;                             // false: it lies on other pipeline stages, and is undefined on this one
  // Trained on another stage: the embedding on the last one, which its MTP head looks up, or which is the head.
  bool copied = false;
  std::optional<Range> owned = {};  // Placement::owned: the tensor is flat and has these of the numbers held here
  bool decays() const { return full_shape.size() >= 2; }  // AdamW's weight decay
  int64_t numel() const;                                  // of shape
  int64_t full_numel() const;
};

// Calls f(first, full_first, count) for every run of numbers that is contiguous both here (from number `first`) and in
// the whole tensor (from `full_first`), in rising order of `first`.
void for_each_run(const TensorSpec& spec, const std::function<void(int64_t, int64_t, int64_t)>& f);

// The ranks of the stage (by MeshRank::stage_rank) that hold the same numbers of a tensor, in rising order.
std::vector<int> holders_of(const ModelConfig& config, const TensorSpec& spec, const MeshRank& place);

// What keeps the model from being spread so: a sentence a reason, none when nothing does.
std::vector<std::string> layout_problems(const ModelConfig& config, const ParallelSizes& sizes);

// The layers [begin, end) of a pipeline stage.
Range stage_layers(const ModelConfig& config, const MeshRank& place);

// Where the tensors of a Weights lie.
struct Placement {
  Device device = Device::cpu;
  MeshRank rank = {};  // only what this rank holds
  // Only some of the numbers of each tensor, which is then flat: those of the range that this gives.
  std::function<Range(const TensorSpec&)> owned = {};
  std::optional<bool> only_mtp = std::nullopt;  // allocate that part of the model only
  bool copies = true;                           // false: leave copied tensors undefined, unless they are the head too
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
  static Weights one_part_at_a_time(const ModelConfig& config, DType dtype, const Placement& placement);

  // The same tensors over addresses that must not be touched, for dry runs.
  static Weights outline(const ModelConfig& config, DType dtype, const Placement& placement = {});

  Tensor embed;       // (V, H)
  Tensor final_norm;  // (H) zero-centred
  Tensor lm_head;     // (V, H), of a critic (1, H); where embeddings are tied, `embed` itself, in gradients too
  std::vector<LayerWeights> layers;
  std::vector<MtpWeights> mtp;  // none or one

  // All tensors in the registry's order; specs()[i] describes tensors()[i].
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::vector<TensorSpec>& specs() const { return specs_; }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_.device(); }
  const MeshRank& rank() const { return rank_; }
  int64_t full_vocabulary() const;  // of the whole model
  Range vocabulary() const;         // the part of it whose rows embed and lm_head hold here
  size_t bytes() const { return bytes_; }
  size_t host_bytes() const { return host_storage_.bytes(); }  // page-locked; a part of bytes()
  void zero(Stream&);

 private:
  // Fills specs and returns where each tensor's view belongs.
  std::vector<Tensor*> declare(const ModelConfig& config, DType dtype, const Placement& placement);
  void bind(const ModelConfig& config, DType dtype, const Placement& placement, bool outline);

  DType dtype_ = DType::f32;
  MeshRank rank_;
  Buffer storage_, host_storage_;
  size_t bytes_ = 0;
  std::vector<Tensor> tensors_;
  std::vector<TensorSpec> specs_;
};

// The specs of a model, as one rank holds it, without its tensors.
std::vector<TensorSpec> tensor_registry(const ModelConfig& config, const MeshRank& place = {});
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
