// The flags of miles' launch lines that are accepted, named in one warning line and otherwise left alone.
#include "trainer/settings_row.h"

namespace furlong::setting {

void add_without_effect(Table& t) {
  constexpr unsigned commands = static_cast<unsigned>(Command::train) | static_cast<unsigned>(Command::sft);
  const auto add = [&](const char* why, std::initializer_list<const char*> names, const Texts& allowed = {}) {
    for (const char* name : names) {
      Field field{name, Topic::no_effect, commands, Kind::words, std::monostate(), ""};
      field.no_effect = why;
      field.allowed = allowed;
      t.push_back(std::move(field));
    }
  };
  add("the checkpoint's config.json decides", {"spec",
                                               "num_layers",
                                               "hidden_size",
                                               "ffn_hidden_size",
                                               "num_attention_heads",
                                               "group_query_attention",
                                               "num_query_groups",
                                               "kv_channels",
                                               "qk_layernorm",
                                               "apply_layernorm_1p",
                                               "normalization",
                                               "norm_epsilon",
                                               "position_embedding_type",
                                               "rotary_percent",
                                               "rotary_base",
                                               "swiglu",
                                               "disable_bias_linear",
                                               "untie_embeddings_and_output_weights",
                                               "vocab_size",
                                               "attention_output_gate",
                                               "num_experts",
                                               "moe_router_topk",
                                               "moe_ffn_hidden_size",
                                               "moe_shared_expert_intermediate_size",
                                               "moe_shared_expert_gate",
                                               "moe_router_score_function",
                                               "moe_layer_freq",
                                               "model_name"});
  add("there is none here", {"attention_dropout", "hidden_dropout", "moe_aux_loss_coeff"}, {"0"});
  add("always so here", {"accumulate_allreduce_grads_in_fp32", "attention_softmax_in_fp32", "moe_grouped_gemm",
                         "use_distributed_optimizer"});
  add("always so here", {"moe_router_dtype"}, {"fp32"});
  add("always so here", {"qkv_format"}, {"thd"});
  add("no expert drops a token", {"moe_token_drop_policy"});
  add("the program chooses its kernels",
      {"attention_backend", "moe_permute_fusion", "linear_attention_backend", "train_backend",
       "no_gradient_accumulation_fusion", "rollout_attention_backend", "rollout_moe_runner_backend",
       "rollout_mamba_scheduler_strategy"});
  add("the ranks of a run are those that were started, and it does these things its own way",
      {"num_gpus_per_node", "rollout_num_gpus", "rollout_server_concurrency", "use_miles_router", "use_fault_tolerance",
       "overlap_grad_reduce", "overlap_param_gather"});
  add("the trainer's weights are the rollout's",
      {"offload", "offload_train", "offload_rollout", "update_weight_buffer_size", "megatron_to_hf_mode"});
  add("the critic is a part of the run's checkpoints and lies beside the policy",
      {"critic_save", "critic_num_nodes", "critic_num_gpus_per_node"});
  add("metrics go to the run directory",
      {"wandb_group", "wandb_host", "wandb_key", "wandb_mode", "wandb_dir", "disable_wandb_random_suffix",
       "use_tensorboard", "tb_project_name", "tb_experiment_name"});
}

}  // namespace furlong::setting
