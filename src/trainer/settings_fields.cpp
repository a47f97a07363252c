// The table of settings. A row: name, member, commands, help; then unit, range, choices, and how it differs from miles.
#include "trainer/settings_row.h"

namespace furlong {
namespace setting {
namespace {

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
              "training checkpoints to start from, until the run has some of its own; or a Hugging Face or torch_dist "
              "checkpoint whose weights are used in place of --hf-checkpoint's. convert: the torch_dist checkpoint to "
              "read")
              .unit("folder")
              .differs("a folder that does not exist is an error, unless it equals --save or lies in the run "
                       "directory; miles starts afresh silently. Of another run: miles starts from it every time"),
          row("save", &Settings::save, T | S | I | V,
              "where training checkpoints go; default: checkpoints in the run directory; none: nowhere. init, "
              "convert: the folder to write")
              .unit("folder"),
          row("save_interval", &Settings::save_interval, T | S,
              "save a training checkpoint every N rollouts, and after the last")
              .unit("rollouts")
              .from(1),
          row("keep_checkpoints", &Settings::keep_checkpoints, T | S,
              "keep the newest N training checkpoints; an older one is removed once a newer one has been read back "
              "and verified")
              .from(2)
              .to(1000)
              .differs("not in miles, which keeps all"),
          row("save_hf", &Settings::save_hf, T | S,
              "where to write the trained weights in the Hugging Face layout; {rollout_id} stands for the number; "
              "none: "
              "nowhere")
              .unit("folder")
              .differs("a failed export is an error; miles logs it and goes on"),
          row("save_hf_dtype", &Settings::save_hf_dtype, T | S | I | V,
              "dtype of exported weights; source: each tensor's as in the source checkpoint")
              .choices({"source", "bf16", "fp32"})
              .differs("not in miles"),
          row("random_init", &Settings::random_init, T | S,
              "start from random weights in the shape of --hf-checkpoint's config.json")
              .differs("not in miles"),
          row("max_text_loss", &Settings::max_text_loss, T,
              "the most that a plain English text may cost the weights before the first rollout, else they are refused "
              "as garbled. Default: half of ln(vocabulary), below 32768 tokens with a warning alone; 0: not looked at")
              .unit("nats a token")
              .from(0)
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
          row("dtype", &Settings::dtype, model_commands | I | B,
              "compute and weights: fp32, or bf16 with fp32 accumulation and masters; auto: bf16 with --device cuda, "
              "else fp32. init: of the weights")
              .choices({"auto", "fp32", "bf16"})
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
          row("data_on_error", &Settings::data_on_error, T | S,
              "what becomes of bad rows of --prompt-data. error: the first one ends the program; skip: they are left "
              "out, counted and the first ten named, up to 1 % of the rows; more is an error. Seen before the first "
              "step")
              .choices({"error", "skip"})
              .differs("not in miles, which skips them, however many"),
          row("input_key", &Settings::input_key, T | S | E, "key of a row's prompt: a text or a list of messages"),
          row("label_key", &Settings::label_key, T | E, "key of a row's right answer"),
          row("metadata_key", &Settings::metadata_key, T | E,
              "key of a row's metadata; its rm_type overrides --rm-type"),
          row("tool_key", &Settings::tool_key, T | S | E, "key of a row's tools, handed to the chat template"),
          row("apply_chat_template", &Settings::apply_chat_template, T | E, "render prompts with the chat template"),
          row("apply_chat_template_kwargs", &Settings::apply_chat_template_kwargs, T | S | E | G | L | K | Z,
              "values for the chat template, such as {\"enable_thinking\": false}")
              .json(),
          row("chat_template", &Settings::chat_template, T | S | E | G | L | K | Z,
              "a built-in chat format (qwen3, qwen3.5) or a file with a Jinja template; default: the checkpoint's own")
              .unit("a name or a file")
              .differs("--chat-template-path in miles, for files alone"),
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
          row("rollout_max_context_len", &Settings::rollout_max_context_len, T | S | E | G | Z,
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
  constexpr unsigned engine = T | E | G | Z;
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
          row("rollout_forced_accept_length", &Settings::rollout_forced_accept_length, engine,
              "verifications accept so many tokens on average, whatever was drawn: to time random weights")
              .unit("tokens")
              .from(1)
              .to(17)
              .differs("not in miles"),
          row("rollout_speculative_cost_model", &Settings::rollout_speculative_cost_model, engine,
              "measured: time steps with and without drafts at the start, and leave drafts out where they do not pay; "
              "tokens stay the same, how many are drafted follows the machine. auto: measured on GPUs")
              .choices({"auto", "measured", "none"}),
          row("true_on_policy", &Settings::true_on_policy, T,
              "the trainer's log-probs of a rollout are the sampler's, to the bit, or the run stops with exit code 5")
              .differs(
                  "miles: --true-on-policy-mode, kernels of their own for dense models. Here the program's own, and "
                  "on a GPU attention in the order of training for decoded rows too"),
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
              "train with the experts and gate weights of sampling (not the MTP head, nor a reference model)")
              .differs("miles replays the ids alone"),
          row("dynamic_sampling_filter_path", &Settings::dynamic_sampling_filter_path, T,
              "which groups to keep: check_reward_nonzero_std, those whose rewards differ; others are drawn in "
              "place of the rest")
              .differs("a name, with any path before it; miles loads a Python function"),
          row("dynamic_sampling_max_groups", &Settings::dynamic_sampling_max_groups, T,
              "most groups drawn for one rollout; default: 10 times --rollout-batch-size")
              .unit("groups")
              .from(1)
              .differs("not in miles, which draws for ever"),
          row("over_sampling_batch_size", &Settings::over_sampling_batch_size, T,
              "groups drawn at a time; the first --rollout-batch-size that are done (and kept) end the rollout. "
              "Default: "
              "that size")
              .unit("groups")
              .from(1)
              .differs("later draws are in proportion to the groups still missing"),
          row("partial_rollout", &Settings::partial_rollout, T,
              "groups under way when a rollout is full go on in the next one, from their tokens")
              .differs("they are part of checkpoints, so that a resumed run has them too"),
          row("mask_offpolicy_in_partial_rollout", &Settings::mask_offpolicy_in_partial_rollout, T,
              "train only on the tokens of the newest weights in a response that spans several rollouts"),
          row("train_during_tail", &Settings::train_during_tail, T,
              "learn from groups that are complete while the last sequences of the rollout are sampled, with the same "
              "weights; both have memory of their own then")
              .differs("not in miles"),
          row("tail_sequences", &Settings::tail_sequences, T,
              "with --train-during-tail: fewer sequences than this under way begin the tail. Default: a quarter of the "
              "rollout's samples")
              .unit("sequences")
              .from(1)
              .differs("not in miles"),
          row("async_rollout", &Settings::async_rollout, T,
              "sample the next rollout while this one is learnt from: it is one optimizer update behind")
              .differs("miles has a program of its own, train_async.py; here old log-probs are those of the weights "
                       "that sampled, and checkpoints hold the rollout ahead"),
          row("custom_generate_command", &Settings::custom_generate_command, T | E,
              "command that answers each turn of the model with further messages, or ends the conversation "
              "(docs/rewards.md)")
              .differs("a command; miles loads a Python function"),
          row("custom_generate_url", &Settings::custom_generate_url, T | E,
              "service that does so over HTTP, with the deadlines of --rm-url")
              .unit("URL")
              .differs("not in miles"),
          row("generate_max_turns", &Settings::generate_max_turns, T | E, "most turns of the model in a conversation")
              .unit("turns")
              .from(1)
              .to(1 << 16),
      });
}

void add_reward(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::reward, a...); };
  t.insert(
      t.end(),
      {
          row("rm_type", &Settings::rm_type, T | E | R,
              "rule that judges a response: deepscaler, dapo, math, gemma_math, f1, gpqa, ifbench, random, "
              "deterministic_random, each also as boxed_RULE, of the last box alone; remote_rm: --rm-url does")
              .unit("rule")
              .differs("native rules that cannot hang; docs/grader.md lists the verdicts that differ"),
          row("nltk_data", &Settings::nltk_data, T | E | R,
              "folder of NLTK's downloader (punkt_tab, stopwords, averaged_perceptron_tagger_eng; and "
              "syllapy/data.csv), "
              "for the instructions of ifbench that need one")
              .unit("folder")
              .differs("not in miles, which downloads it"),
          row("reward_key", &Settings::reward_key, T | E | R,
              "which number of a rule with several (dapo: score or acc), or of a service's answer, is the reward"),
          row("rm_url", &Settings::rm_url, T | E | R,
              "service of remote_rm: gets prompt, response and label as JSON by POST, answers a number")
              .unit("URL")
              .differs("tried again, never waited for without end; a sample it does not score is unscored"),
          row("rm_batch_size", &Settings::rm_batch_size, T | E | R,
              "samples of a request to --rm-url; above 1: {\"samples\": [...]}, answered by a list of numbers")
              .unit("samples")
              .from(1)
              .to(4096)
              .differs("not in miles"),
          row("rm_concurrency", &Settings::rm_concurrency, T | E | R, "requests to a service at a time")
              .unit("requests")
              .from(1)
              .to(1024)
              .differs("not in miles"),
          row("rm_timeout", &Settings::rm_timeout, T | E | R, "longest wait for an answer of a service or command")
              .unit("seconds")
              .above(0)
              .to(86400)
              .differs("not in miles"),
          row("rm_tries", &Settings::rm_tries, T | E | R, "tries of a request to a service, with growing waits between")
              .unit("tries")
              .from(1)
              .to(100)
              .differs("miles tries once"),
          row("rm_max_unscored", &Settings::rm_max_unscored, T,
              "part of a rollout's samples that a service or command may leave unscored; beyond it the run stops")
              .from(0)
              .to(1)
              .differs("not in miles"),
          row("custom_rm_command", &Settings::custom_rm_command, T | E | R,
              "command that scores: a question a line on its standard input, an answer a line on its standard output "
              "(docs/rewards.md)")
              .differs("a command of any language, outside the program; miles loads a Python function "
                       "(--custom-rm-path)"),
          row("custom_rm_processes", &Settings::custom_rm_processes, T | E | R,
              "processes of --custom-rm-command, and of --custom-generate-command")
              .unit("processes")
              .from(1)
              .to(1024)
              .differs("not in miles"),
          row("group_rm", &Settings::group_rm, T, "score all samples of a prompt in one question"),
      });
}

void add_evaluation(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::evaluation, a...); };
  t.insert(
      t.end(),
      {
          row("eval_interval", &Settings::eval_interval, T, "evaluate every N rollouts, and before the first")
              .unit("rollouts")
              .from(1),
          row("eval_prompt_data", &Settings::eval_prompt_data, T | E, "evaluation sets: name file [name file ...]"),
          row("eval_config", &Settings::eval_config, T | E,
              "YAML or JSON file of evaluation sets, with settings of their own (docs/rewards.md)")
              .unit("file")
              .differs("stop and stop_token_ids of a set take effect; names that mean nothing are errors"),
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

}  // namespace
}  // namespace setting

const std::vector<Field>& fields() {
  static const setting::Table table = [] {
    using namespace setting;
    setting::Table t;
    add_checkpoint(t);
    add_run(t);
    add_prompts(t);
    add_batches(t);
    add_sampling(t);
    add_engine(t);
    add_reward(t);
    add_evaluation(t);
    add_training(t);
    add_observing(t);
    add_without_effect(t);
    return t;
  }();
  return table;
}

}  // namespace furlong
