// The architecture of a Qwen3.5 checkpoint, mixture of experts or dense, read from its config.json and nothing else.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace furlong {

struct ModelConfig {
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  std::vector<bool> full_attention;  // per layer; false: gated DeltaNet

  // gated attention
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // leading dims of a head that rotate
  double rope_theta = 1e7;

  // gated DeltaNet
  int64_t linear_num_key_heads = 0;
  int64_t linear_num_value_heads = 0;
  int64_t linear_key_head_dim = 0;
  int64_t linear_value_head_dim = 0;
  int64_t conv_kernel = 4;
  // Checkpoints keep the projections of a key head with its value heads together (Qwen3-Next); a matter of their files.
  bool grouped_projections = false;

  // feed-forward network: dense, of this width, where there are no experts
  int64_t intermediate_size = 0;
  bool dense() const { return num_experts == 0; }

  // mixture of experts
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  int64_t moe_intermediate_size = 0;
  int64_t shared_intermediate_size = 0;

  bool tied_embeddings = false;  // the head is the embedding
  bool value_head = false;       // a critic: one row in place of the vocabulary's logits (never in config.json)
  bool head_is_embedding() const { return tied_embeddings && !value_head; }
  int64_t mtp_num_layers = 0;  // 0 or 1
  double rms_norm_eps = 1e-6;
  int64_t max_position_embeddings = 0;
  std::vector<int32_t> eos_token_ids;  // config.json's own; generation_config.json's take precedence
  std::string checkpoint_dtype = "bfloat16";

  int64_t key_dim() const { return linear_num_key_heads * linear_key_head_dim; }
  int64_t value_dim() const { return linear_num_value_heads * linear_value_head_dim; }
  int64_t conv_dim() const { return 2 * key_dim() + value_dim(); }
  int64_t num_attention_layers() const;
  int64_t num_delta_layers() const { return num_layers - num_attention_layers(); }
};

// Parses the text of a config.json; `where` names it in errors. Every derived size is checked (positive, divisible,
// within bounds) before anything is allocated. Throws Error(Exit::input) naming the key.
ModelConfig parse_model_config(const std::string& text, const std::string& where);
// Reads DIR/config.json.
ModelConfig read_model_config(const std::string& directory);
// The text of a config.json for this architecture, as `furlong init` writes it.
std::string config_json(const ModelConfig& config);

}  // namespace furlong
