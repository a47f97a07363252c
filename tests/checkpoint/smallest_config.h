// The smallest model with a tensor of every kind. tests/data/checkpoint_v1 was written with it.
#pragma once
#include "model/config.h"

namespace furlong {

inline ModelConfig smallest_config() {
  ModelConfig c;
  c.vocab_size = 5;
  c.hidden_size = 4;
  c.num_layers = 2;
  c.full_attention = {false, true};
  c.num_heads = c.num_kv_heads = 1;
  c.head_dim = c.rotary_dim = 2;
  c.linear_num_key_heads = c.linear_num_value_heads = 1;
  c.linear_key_head_dim = c.linear_value_head_dim = 2;
  c.num_experts = c.experts_per_token = 2;
  c.moe_intermediate_size = c.shared_intermediate_size = 2;
  c.mtp_num_layers = 1;
  return c;
}

}  // namespace furlong
