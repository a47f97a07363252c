#include "checkpoint/dist_common.h"

#include "checkpoint/pickle.h"
#include "checkpoint/zip.h"

namespace furlong {
namespace {

using P = pickle::Writer;

class Dict {
 public:
  explicit Dict(P& p) : p_(p) {
    p_.op(P::empty_dict);
    p_.op(P::mark);
  }
  void integer(const char* key, int64_t value) {
    p_.text(key);
    p_.integer(value);
  }
  void real(const char* key, double value) {
    p_.text(key);
    p_.real(value);
  }
  void boolean(const char* key, bool value) {
    p_.text(key);
    p_.boolean(value);
  }
  void text(const char* key, const std::string& value) {
    p_.text(key);
    p_.text(value);
  }
  void key(const char* name) { p_.text(name); }
  void close() { p_.op(P::set_items); }

 private:
  P& p_;
};

void write_arguments(P& p, const ModelConfig& c, int64_t padded_vocab_size, const std::string& dtype) {
  p.global("argparse", "Namespace");
  p.op(P::empty_tuple);
  p.op(P::new_object);
  Dict args(p);
  args.integer("num_layers", c.num_layers);
  args.integer("hidden_size", c.hidden_size);
  args.integer("ffn_hidden_size", c.dense() ? c.intermediate_size : c.moe_intermediate_size);
  args.integer("num_attention_heads", c.num_heads);
  args.integer("num_query_groups", c.num_kv_heads);
  args.boolean("group_query_attention", true);
  args.integer("kv_channels", c.head_dim);
  args.integer("vocab_size", c.vocab_size);
  args.integer("padded_vocab_size", padded_vocab_size);
  args.key("num_experts");
  if (c.dense()) {
    p.none();
  } else {
    p.integer(c.num_experts);
    args.integer("moe_router_topk", c.experts_per_token);
    args.integer("moe_ffn_hidden_size", c.moe_intermediate_size);
    args.integer("moe_shared_expert_intermediate_size", c.shared_intermediate_size);
  }
  args.key("mtp_num_layers");
  if (c.mtp_num_layers > 0) {
    p.integer(c.mtp_num_layers);
  } else {
    p.none();
  }
  args.integer("max_position_embeddings", c.max_position_embeddings);
  args.boolean("add_position_embedding", true);
  args.text("position_embedding_type", "rope");
  args.real("rotary_base", c.rope_theta);
  args.real("rotary_percent", static_cast<double>(c.rotary_dim) / static_cast<double>(c.head_dim));
  args.text("normalization", "RMSNorm");
  args.real("norm_epsilon", c.rms_norm_eps);
  args.boolean("swiglu", true);
  args.boolean("qk_layernorm", true);
  args.boolean("add_bias_linear", false);
  args.boolean("untie_embeddings_and_output_weights", !c.tied_embeddings);
  args.key("params_dtype");
  p.global("torch", dtype);
  args.boolean("bf16", dtype == "bfloat16");
  args.text("ckpt_format", "torch_dist");
  for (const char* size :
       {"tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
        "expert_model_parallel_size", "expert_tensor_parallel_size", "world_size", "data_parallel_size"}) {
    args.integer(size, 1);
  }
  args.integer("consumed_train_samples", 0);
  args.integer("consumed_valid_samples", 0);
  args.boolean("no_save_optim", true);
  args.boolean("no_save_rng", true);
  args.close();
  p.op(P::build);
}

}  // namespace

std::string dist_common(const ModelConfig& config, int64_t padded_vocab_size, const std::string& dtype) {
  P p(2);
  Dict all(p);
  all.key("args");
  write_arguments(p, config, padded_vocab_size, dtype);
  all.real("checkpoint_version", 3.0);
  all.integer("iteration", 1);
  all.integer("num_floating_point_operations_so_far", 0);
  all.key("content_metadata");
  Dict content(p);
  // The loader takes the names and shapes that it asks for from this.
  content.boolean("singleton_local_shards", false);
  content.close();
  all.close();
  ZipBuilder zip("common");
  std::string file = zip.add("data.pkl", p.finish());
  file += zip.add("byteorder", "little");
  file += zip.add("version", "3\n");
  return file + zip.finish();
}

}  // namespace furlong
