// Models to plan for.
#pragma once
#include "furlong/presets.h"

namespace furlong {

inline ModelConfig toy() {
  ModelConfig c;
  c.vocab_size = 101;
  c.hidden_size = 32;
  c.num_layers = 4;
  c.full_attention = {false, false, false, true};
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.rotary_dim = 4;
  c.linear_num_key_heads = 2;
  c.linear_num_value_heads = 4;
  c.linear_key_head_dim = c.linear_value_head_dim = 16;
  c.num_experts = 8;
  c.experts_per_token = 2;
  c.moe_intermediate_size = c.shared_intermediate_size = 16;
  c.mtp_num_layers = 1;
  c.max_position_embeddings = 4096;
  return c;
}

inline ModelConfig qwen35() { return make_preset("35b-a3b", {}).config; }

}  // namespace furlong
