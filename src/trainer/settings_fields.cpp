// The table of settings. A row: name, member, commands, help; then unit, range, choices, and how it differs from miles.
#include "trainer/settings.h"

namespace furlong {

// miles' flags that change nothing here (settings_no_effect.cpp).
void add_without_effect(std::vector<Field>& table);

namespace {

constexpr unsigned bit(Command command) { return static_cast<unsigned>(command); }
constexpr unsigned T = bit(Command::train), S = bit(Command::sft), E = bit(Command::eval), G = bit(Command::generate),
                   L = bit(Command::score), K = bit(Command::tokenize), R = bit(Command::grade), I = bit(Command::init),
                   V = bit(Command::convert), X = bit(Command::inspect);
constexpr unsigned model_commands = T | S | E | G | L, all = model_commands | K | R | I | V;

Kind kind_of(const Member& member) {
  struct Visitor {
    Kind operator()(std::monostate) const { return Kind::words; }
    Kind operator()(bool Settings::*) const { return Kind::flag; }
    Kind operator()(int64_t Settings::*) const { return Kind::integer; }
    Kind operator()(std::optional<int64_t> Settings::*) const { return Kind::integer; }
    Kind operator()(double Settings::*) const { return Kind::real; }
    Kind operator()(std::optional<double> Settings::*) const { return Kind::real; }
    Kind operator()(std::string Settings::*) const { return Kind::text; }
    Kind operator()(Texts Settings::*) const { return Kind::texts; }
    Kind operator()(Integers Settings::*) const { return Kind::integers; }
  };
  return std::visit(Visitor{}, member);
}

// One row being written down; the calls chain.
class Row {
 public:
  Row(Topic topic, const char* name, Member member, unsigned commands, const char* help)
      : field_{name, topic, commands, kind_of(member), member, help} {}
  Row& unit(const char* text) { return field_.unit = text, *this; }
  Row& from(double min) { return field_.min = min, *this; }
  Row& above(double min) { return field_.min = min, field_.above_min = true, *this; }
  Row& to(double max) { return field_.max = max, *this; }
  Row& below(double max) { return field_.max = max, field_.below_max = true, *this; }
  Row& choices(Texts texts) { return field_.choices = std::move(texts), *this; }
  Row& json() { return field_.kind = Kind::json, *this; }
  Row& differs(const char* text) { return field_.differs = text, *this; }
  Row& later(Texts allowed) { return field_.later = true, field_.allowed = std::move(allowed), *this; }
  Row& no_effect(const char* why) { return field_.no_effect = why, *this; }
  operator Field() const { return field_; }

 private:
  Field field_;
};

using Table = std::vector<Field>;

void add_checkpoint(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::checkpoint, a...); };
  t.insert(
      t.end(),
      {
          row("hf_checkpoint", &Settings::hf_checkpoint, model_commands | K | V | X,
              "checkpoint folder in the Hugging Face layout: weights, config and tokenizer")
              .unit("folder")
              .differs("the weights of training are read from it too; no torch_dist copy is needed"),
          row("ref_load", &Settings::ref_load, T,
              "weights of the reference model: a Hugging Face, torch_dist or training checkpoint; default: those of "
              "--hf-checkpoint")
              .unit("folder")
              .differs("read only when a KL coefficient (or --observe-kl) needs a reference"),
          row("load", &Settings::load, model_commands | V | X,
              "training checkpoints to resume from, or a Hugging Face or torch_dist checkpoint whose weights are used "
              "in "
              "place of --hf-checkpoint's. convert: the torch_dist checkpoint to read")
              .unit("folder")
              .differs("a folder that does not exist is an error, unless it equals --save or lies in the run "
                       "directory; miles starts afresh silently"),
          row("save", &Settings::save, T | S | I | V,
              "where training checkpoints go; default: checkpoints in the run directory. init, convert: the folder to "
              "write")
              .unit("folder"),
          row("save_interval", &Settings::save_interval, T | S,
              "save a training checkpoint every N rollouts, and after the last")
              .unit("rollouts")
              .from(1),
          row("save_hf", &Settings::save_hf, T | S,
              "where to write the trained weights in the Hugging Face layout; {rollout_id} stands for the number")
              .unit("folder")
              .differs("a failed export is an error; miles logs it and goes on"),
          row("save_hf_dtype", &Settings::save_hf_dtype, T | S | I | V,
              "dtype of exported weights; source: each tensor's as in the source checkpoint")
              .choices({"source", "bf16", "fp32"})
              .differs("not in miles"),
          row("random_init", &Settings::random_init, T | S,
              "start from random weights in the shape of --hf-checkpoint's config.json")
              .differs("not in miles"),
      });
}

void add_run(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::run, a...); };
  t.insert(
      t.end(),
      {
          row("run_dir", &Settings::run_dir, T | S | E, "folder of everything a run writes; default: runs/<command>")
              .unit("folder")
              .differs("not in miles"),
          row("device", &Settings::device, model_commands, "where to compute")
              .choices({"cpu", "cuda"})
              .differs("not in miles"),
          row("dtype", &Settings::dtype, model_commands | I,
              "compute and weights: fp32, or bf16 with fp32 accumulation and masters. init: of the weights")
              .choices({"fp32", "bf16"})
              .differs("not in miles, which is bf16 throughout"),
          row("threads", &Settings::threads, all, "CPU threads; 0: one per core. Results do not depend on it")
              .from(0)
              .to(4096)
              .differs("not in miles"),
          row("seed", &Settings::seed, model_commands | I, "key of sampling and of random weights").from(0),
          row("gpu_memory_gib", &Settings::gpu_memory_gib, model_commands | X,
              "memory of a GPU to plan with; default: what the GPU has, without one that of an H100 (79.6)")
              .unit("GiB")
              .above(0)
              .to(1e6)
              .differs("not in miles"),
          row("host_memory_gib", &Settings::host_memory_gib, model_commands | X,
              "memory of the host to plan with; default: what is available now")
              .unit("GiB")
              .above(0)
              .to(1e7)
              .differs("not in miles"),
          row("plan", &Settings::plan, X, "plan the run of a recipe: memory by name and phase, time by phase")
              .differs("not in miles"),
          row("gpus", &Settings::gpus, X, "GPUs to plan for; default: those of the recipe")
              .unit("GPUs")
              .from(1)
              .to(1 << 16)
              .differs("not in miles"),
          row("actor_num_nodes", &Settings::actor_num_nodes, T | S, "machines of the run")
              .from(1)
              .no_effect("the ranks of a run are those that were started"),
          row("actor_num_gpus_per_node", &Settings::actor_num_gpus_per_node, T | S, "devices a machine")
              .from(1)
              .no_effect("the ranks of a run are those that were started"),
          row("colocate", &Settings::colocate, T | S, "training and rollout share devices")
              .no_effect("training and rollout always share one engine and one copy of the weights"),
      });
}

void add_prompts(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::prompts, a...); };
  t.insert(
      t.end(),
      {
          row("prompt_data", &Settings::prompt_data, T | S, "jsonl file of prompts; file@[a:b] takes rows a to b-1")
              .unit("file")
              .differs(
                  "a malformed line is an error with file:line:column; miles prints and skips it. Parquet is not read"),
          row("input_key", &Settings::input_key, T | S | E, "key of a row's prompt: a text or a list of messages"),
          row("label_key", &Settings::label_key, T | E, "key of a row's right answer"),
          row("metadata_key", &Settings::metadata_key, T | E,
              "key of a row's metadata; its rm_type overrides --rm-type"),
          row("tool_key", &Settings::tool_key, T | S | E, "key of a row's tools, handed to the chat template"),
          row("apply_chat_template", &Settings::apply_chat_template, T | E, "render prompts with the chat template"),
          row("apply_chat_template_kwargs", &Settings::apply_chat_template_kwargs, T | S | E | G | L | K,
              "values for the chat template, such as {\"enable_thinking\": false}")
              .json(),
          row("chat_template", &Settings::chat_template, T | S | E | G | L | K,
              "which built-in chat format; default: the checkpoint's own, recognised by its text")
              .choices({"qwen3", "qwen3.5"})
              .differs("not in miles, which runs the checkpoint's Jinja template"),
          row("rollout_shuffle", &Settings::rollout_shuffle, T | S, "shuffle the prompts anew each epoch"),
          row("rollout_seed", &Settings::rollout_seed, T | S, "seed of the shuffle").from(0),
      });
}

void add_batches(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::batches, a...); };
  t.insert(
      t.end(),
      {
          row("num_rollout", &Settings::num_rollout, T | S, "rollouts (steps of the main loop) to run")
              .unit("rollouts")
              .from(0),
          row("num_epoch", &Settings::num_epoch, T | S, "length of the run in epochs, where --num-rollout is not given")
              .unit("epochs")
              .from(1),
          row("rollout_batch_size", &Settings::rollout_batch_size, T | S, "prompts (sft: conversations) a rollout")
              .unit("prompts")
              .from(1)
              .to(1 << 24),
          row("n_samples_per_prompt", &Settings::n_samples_per_prompt, T, "responses a prompt: the group of GRPO")
              .unit("samples")
              .from(1)
              .to(1 << 20),
          row("global_batch_size", &Settings::global_batch_size, T | S,
              "samples an optimizer step; default: a whole rollout")
              .unit("samples")
              .from(1)
              .differs("rollout batch x samples must be a multiple of it; miles drops the remainder"),
          row("num_steps_per_rollout", &Settings::num_steps_per_rollout, T | S,
              "optimizer steps a rollout, in place of --global-batch-size")
              .unit("steps")
              .from(1),
          row("use_dynamic_batch_size", &Settings::use_dynamic_batch_size, T | S,
              "pack samples into micro-batches of at most --max-tokens-per-gpu tokens"),
          row("max_tokens_per_gpu", &Settings::max_tokens_per_gpu, T | S | L,
              "tokens of a packed micro-batch; a longer sample is one by itself")
              .unit("tokens")
              .from(1),
          row("micro_batch_size", &Settings::micro_batch_size, T | S,
              "samples of a micro-batch without --use-dynamic-batch-size")
              .unit("samples")
              .from(1),
          row("balance_data", &Settings::balance_data, T | S, "spread tokens evenly over micro-batches and ranks"),
          row("log_probs_chunk_size", &Settings::log_probs_chunk_size, T | S | L,
              "rows of logits in memory at a time; -1: chosen here")
              .unit("rows")
              .from(-1)
              .differs("logits are never held whole, so -1 is not the length of a sequence"),
          row("recompute_granularity", &Settings::recompute_granularity, T | S,
              "full: keep only the layers' inputs and run them again in the backward pass")
              .choices({"none", "full"})
              .differs("selective is not offered"),
          row("recompute_method", &Settings::recompute_method, T | S, "how layers are grouped for recomputation")
              .choices({"uniform"})
              .differs("block is not offered"),
          row("recompute_num_layers", &Settings::recompute_num_layers, T | S, "layers a recomputed group")
              .unit("layers")
              .from(1),
      });
}

void add_sampling(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::sampling, a...); };
  t.insert(
      t.end(),
      {
          row("rollout_max_prompt_len", &Settings::rollout_max_prompt_len, T | S,
              "drop longer prompts at load; default: --rollout-max-context-len - 1")
              .unit("tokens")
              .from(1),
          row("rollout_max_response_len", &Settings::rollout_max_response_len, T | E, "most tokens of a response")
              .unit("tokens")
              .from(1),
          row("rollout_max_context_len", &Settings::rollout_max_context_len, T | S | E | G,
              "most tokens of prompt and response together")
              .unit("tokens")
              .from(2),
          row("rollout_temperature", &Settings::rollout_temperature, T | E,
              "sampling temperature; 0: the likeliest token")
              .from(0)
              .to(100),
          row("rollout_top_p", &Settings::rollout_top_p, T | E, "keep the likeliest tokens of this total probability")
              .above(0)
              .to(1),
          row("rollout_top_k", &Settings::rollout_top_k, T | E, "keep the k likeliest tokens; -1: all").from(-1),
          row("rollout_stop", &Settings::rollout_stop, T | E | G, "texts that end a response"),
          row("rollout_stop_token_ids", &Settings::rollout_stop_token_ids, T | E | G,
              "tokens that end a response, besides the checkpoint's")
              .from(0)
              .differs("always joined to the stop ids of generation_config.json, whose sampling defaults are not used"),
      });
}

void add_engine(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::engine, a...); };
  constexpr unsigned engine = T | E | G;
  t.insert(
      t.end(),
      {
          row("rollout_speculative_algorithm", &Settings::rollout_speculative_algorithm, engine,
              "EAGLE: the MTP head drafts, the model verifies; tokens stay the same")
              .choices({"EAGLE", "none"})
              .differs(
                  "drafts share the target's noise, so that the tokens are those of plain decoding at any temperature"),
          row("rollout_speculative_num_steps", &Settings::rollout_speculative_num_steps, engine,
              "tokens drafted a round; default: 2")
              .unit("tokens")
              .from(1)
              .to(16),
          row("rollout_speculative_eagle_topk", &Settings::rollout_speculative_eagle_topk, engine,
              "branches of a draft")
              .from(1)
              .later({"1"}),
          row("rollout_speculative_num_draft_tokens", &Settings::rollout_speculative_num_draft_tokens, engine,
              "rows verified a round: drafted tokens + 1")
              .unit("tokens")
              .from(2)
              .to(17),
          row("rollout_mem_fraction_static", &Settings::rollout_mem_fraction_static, engine,
              "part of memory for all that stays there, KV pages and recurrent slots")
              .above(0)
              .below(1)
              .differs("gradients and optimizer state count too; default: what they leave over (CPU: half of it)"),
          row("rollout_max_running_requests", &Settings::rollout_max_running_requests, engine,
              "most sequences decoded at a time")
              .unit("sequences")
              .from(1)
              .to(1 << 16),
          row("rollout_cuda_graph_bs", &Settings::rollout_cuda_graph_bs, engine,
              "batch sizes to record as CUDA graphs; default: 1, 2, 4, 8, then every 8 to 256. Without effect on the "
              "CPU")
              .unit("sequences")
              .from(1),
          row("rollout_ep_size", &Settings::rollout_ep_size, engine, "expert parallel size of rollout")
              .from(1)
              .no_effect("the rollout runs on the trainer's ranks in the trainer's layout"),
          row("rollout_num_gpus_per_engine", &Settings::rollout_num_gpus_per_engine, engine, "devices an engine spans")
              .from(1)
              .no_effect("the rollout runs on the trainer's ranks in the trainer's layout"),
          row("use_rollout_routing_replay", &Settings::use_rollout_routing_replay, T,
              "train with the experts chosen while sampling")
              .later({"false"}),
      });
}

void add_reward_and_evaluation(Table& t) {
  const auto reward = [](auto... a) { return Row(Topic::reward, a...); };
  const auto row = [](auto... a) { return Row(Topic::evaluation, a...); };
  t.insert(
      t.end(),
      {
          reward("rm_type", &Settings::rm_type, T | E | R, "rule that judges a response")
              .choices({"deepscaler", "dapo", "math", "gemma_math", "boxed_deepscaler", "boxed_dapo", "boxed_math",
                        "boxed_gemma_math"})
              .differs("native rules that cannot hang; docs/grader.md lists the verdicts that differ"),
          reward("reward_key", &Settings::reward_key, T | E,
                 "which number of a rule with several (dapo: score or acc) is the reward"),
          row("eval_interval", &Settings::eval_interval, T, "evaluate every N rollouts, and before the first")
              .unit("rollouts")
              .from(1),
          row("eval_prompt_data", &Settings::eval_prompt_data, T | E, "evaluation sets: name file [name file ...]"),
          row("eval_input_key", &Settings::eval_input_key, T | E, "key of an evaluation prompt; default: --input-key"),
          row("eval_label_key", &Settings::eval_label_key, T | E, "key of an evaluation label; default: --label-key"),
          row("eval_reward_key", &Settings::eval_reward_key, T | E, "as --reward-key, its default"),
          row("n_samples_per_eval_prompt", &Settings::n_samples_per_eval_prompt, T | E,
              "responses an evaluation prompt")
              .unit("samples")
              .from(1)
              .to(1 << 20),
          row("eval_max_prompt_len", &Settings::eval_max_prompt_len, T | E,
              "drop longer evaluation prompts at load; default: --rollout-max-prompt-len")
              .unit("tokens")
              .from(1)
              .differs("miles has no default for it"),
          row("eval_max_response_len", &Settings::eval_max_response_len, T | E,
              "most tokens of an evaluation response; default: --rollout-max-response-len")
              .unit("tokens")
              .from(1),
          row("eval_temperature", &Settings::eval_temperature, T | E, "default: --rollout-temperature").from(0).to(100),
          row("eval_top_p", &Settings::eval_top_p, T | E, "default: --rollout-top-p").above(0).to(1),
          row("eval_top_k", &Settings::eval_top_k, T | E, "default: --rollout-top-k").from(-1),
          row("skip_eval_before_train", &Settings::skip_eval_before_train, T, "no evaluation before the first rollout"),
          row("log_passrate", &Settings::log_passrate, T | E, "report unbiased pass@k for k = 1, 2, 4 ...")
              .differs("a group is its own set's samples; miles uses one size for all sets"),
      });
}

void add_algorithm(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::algorithm, a...); };
  t.insert(
      t.end(),
      {
          row("advantage_estimator", &Settings::advantage_estimator, T, "how rewards become advantages")
              .choices({"grpo"})
              .differs("gspo, reinforce_plus_plus and ppo are not offered yet"),
          row("disable_grpo_std_normalization", &Settings::disable_grpo_std_normalization, T,
              "do not divide by the group's standard deviation (Dr. GRPO)"),
          row("disable_rewards_normalization", &Settings::disable_rewards_normalization, T,
              "use raw rewards as advantages"),
          row("eps_clip", &Settings::eps_clip, T, "how far the ratio may fall below 1").from(0).below(1),
          row("eps_clip_high", &Settings::eps_clip_high, T, "how far the ratio may rise above 1; default: --eps-clip")
              .from(0)
              .to(1e6),
          row("eps_clip_c", &Settings::eps_clip_c, T, "bound of the loss where the advantage is negative (dual clip)")
              .above(1)
              .to(1e6),
          row("use_kl_loss", &Settings::use_kl_loss, T, "add kl_loss_coef x KL(policy, reference) to the loss")
              .differs("with coefficient 0 no reference is loaded or run; see --observe-kl"),
          row("kl_loss_coef", &Settings::kl_loss_coef, T, "weight of the KL loss").from(0).to(1e6),
          row("kl_loss_type", &Settings::kl_loss_type, T, "estimator of the KL divergence")
              .choices({"k1", "k2", "k3", "low_var_kl"}),
          row("kl_coef", &Settings::kl_coef, T, "weight of the KL penalty in the reward")
              .from(0)
              .to(1e6)
              .differs("only 0: it changes nothing under grpo, where miles still runs the reference for it"),
          row("use_unbiased_kl", &Settings::use_unbiased_kl, T, "weigh the KL loss by the ratio"),
          row("entropy_coef", &Settings::entropy_coef, T, "weight of the entropy bonus").from(0).to(1e6),
          row("observe_kl", &Settings::observe_kl, T,
              "run the reference every N rollouts for the kl_loss curve alone; 0: never")
              .unit("rollouts")
              .from(0)
              .differs("not in miles, which runs it every rollout"),
          row("observe_training_entropy", &Settings::observe_training_entropy, T,
              "report the entropy although it is no part of the loss"),
          row("use_rollout_logprobs", &Settings::use_rollout_logprobs, T,
              "take the log-probs of sampling as the old ones"),
          row("skip_actor_forward_only", &Settings::skip_actor_forward_only, T,
              "take the detached current log-probs as the old ones; needs one step a rollout")
              .differs("with one step a rollout it is always so: the two are the same numbers"),
          row("calculate_per_token_loss", &Settings::calculate_per_token_loss, T | S,
              "mean over all tokens of a step, not over samples of their token means"),
      });
  const auto mtp = [](auto... a) { return Row(Topic::mtp, a...); };
  t.insert(
      t.end(),
      {
          mtp("enable_mtp_training", &Settings::enable_mtp_training, T | S,
              "train the MTP head on the sampled tokens, apart from the model")
              .differs("the mask follows the target token (miles is off by one); without the flag MTP weights stay as "
                       "they are"),
          mtp("mtp_num_layers", &Settings::mtp_num_layers, T | S | V,
              "MTP layers; the checkpoint's config.json decides. convert: 0 leaves the MTP head out of torch_dist")
              .from(0)
              .to(1)
              .differs("optional"),
          mtp("mtp_loss_scaling_factor", &Settings::mtp_loss_scaling_factor, T | S, "weight of the MTP loss")
              .from(0)
              .to(1e6)
              .differs("a mean over the whole step's targets; miles averages per micro-batch and rank"),
      });
}

void add_optimizer(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::optimizer, a...); };
  t.insert(t.end(),
           {
               row("optimizer", &Settings::optimizer, T | S, "AdamW: decoupled weight decay")
                   .choices({"adam"})
                   .differs("sgd and muon are not offered"),
               row("lr", &Settings::lr, T | S, "learning rate").from(0).to(1e3),
               row("min_lr", &Settings::min_lr, T | S, "learning rate at the end of a decay").from(0).to(1e3),
               row("lr_decay_style", &Settings::lr_decay_style, T | S, "course of the learning rate after the warm-up")
                   .choices({"constant", "linear", "cosine", "inverse-square-root", "WSD"})
                   .differs("the default is constant, not linear; inverse-square-root needs a warm-up"),
               row("lr_decay_iters", &Settings::lr_decay_iters, T | S,
                   "step at which the rate has come down to --min-lr, warm-up counted in; default: the run's last")
                   .unit("optimizer steps")
                   .from(1),
               row("lr_wsd_decay_style", &Settings::lr_wsd_decay_style, T | S, "course of a WSD schedule's last steps")
                   .choices({"exponential", "linear", "cosine", "minus_sqrt"}),
               row("lr_wsd_decay_iters", &Settings::lr_wsd_decay_iters, T | S,
                   "the last of --lr-decay-iters, in which a WSD schedule comes down")
                   .unit("optimizer steps")
                   .from(1),
               row("lr_warmup_iters", &Settings::lr_warmup_iters, T | S, "steps of linear warm-up")
                   .unit("optimizer steps")
                   .from(0),
               row("lr_warmup_fraction", &Settings::lr_warmup_fraction, T | S,
                   "in place of --lr-warmup-iters: the part of --lr-decay-iters that is warm-up")
                   .from(0)
                   .below(1),
               row("lr_warmup_init", &Settings::lr_warmup_init, T | S, "learning rate at the start of the warm-up")
                   .from(0)
                   .to(1e3),
               row("weight_decay", &Settings::weight_decay, T | S, "decay of tensors of two or more dimensions")
                   .from(0)
                   .to(1e3),
               row("adam_beta1", &Settings::adam_beta1, T | S, "decay of the first moment").from(0).below(1),
               row("adam_beta2", &Settings::adam_beta2, T | S, "decay of the second moment").from(0).below(1),
               row("adam_eps", &Settings::adam_eps, T | S, "added to the root of the second moment").above(0).to(1),
               row("clip_grad", &Settings::clip_grad, T | S, "largest norm of the whole gradient; 0: no clipping")
                   .from(0)
                   .to(1e12),
               row("optimizer_cpu_offload", &Settings::optimizer_cpu_offload, T | S,
                   "with --device cuda: masters, moments and update in page-locked host memory, to the same bits"),
               row("optimizer_offload_fraction", &Settings::optimizer_offload_fraction, T | S,
                   "part of all numbers whose tensors are offloaded, in order")
                   .from(0)
                   .to(1),
               row("overlap_cpu_optimizer_d2h_h2d", &Settings::overlap_cpu_optimizer_d2h_h2d, T | S,
                   "send gradients to the host layer by layer during the last backward"),
               row("use_precision_aware_optimizer", &Settings::use_precision_aware_optimizer, T | S,
                   "let the next four say what the optimizer keeps in which dtype"),
               row("main_grads_dtype", &Settings::main_grads_dtype, T | S,
                   "gradients summed over micro-batches; each micro-batch computes its own in fp32")
                   .choices({"fp32", "bf16"}),
               row("main_params_dtype", &Settings::main_params_dtype, T | S,
                   "masters of bf16 weights; bf16: the weights are their own masters")
                   .choices({"fp32", "bf16"})
                   .differs("bf16 in place of fp16"),
           });
  for (const auto& [name, member, help] :
       {std::tuple("exp_avg_dtype", &Settings::exp_avg_dtype, "first moments"),
        std::tuple("exp_avg_sq_dtype", &Settings::exp_avg_sq_dtype, "second moments")}) {
    t.push_back(row(name, member, T | S, help).choices({"fp32", "bf16"}).differs("no fp16 or fp8"));
  }
}

void add_parallel(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::parallel, a...); };
  t.insert(t.end(), {
                        row("nproc", &Settings::nproc, model_commands | V,
                            "processes on this host, which mpirun starts; with mpirun or srun of your own leave it out")
                            .unit("ranks")
                            .from(1)
                            .to(1024)
                            .differs("not in miles"),
                        row("distributed_timeout_minutes", &Settings::distributed_timeout_minutes, model_commands,
                            "how long a rank waits for another before the run ends with that one's name")
                            .unit("minutes")
                            .from(1)
                            .to(1e6)
                            .differs("a rank that dies or hangs is noticed within half a minute in any case"),
                    });
  for (const auto& [name, member, help] : {
           std::tuple("tensor_model_parallel_size", &Settings::tensor_model_parallel_size,
                      "ranks that split a layer's matrices"),
           std::tuple("pipeline_model_parallel_size", &Settings::pipeline_model_parallel_size,
                      "ranks that split the layers"),
           std::tuple("context_parallel_size", &Settings::context_parallel_size, "ranks that split a sequence"),
           std::tuple("expert_model_parallel_size", &Settings::expert_model_parallel_size,
                      "ranks that split the experts"),
           std::tuple("expert_tensor_parallel_size", &Settings::expert_tensor_parallel_size,
                      "ranks that split an expert's matrices"),
       }) {
    t.push_back(row(name, member, T | S, help).unit("ranks").from(1).to(1 << 16));
  }
  t.insert(
      t.end(),
      {
          row("sequence_parallel", &Settings::sequence_parallel, T | S,
              "split activations between tensor parallel ranks")
              .differs("always done where there are any, with or without the flag"),
          row("moe_token_dispatcher_type", &Settings::moe_token_dispatcher_type, T | S,
              "how tokens reach experts on other ranks")
              .choices({"alltoall", "allgather", "flex"})
              .differs(
                  "flex is not DeepEP: every row goes to all ranks of its experts' group, without asking the host; "
                  "allgather is the same"),
      });
}

void add_tools(Table& t) {
  const auto debug = [](auto... a) { return Row(Topic::debugging, a...); };
  const auto file = [](auto... a) { return Row(Topic::files, a...); };
  const auto gen = [](auto... a) { return Row(Topic::generate, a...); };
  const auto tok = [](auto... a) { return Row(Topic::tokenize, a...); };
  const auto conv = [](auto... a) { return Row(Topic::convert, a...); };
  t.insert(
      t.end(),
      {
          debug("debug_rollout_only", &Settings::debug_rollout_only, T, "roll out and score, train nothing"),
          debug("debug_train_only", &Settings::debug_train_only, T, "train on a trajectory file, roll out nothing"),
          debug("save_debug_rollout_data", &Settings::save_debug_rollout_data, T,
                "write the trajectories here; {rollout_id} stands for the number")
              .unit("file")
              .differs("jsonl, not a pickle"),
          debug("load_debug_rollout_data", &Settings::load_debug_rollout_data, T,
                "train on these trajectories; implies --debug-train-only")
              .unit("file")
              .differs("jsonl, not a pickle"),
          debug("dump_grads", &Settings::dump_grads, T | S,
                "write each step's gradients, before clipping, as safetensors under the Hugging Face names")
              .unit("folder")
              .differs("not in miles"),
          file("input", &Settings::input, G | L | K | R, "jsonl to read; - is standard input")
              .unit("file")
              .differs("not in miles"),
          file("output", &Settings::output, G | L | K | R, "jsonl to write; - is standard output")
              .unit("file")
              .differs("not in miles"),
          gen("max_new_tokens", &Settings::max_new_tokens, G, "most tokens of a completion").unit("tokens").from(1),
          gen("temperature", &Settings::temperature, G, "0: the likeliest token").from(0).to(100),
          gen("top_p", &Settings::top_p, G, "keep the likeliest tokens of this total probability").above(0).to(1),
          gen("top_k", &Settings::top_k, G, "keep the k likeliest tokens; -1: all").from(-1),
          gen("ignore_eos", &Settings::ignore_eos, G, "go on after a stop token"),
          tok("tokenizer", &Settings::tokenizer, K | I,
              "tokenizer.json or its folder; init: default is one token a byte")
              .unit("path"),
          tok("decode", &Settings::decode, K, "ids to text"),
          tok("chat", &Settings::chat, K, "messages to the text of a prompt"),
          conv("preset", &Settings::preset, I | X,
               "shape of the new checkpoint; inspect: the model, where no checkpoint is there")
              .choices({"tiny", "small", "35b-a3b"}),
          conv("num_layers", &Settings::num_layers, I, "layers, in place of the preset's")
              .unit("layers")
              .from(1)
              .to(1024),
          conv("from", &Settings::from, V,
               "layout of the checkpoint to read: hf (--hf-checkpoint), or Megatron's torch_dist (--load; config, "
               "tokenizer, packing and dtypes are those of --hf-checkpoint)")
              .choices({"hf", "torch_dist"}),
          conv("to", &Settings::to, V, "layout to write").choices({"hf", "torch_dist"}),
          conv("convert_workers", &Settings::convert_workers, V,
               "threads that write a torch_dist checkpoint together, each its own files")
              .from(1)
              .to(256),
          conv("expert_packing", &Settings::expert_packing, I | V,
               "experts fused in one tensor or one by one; source: as in the source (init: as released)")
              .choices({"source", "fused", "per-expert"}),
      });
}

}  // namespace

const std::vector<Field>& fields() {
  static const Table table = [] {
    Table t;
    add_checkpoint(t);
    add_run(t);
    add_prompts(t);
    add_batches(t);
    add_sampling(t);
    add_engine(t);
    add_reward_and_evaluation(t);
    add_algorithm(t);
    add_optimizer(t);
    add_parallel(t);
    add_tools(t);
    add_without_effect(t);
    return t;
  }();
  return table;
}

}  // namespace furlong
