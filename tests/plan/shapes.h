// Models to plan for.
#pragma once
#include "model/config.h"

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

// The shapes of Qwen3.5-35B-A3B.
inline ModelConfig qwen35() {
  ModelConfig c;
  c.vocab_size = 248320;
  c.hidden_size = 2048;
  c.num_layers = 40;
  for (int64_t i = 0; i < 40; i++) c.full_attention.push_back(i % 4 == 3);
  c.num_heads = 16;
  c.num_kv_heads = 2;
  c.head_dim = 256;
  c.rotary_dim = 64;
  c.linear_num_key_heads = 16;
  c.linear_num_value_heads = 32;
  c.linear_key_head_dim = c.linear_value_head_dim = 128;
  c.num_experts = 256;
  c.experts_per_token = 8;
  c.moe_intermediate_size = c.shared_intermediate_size = 512;
  c.mtp_num_layers = 1;
  c.max_position_embeddings = 262144;
  return c;
}

}  // namespace furlong
