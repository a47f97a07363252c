// The model of the whole-model tests on a device.
#pragma once
#include "model/config.h"

namespace furlong::test {

inline ModelConfig small_model() {
  ModelConfig c;
  c.vocab_size = 97;
  c.hidden_size = 64;
  c.num_layers = 4;
  c.full_attention = {false, false, true, false};
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.rotary_dim = 4;
  c.linear_num_key_heads = 2;
  c.linear_num_value_heads = 4;
  c.linear_key_head_dim = c.linear_value_head_dim = 16;
  c.num_experts = 8;
  c.experts_per_token = 2;
  c.moe_intermediate_size = c.shared_intermediate_size = 32;
  c.mtp_num_layers = 1;
  c.max_position_embeddings = 1024;
  return c;
}

// With a dense network, three value heads a key head, and the embedding as the head.
inline ModelConfig made_dense(ModelConfig c) {
  c.intermediate_size = 4 * c.moe_intermediate_size;
  c.num_experts = c.experts_per_token = c.moe_intermediate_size = c.shared_intermediate_size = 0;
  c.linear_num_value_heads = 3 * c.linear_num_key_heads;
  c.tied_embeddings = true;
  return c;
}

}  // namespace furlong::test
