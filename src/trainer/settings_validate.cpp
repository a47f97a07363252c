// What no single value can show to be wrong: conflicts between settings, and what this build does not do.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "trainer/options.h"
#include "trainer/settings_rules.h"

namespace furlong {
namespace {

// Without the quotation marks of TOML.
std::string unquoted(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), '"'), text.end());
  return text;
}

// One pass over the settings of a command.
class Validator : public SettingsRules {
 public:
  using SettingsRules::SettingsRules;

  void run() {
    if (s_.dtype == "auto") s_.dtype = s_.device == "cuda" ? "bf16" : "fp32";
    if (is(Command::inspect)) {
      inspect();
      return;
    }
    refuse_later_work();
    if (is(Command::train) || is(Command::sft)) {
      if (s_.mtp_num_layers == 0) complain("--mtp-num-layers 0: leave it out; config.json decides");
      require_inputs();
      batches();
      run_length();
      optimizer();
    }
    if (is(Command::train)) {
      halves();
      exactness();
      algorithm_conflicts(s_, complaints_);
    }
    rollout_conflicts(s_, command_, complaints_);
    template_values();
    routing_replay();
    commands();
    folders();
  }

 private:
  // A plan takes sizes that a run refuses; what a plan does not need may be left out.
  void inspect() {
    batches();
    rollout_conflicts(s_, command_, complaints_);
    if (const std::string conflict = browsing_conflict(s_); !conflict.empty()) complain("{}", conflict);
    if (s_.rollout) return;
    if (s_.plan || !s_.load.empty()) return;
    require(s_.hf_checkpoint, "--hf-checkpoint", "the checkpoint to list, or --plan with a recipe");
  }

  // Settings of later work, at any value but the one this build has.
  void refuse_later_work() {
    for (const auto& field : fields()) {
      if (!field.later || !field.takes(command_)) continue;
      const std::string value = format_value(s_, field);
      const auto& allowed = field.allowed;
      if (value.empty() || std::find(allowed.begin(), allowed.end(), value) != allowed.end()) continue;
      const auto origin = s_.given.find(field.name);
      const bool from_file = origin != s_.given.end() && origin->second.find(':') != std::string::npos;
      std::string remedy = "use " + unquoted(join_or(allowed));
      if (field.kind == Kind::flag)
        remedy = from_file ? "leave it out, or give --no-" + field.flag().substr(2) : "leave it out";
      if (field.kind == Kind::integers)
        remedy = from_file ? "leave it out, or give " + field.flag() + "=" : "leave it out";
      const std::string where = from_file ? origin->second + ": " + field.name : field.flag();
      const std::string shown = field.kind == Kind::flag ? "" : " " + unquoted(printable(value, 40));
      complain("{}{}: not in this build; {}", where, shown, remedy);
    }
  }

  void require_inputs() {
    require(s_.hf_checkpoint, "--hf-checkpoint", "the model's folder");
    const bool reads_prompts = s_.load_debug_rollout_data.empty();
    if (reads_prompts && !s_.debug_train_only) require(s_.prompt_data, "--prompt-data", "a jsonl file");
    if (!s_.rollout_batch_size)
      complain("`furlong {}` needs --rollout-batch-size (prompts a rollout)", name_of(command_));
    if (s_.apply_chat_template_kwargs.empty() || s_.apply_chat_template || is(Command::sft)) return;
    complain("--apply-chat-template-kwargs without --apply-chat-template: add that flag, or leave the values out");
  }

  // The identity rollout_batch_size x n_samples_per_prompt = global_batch_size x num_steps_per_rollout; the missing
  // side is filled in.
  void batches() {
    if (s_.use_dynamic_batch_size && !s_.max_tokens_per_gpu) {
      complain("--use-dynamic-batch-size needs --max-tokens-per-gpu (tokens of a micro-batch)");
    }
    if (!s_.use_dynamic_batch_size && s_.max_tokens_per_gpu) {
      complain("--max-tokens-per-gpu {} without --use-dynamic-batch-size: add that flag, or use --micro-batch-size",
               *s_.max_tokens_per_gpu);
    }
    if (s_.log_probs_chunk_size == 0) complain("--log-probs-chunk-size 0: needs -1, or 1 and more");
    if (s_.recompute_granularity == "none" && (!s_.recompute_method.empty() || s_.recompute_num_layers)) {
      complain("--recompute-method and --recompute-num-layers need --recompute-granularity full");
    }
    if (s_.recompute_granularity == "full") {
      if (s_.recompute_method.empty()) s_.recompute_method = "uniform";
      if (!s_.recompute_num_layers) s_.recompute_num_layers = 1;
    }
    if (!s_.rollout_batch_size) return;
    const bool groups = is(Command::train) || is(Command::inspect);
    const int64_t group = groups ? s_.n_samples_per_prompt : 1;
    const int64_t samples = *s_.rollout_batch_size * group;
    const std::string rollout =
        groups ? fmt::format("--rollout-batch-size {} x --n-samples-per-prompt {} = {} samples a rollout",
                             *s_.rollout_batch_size, group, samples)
               : fmt::format("--rollout-batch-size {}", samples);
    if (s_.global_batch_size && s_.num_steps_per_rollout) {
      // Compared by division: the product of two numbers from a user may overflow.
      if (samples % *s_.global_batch_size != 0 || samples / *s_.global_batch_size != *s_.num_steps_per_rollout) {
        complain("{}, but --global-batch-size {} x --num-steps-per-rollout {} is not that; leave one of the two out",
                 rollout, *s_.global_batch_size, *s_.num_steps_per_rollout);
      }
    } else if (s_.global_batch_size) {
      if (samples % *s_.global_batch_size != 0) {
        complain("{}, which --global-batch-size {} does not divide; {}", rollout, *s_.global_batch_size,
                 *s_.global_batch_size > samples ? fmt::format("use at most {}", samples)
                                                 : std::string("the rest of a rollout would be wasted"));
      }
      s_.num_steps_per_rollout = std::max<int64_t>(1, samples / *s_.global_batch_size);
    } else {
      const int64_t steps = s_.num_steps_per_rollout.value_or(1);
      if (samples % steps != 0) complain("{}, which --num-steps-per-rollout {} does not divide", rollout, steps);
      s_.num_steps_per_rollout = steps;
      s_.global_batch_size = std::max<int64_t>(1, samples / steps);
    }
  }

  // Any value may be the template's; what a run itself hands to it may not.
  void template_values() {
    if (s_.apply_chat_template_kwargs.empty()) return;
    const Json values = parse_json(s_.apply_chat_template_kwargs, "--apply-chat-template-kwargs");
    for (const auto& [key, value] : values.items()) {
      if (key == "messages" || key == "tools" || key == "add_generation_prompt") {
        complain("--apply-chat-template-kwargs: {} comes from the rows and the command, not from this flag", key);
      } else if (key == "enable_thinking" && !value.is_boolean()) {
        complain("--apply-chat-template-kwargs: enable_thinking needs true or false");
      }
    }
  }

  void routing_replay() {
    const bool split =
        s_.tensor_model_parallel_size > 1 || s_.context_parallel_size > 1 || s_.pipeline_model_parallel_size > 1;
    if (!s_.use_rollout_routing_replay || !split) return;
    complain(
        "--use-rollout-routing-replay needs whole rows and all layers on each rank: leave out "
        "--tensor-model-parallel-size, --context-parallel-size and --pipeline-model-parallel-size; data and expert "
        "parallel ranks are fine");
  }

  void run_length() {
    if (!s_.num_rollout && !s_.num_epoch) {
      complain("`furlong {}` needs --num-rollout (steps) or --num-epoch", name_of(command_));
    }
    if (s_.debug_train_only && !s_.num_rollout && s_.num_epoch) {
      complain("--debug-train-only with --num-epoch: without prompts there are no epochs; give --num-rollout");
    }
  }

  void optimizer() {
    learning_rate();
    for (const auto& [flag, value] :
         {std::pair("--main-grads-dtype", &s_.main_grads_dtype),
          std::pair("--main-params-dtype", &s_.main_params_dtype), std::pair("--exp-avg-dtype", &s_.exp_avg_dtype),
          std::pair("--exp-avg-sq-dtype", &s_.exp_avg_sq_dtype)}) {
      if (*value != "fp32" && !s_.use_precision_aware_optimizer) {
        complain("{} {} needs --use-precision-aware-optimizer", flag, *value);
      }
    }
    if (s_.main_params_dtype == "bf16" && s_.dtype != "bf16") {
      complain("--main-params-dtype bf16 with --dtype {}: such weights are their own masters; use --dtype bf16",
               s_.dtype);
    }
    if (s_.overlap_cpu_optimizer_d2h_h2d && !s_.optimizer_cpu_offload) {
      complain("--overlap-cpu-optimizer-d2h-h2d needs --optimizer-cpu-offload");
    }
  }

  void learning_rate() {
    const bool warms = s_.lr_warmup_iters > 0 || s_.lr_warmup_fraction.value_or(0) > 0;
    if (s_.lr_warmup_init > s_.lr) complain("--lr-warmup-init {} is above --lr {}", s_.lr_warmup_init, s_.lr);
    if (s_.lr_warmup_init > 0 && !warms) {
      complain("--lr-warmup-init {} without --lr-warmup-iters: there is no warm-up to start", s_.lr_warmup_init);
    }
    if (s_.lr_warmup_iters > 0 && s_.lr_warmup_fraction) {
      complain("--lr-warmup-iters {} and --lr-warmup-fraction {}: leave one out", s_.lr_warmup_iters,
               *s_.lr_warmup_fraction);
    }
    const bool constant = s_.lr_decay_style == "constant", wsd = s_.lr_decay_style == "WSD";
    if (s_.min_lr != 0 && constant) {
      complain("--min-lr {} has no meaning with --lr-decay-style constant; leave it out", s_.min_lr);
    }
    if (s_.min_lr > s_.lr && !constant) complain("--min-lr {} is above --lr {}", s_.min_lr, s_.lr);
    if (s_.lr_decay_iters && constant && !s_.lr_warmup_fraction) {
      complain("--lr-decay-iters {} has no meaning with --lr-decay-style constant; leave it out, or choose a decay",
               *s_.lr_decay_iters);
    }
    if (s_.lr_decay_style == "inverse-square-root" && !warms) {
      complain(
          "--lr-decay-style inverse-square-root needs --lr-warmup-iters: the rate falls with the root of the steps "
          "over "
          "these");
    }
    if (wsd && !s_.lr_wsd_decay_iters) {
      complain("--lr-decay-style WSD needs --lr-wsd-decay-iters (the last steps, in which the rate comes down)");
    } else if (!wsd && s_.lr_wsd_decay_iters) {
      complain("--lr-wsd-decay-iters {} needs --lr-decay-style WSD", *s_.lr_wsd_decay_iters);
    } else if (s_.lr_decay_iters || s_.num_rollout) {
      const int64_t rollouts = s_.num_rollout.value_or(0);
      const int64_t steps = is(Command::sft) ? rollouts : optimizer_steps(s_, rollouts);
      if (const auto conflict = schedule_conflict(s_, steps); !conflict.empty()) complain("{}", conflict);
    }
  }

  void halves() {
    if (!s_.load_debug_rollout_data.empty()) s_.debug_train_only = true;
    if (s_.debug_rollout_only && s_.debug_train_only) {
      complain("--debug-rollout-only and --debug-train-only (or --load-debug-rollout-data) exclude each other");
    }
    if (s_.debug_train_only && s_.load_debug_rollout_data.empty()) {
      complain("--debug-train-only needs --load-debug-rollout-data (a trajectory file)");
    }
    if (!s_.load_debug_rollout_data.empty() && s_.load_debug_rollout_data == s_.save_debug_rollout_data) {
      complain("--load-debug-rollout-data and --save-debug-rollout-data name the same file {}",
               s_.load_debug_rollout_data);
    }
    if (s_.debug_train_only) return;
    if (!s_.rollout_max_response_len) {
      complain("`furlong train` needs --rollout-max-response-len (tokens)");
    } else if (s_.rollout_max_context_len && *s_.rollout_max_response_len >= *s_.rollout_max_context_len) {
      complain("--rollout-max-response-len {} leaves no room for a prompt in --rollout-max-context-len {}",
               *s_.rollout_max_response_len, *s_.rollout_max_context_len);
    }
  }

  void exactness() {
    if (!s_.true_on_policy) return;
    if (s_.device == "cuda" && s_.dtype != "bf16") {
      complain(
          "--true-on-policy: on a GPU products in fp32 take other kernels for few rows; it needs --dtype bf16 there");
    }
    if (s_.tensor_model_parallel_size * s_.expert_tensor_parallel_size > 1) {
      complain(
          "--true-on-policy: with --tensor-model-parallel-size or --expert-tensor-parallel-size above 1 sampler and "
          "trainer join the vocabulary's parts in different orders");
    }
    if (s_.debug_train_only)
      complain("--true-on-policy compares a rollout with the training on it: not with --debug-train-only");
  }

  void commands() {
    switch (command_) {
      case Command::train:
      case Command::sft: break;
      case Command::eval:
        require(s_.hf_checkpoint, "--hf-checkpoint", "the model's folder");
        if (s_.eval_prompt_data.empty() && s_.eval_config.empty()) {
          complain("`furlong eval` needs --eval-prompt-data (name file) or --eval-config");
        }
        if (!s_.eval_max_response_len && s_.eval_config.empty()) {
          complain("`furlong eval` needs --eval-max-response-len (tokens)");
        }
        break;
      case Command::generate: top_k("--top-k", s_.top_k); [[fallthrough]];
      case Command::score:
        require(s_.hf_checkpoint, "--hf-checkpoint", "the model's folder");
        require(s_.input, "--input", "a jsonl file, or - for standard input");
        if (s_.log_probs_chunk_size == 0) complain("--log-probs-chunk-size 0: needs -1, or 1 and more");
        break;
      case Command::tokenize:
        require(s_.input, "--input", "a jsonl file, or - for standard input");
        if (s_.tokenizer.empty() == s_.hf_checkpoint.empty()) {
          complain("`furlong tokenize` needs one of --tokenizer (tokenizer.json or its folder) and --hf-checkpoint");
        }
        if (s_.decode && s_.chat) complain("--decode and --chat exclude each other");
        break;
      case Command::grade:
        require(s_.input, "--input", "a jsonl file, or - for standard input");
        if (s_.custom_rm_command.empty()) require(s_.rm_type, "--rm-type", "the rule");
        break;
      case Command::serve:
        require(s_.hf_checkpoint, "--hf-checkpoint", "the model's folder");
        if (!s_.api_key.empty() && !s_.api_key_file.empty()) complain("--api-key and --api-key-file: leave one out");
        if (s_.served_model_name.empty()) s_.served_model_name = s_.hf_checkpoint;
        break;
      case Command::inspect: break;
      case Command::bench:
        if (s_.bench_clock == "processor" && s_.threads != 1) complain("--bench-clock processor needs --threads 1");
        if (s_.preset.empty()) s_.preset = "mini";
        break;
      case Command::init:
        require(s_.preset, "--preset", "tiny, tiny-dense, small, 9b, 35b-a3b, ...");
        require(s_.save, "--save", "the folder to write");
        break;
      case Command::convert: convert(); break;
    }
  }

  void convert() {
    const bool from_dist = s_.from == "torch_dist", to_dist = s_.to == "torch_dist";
    require(s_.hf_checkpoint, "--hf-checkpoint",
            from_dist ? "the Hugging Face checkpoint that gives config, packing, dtypes and what torch_dist has not"
                      : "the checkpoint to read");
    if (from_dist) require(s_.load, "--load", "the torch_dist checkpoint to read");
    require(s_.save, "--save", "the folder to write");
    if (!s_.save.empty() && s_.save == s_.hf_checkpoint) complain("--save names the checkpoint itself, {}", s_.save);
    if (!s_.save.empty() && s_.save == s_.load) complain("--save names the checkpoint itself, {}", s_.save);
    if (from_dist && to_dist) complain("--from torch_dist --to torch_dist: one of the two must be hf");
    if (!from_dist && !s_.load.empty()) complain("--load {} is read with --from torch_dist only", s_.load);
    if (!to_dist && s_.convert_workers != 1) complain("--convert-workers takes effect with --to torch_dist only");
    if (to_dist && s_.expert_packing != "source") {
      complain("--expert-packing {} takes effect with --to hf only", s_.expert_packing);
    }
    if (!from_dist && !to_dist && s_.mtp_num_layers) {
      complain("--mtp-num-layers takes effect with --from or --to torch_dist only");
    }
  }

  void folders() {
    if (is(Command::train) || is(Command::sft) || is(Command::eval)) {
      if (s_.run_dir.empty()) s_.run_dir = fmt::format("runs/{}", name_of(command_));
      if (!is(Command::eval) && s_.save.empty()) s_.save = s_.run_dir + "/checkpoints";
    }
    if (!s_.save_hf.empty() && s_.save_hf == s_.hf_checkpoint) {
      complain("--save-hf {} would overwrite --hf-checkpoint; choose another folder", s_.save_hf);
    }
  }
};

}  // namespace

Texts find_conflicts(Settings& settings, Command command) {
  Texts complaints;
  Validator(settings, command, complaints).run();
  return complaints;
}

void validate(Settings& settings, Command command) { fail_if_any(find_conflicts(settings, command)); }

}  // namespace furlong
