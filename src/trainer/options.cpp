#include "trainer/options.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/log.h"

namespace furlong {

namespace {

Importance importance_of(const Settings& s) {
  if (!s.use_tis || corrects_mismatch(s)) return Importance::none;
  return s.custom_tis_function_path == "icepop_function" ? Importance::icepop : Importance::clip;
}

}  // namespace

TrainOptions train_options(const Settings& s, const ModelConfig& config) {
  TrainOptions o;
  o.loss = {.eps_clip = s.eps_clip,
            .eps_clip_high = s.eps_clip_high.value_or(s.eps_clip),
            .eps_clip_c = s.eps_clip_c,
            .kl_loss_coef = s.use_kl_loss ? s.kl_loss_coef : 0,
            .kl_type = parse_kl_type(s.kl_loss_type),
            .unbiased_kl = s.use_unbiased_kl,
            .entropy_coef = s.entropy_coef,
            .sequence_ratio = s.advantage_estimator == "gspo",
            .importance = importance_of(s),
            .importance_low = s.tis_clip_low,
            .importance_high = s.tis_clip,
            .opsm_delta = s.use_opsm ? std::optional<double>(s.opsm_delta) : std::nullopt,
            .divisor = s.pg_loss_divisor.value_or(0),
            .corrected = corrects_mismatch(s)};
  o.pack = {.dynamic = s.use_dynamic_batch_size,
            .max_tokens = s.max_tokens_per_gpu.value_or(0) * s.context_parallel_size,
            .micro_batch_size = s.micro_batch_size,
            .balance = s.balance_data};
  if (o.pack.dynamic && o.pack.max_tokens <= 0) {
    fail(Exit::usage, "--use-dynamic-batch-size needs --max-tokens-per-gpu N");
  }
  if (s.enable_mtp_training && config.mtp_num_layers == 0) {
    fail(Exit::usage, "--enable-mtp-training: the checkpoint has no MTP head (mtp_num_hidden_layers is 0)");
  }
  if (s.mtp_num_layers && *s.mtp_num_layers != config.mtp_num_layers && s.enable_mtp_training) {
    fail(Exit::usage, "--mtp-num-layers {}: the checkpoint has {}", *s.mtp_num_layers, config.mtp_num_layers);
  }
  o.optim = {.lr = s.lr,
             .schedule = {.min_lr = s.min_lr,
                          .warmup_steps = static_cast<double>(s.lr_warmup_iters),
                          .warmup_init = s.lr_warmup_init,
                          .decay = parse_lr_decay(s.lr_decay_style),
                          .wsd_decay = parse_wsd_decay(s.lr_wsd_decay_style),
                          .wsd_steps = s.lr_wsd_decay_iters.value_or(0)},
             .beta1 = s.adam_beta1,
             .beta2 = s.adam_beta2,
             .eps = s.adam_eps,
             .weight_decay = s.weight_decay,
             .clip_grad = s.clip_grad,
             .train_mtp = s.enable_mtp_training,
             .main_params = parse_dtype(s.main_params_dtype),
             .exp_avg = parse_dtype(s.exp_avg_dtype),
             .exp_avg_sq = parse_dtype(s.exp_avg_sq_dtype),
             .main_grads = parse_dtype(s.main_grads_dtype),
             .offload = s.optimizer_cpu_offload ? s.optimizer_offload_fraction : 0,
             .overlap = s.overlap_cpu_optimizer_d2h_h2d};
  if (s.optimizer_cpu_offload && s.device == "cpu") {
    log::info("--optimizer-cpu-offload changes nothing with --device cpu: all of the optimizer is in host memory");
  }
  o.recompute = s.recompute_granularity == "full" ? Recompute::full : Recompute::none;
  o.per_token = s.calculate_per_token_loss;
  o.replay_routes = s.use_rollout_routing_replay;
  o.mtp = s.enable_mtp_training;
  o.mtp_factor = s.mtp_loss_scaling_factor;
  o.temperature = s.rollout_temperature > 0 ? s.rollout_temperature : 1;
  o.head_chunk = s.log_probs_chunk_size;
  o.entropy = s.entropy_coef != 0 || s.observe_training_entropy;
  o.dump_grads = s.dump_grads;
  return o;
}

int64_t optimizer_steps(const Settings& s, int64_t rollouts) {
  const int64_t each = s.num_steps_per_rollout.value_or(1);
  return std::min(rollouts, std::numeric_limits<int64_t>::max() / each) * each;
}

std::string schedule_conflict(const Settings& s, int64_t iterations) {
  const LrDecay decay = parse_lr_decay(s.lr_decay_style);
  if (decay == LrDecay::constant) return "";
  const int64_t end = s.lr_decay_iters.value_or(iterations);
  const std::string what =
      s.lr_decay_iters ? fmt::format("--lr-decay-iters {}", end) : fmt::format("a run of {} optimizer steps", end);
  if (!s.lr_warmup_fraction && s.lr_warmup_iters >= end) {
    return fmt::format("{}: --lr-warmup-iters {} leaves nothing of it to --lr-decay-style {}", what, s.lr_warmup_iters,
                       s.lr_decay_style);
  }
  if (decay == LrDecay::wsd && *s.lr_wsd_decay_iters > end) {
    return fmt::format("{}: --lr-wsd-decay-iters {} is more", what, *s.lr_wsd_decay_iters);
  }
  return "";
}

std::string browsing_conflict(const Settings& s) {
  const bool filters = s.group || s.sample || !s.status.empty() || s.min_reward || s.max_reward || s.mixed || s.text ||
                       !s.contains.empty();
  const bool file = !s.load_debug_rollout_data.empty();
  if (!s.rollout) {
    return filters ? "--group, --sample, --status, --min-reward, --max-reward, --mixed, --contains and --text need "
                     "--rollout N: the rollout to show"
                   : "";
  }
  if (s.plan) return "--plan and --rollout exclude each other";
  if (file) return *s.rollout < 0 ? "--rollout -1 (the newest) is for --run-dir" : "";
  return s.run_dir.empty() ? "--rollout needs --run-dir (the run whose rollout to show)" : "";
}

void set_schedule(LrSchedule& schedule, const Settings& s, int64_t iterations) {
  if (const std::string conflict = schedule_conflict(s, iterations); !conflict.empty()) {
    fail(Exit::usage, "{}", conflict);
  }
  schedule.decay_steps = s.lr_decay_iters.value_or(iterations);
  if (s.lr_warmup_fraction) schedule.warmup_steps = *s.lr_warmup_fraction * static_cast<double>(schedule.decay_steps);
}

bool corrects_mismatch(const Settings& s) { return s.use_tis && s.custom_tis_function_path == mismatch_correction; }

MismatchOptions mismatch_options(const Settings& s) {
  MismatchOptions o{.level = parse_ratio_level(s.tis_level),
                    .mode = parse_weight_mode(s.tis_mode),
                    .high = s.tis_upper_bound.value_or(2),
                    .normalise = s.tis_batch_normalize,
                    .rejects = s.use_rs,
                    .reject_level = parse_ratio_level(s.rs_level),
                    .veto = s.rs_veto_threshold,
                    .per_token = s.calculate_per_token_loss};
  o.low = s.tis_lower_bound.value_or(1 / o.high);
  o.reject_low = s.rs_lower_bound.value_or(o.low);
  o.reject_high = s.rs_upper_bound.value_or(o.high);
  return o;
}

bool scores_old(const Settings& s) {
  if (s.debug_rollout_only || s.skip_actor_forward_only) return false;
  if (s.get_mismatch_metrics || corrects_mismatch(s)) return true;
  const bool several = s.num_steps_per_rollout.value_or(1) > 1;
  return (several || s.async_rollout || s.kl_coef != 0) && !s.use_rollout_logprobs;
}

bool scores_reference(const Settings& s) { return needs_reference(s) && (s.kl_loss_coef != 0 || s.kl_coef != 0); }

PromptOptions prompt_options(const Settings& s) {
  return {.path = s.prompt_data,
          .input_key = s.input_key,
          .label_key = s.label_key,
          .metadata_key = s.metadata_key,
          .tool_key = s.tool_key,
          .apply_chat_template = s.apply_chat_template,
          .skip_bad = s.data_on_error == "skip"};
}

bool needs_reference(const Settings& s) {
  // With a trajectory file the reference's log-probs may stand there; they are computed only where they do not.
  return ((s.use_kl_loss && s.kl_loss_coef != 0) || s.kl_coef != 0 || s.observe_kl > 0) && !s.debug_rollout_only;
}

std::string passes_text(const Settings& s) {
  if (s.debug_rollout_only) return "passes: rollout only\n";
  std::string text = "passes of a step: ";
  text += s.debug_train_only ? "read trajectories" : "rollout";
  const bool on_policy = s.num_steps_per_rollout.value_or(1) == 1 && !s.async_rollout;
  const bool scores = scores_old(s);
  if (scores) text += ", old log-probs";
  if (needs_reference(s))
    text += scores_reference(s) ? ", reference log-probs"
                                : fmt::format(", reference log-probs every {} rollouts", s.observe_kl);
  const bool critic = s.advantage_estimator == "ppo";
  if (critic) text += ", the critic's values, its forward and backward";
  text += ", forward and backward";
  if (s.use_rollout_routing_replay) text += " with the rollout's routes";
  if (s.enable_mtp_training) text += ", MTP forward and backward";
  text += ", AdamW\n";
  if (s.train_during_tail) {
    text += fmt::format("at once: the tail of a rollout, below {} sequences, and training on its complete groups\n",
                        s.tail_sequences.value_or(0));
  }
  if (s.async_rollout) text += "at once: training on a rollout, and the next rollout with the same weights\n";
  if (on_policy && !scores) text += "left out: old log-probs (one optimizer step a rollout: the ratio is exactly 1)\n";
  if (s.use_kl_loss && !needs_reference(s)) {
    text +=
        "left out: the reference model and its forward (--kl-loss-coef 0 changes no gradient; --observe-kl N shows the "
        "curve)\n";
  }
  if (s.entropy_coef == 0 && !s.observe_training_entropy) text += "left out: entropy (--entropy-coef 0)\n";
  return text;
}

void check_trajectories(const std::vector<Trajectory>& trajectories, const ModelConfig& config,
                        const std::string& where) {
  int64_t scored = 0;
  for (size_t i = 0; i < trajectories.size(); i++) {
    const Trajectory& t = trajectories[i];
    for (const int32_t id : t.tokens) {
      if (id < 0 || id >= config.vocab_size) {
        fail(Exit::input, "{}: trajectory {} has the token {}, the model's vocabulary {} tokens", where, i + 1, id,
             config.vocab_size);
      }
    }
    scored += t.reward.has_value();
  }
  if (scored == 0) fail(Exit::input, "{}: no trajectory has a reward, so there is nothing to learn", where);
}

}  // namespace furlong
