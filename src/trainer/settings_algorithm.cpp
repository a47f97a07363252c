// The settings of the algorithm: their rows of the table, and what they have against each other.
#include "base/text.h"
#include "rl/advantages.h"
#include "trainer/options.h"
#include "trainer/settings_row.h"
#include "trainer/settings_rules.h"

namespace furlong {
namespace {

// The last part of a dotted or colon-separated Python path.
std::string last_name(const std::string& path) { return path.substr(path.find_last_of(".:") + 1); }

class AlgorithmRules : public SettingsRules {
 public:
  using SettingsRules::SettingsRules;

  void run() {
    groups_of_one();
    critic();
    tail();
    divergence();
    log_probs();
    importance();
    denominator();
    if (!s_.eps_clip_high) s_.eps_clip_high = s_.eps_clip;
  }

 private:
  bool estimates(const char* estimator) const { return s_.advantage_estimator == estimator; }
  bool divides() const { return estimates("grpo") || estimates("gspo"); }

  void groups_of_one() {
    const bool by_group = divides() || estimates("reinforce_plus_plus_baseline");
    if (by_group && s_.n_samples_per_prompt == 1 && !s_.disable_rewards_normalization && !s_.debug_rollout_only) {
      complain(
          "--n-samples-per-prompt 1: a group of one always has advantage 0; use 2 or more, or "
          "--disable-rewards-normalization");
    }
    if (s_.disable_rewards_normalization && s_.disable_grpo_std_normalization) {
      complain("--disable-grpo-std-normalization has no meaning with --disable-rewards-normalization; leave one out");
    }
    if (!divides() && s_.disable_grpo_std_normalization) {
      complain("--disable-grpo-std-normalization has no meaning with --advantage-estimator {}: it never divides",
               s_.advantage_estimator);
    }
    if (estimates("reinforce_plus_plus") || estimates("reinforce_plus_plus_baseline")) {
      if (!s_.normalize_advantages)
        complain("--advantage-estimator {} needs --normalize-advantages", s_.advantage_estimator);
    }
    if (s_.gamma != 1 && !estimates("reinforce_plus_plus") && !estimates("ppo")) {
      complain("--gamma {} has no meaning with --advantage-estimator {}; leave it out", s_.gamma,
               s_.advantage_estimator);
    }
    if (s_.lambd != 1 && !estimates("ppo")) {
      complain("--lambd {} needs --advantage-estimator ppo", s_.lambd);
    }
  }

  void critic() {
    if (estimates("ppo")) {
      if (s_.disable_rewards_normalization)
        complain(
            "--disable-rewards-normalization has no meaning with --advantage-estimator ppo: rewards are taken raw");
      if (s_.critic_lr.value_or(s_.lr) < s_.min_lr)
        complain("--min-lr {} is above --critic-lr {}", s_.min_lr, s_.critic_lr.value_or(s_.lr));
      return;
    }
    for (const char* name :
         {"critic_load", "critic_lr", "critic_lr_warmup_iters", "num_critic_only_steps", "value_clip"}) {
      const Field* field = find_field(name, Command::train);
      if (format_value(s_, *field) == format_value(Settings(), *field)) continue;
      complain("{} needs --advantage-estimator ppo", field->flag());
    }
  }

  // Groups that are learnt from before the rollout is complete.
  void tail() {
    if (!s_.train_during_tail) return;
    if (estimates("ppo"))
      complain("--train-during-tail with --advantage-estimator ppo: the critic learns from whole rollouts");
    if (s_.normalize_advantages)
      complain("--train-during-tail with --normalize-advantages: whitening needs the whole rollout");
  }

  void divergence() {
    if (s_.kl_coef != 0 && s_.kl_loss_coef != 0) {
      complain("--kl-coef {} and --kl-loss-coef {} exclude each other; leave --kl-coef out", s_.kl_coef,
               s_.kl_loss_coef);
    } else if (s_.kl_coef != 0 && divides()) {
      complain("--kl-coef {}: it changes nothing under {}; use --use-kl-loss --kl-loss-coef {}", s_.kl_coef,
               s_.advantage_estimator, s_.kl_coef);
    } else if (s_.kl_coef != 0 && estimates("ppo")) {
      complain(
          "--kl-coef {} with --advantage-estimator ppo: the critic would learn returns without it; use "
          "--use-kl-loss --kl-loss-coef {}",
          s_.kl_coef, s_.kl_coef);
    }
    if (!s_.use_kl_loss) {
      if (s_.kl_loss_coef != 0) complain("--kl-loss-coef {} needs --use-kl-loss", s_.kl_loss_coef);
      if (s_.use_unbiased_kl) complain("--use-unbiased-kl needs --use-kl-loss");
    }
    if (s_.ref_update_interval && !needs_reference(s_)) {
      complain(
          "--ref-update-interval {}: there is no reference to update; it needs --kl-loss-coef, --kl-coef or "
          "--observe-kl",
          *s_.ref_update_interval);
    }
  }

  // The options of compute_mis_weights.
  void correction() {
    if (s_.skip_actor_forward_only && (needs_correction() || s_.get_mismatch_metrics)) {
      complain("--skip-actor-forward-only with {}: that pass is what the sampler is compared with; leave it out",
               s_.get_mismatch_metrics ? "--get-mismatch-metrics" : "compute_mis_weights");
    }
    if (s_.train_during_tail && (needs_correction() || s_.get_mismatch_metrics)) {
      complain("--train-during-tail with {}: the sampler is compared with over whole rollouts; leave one out",
               s_.get_mismatch_metrics ? "--get-mismatch-metrics" : "compute_mis_weights");
    }
    if (!needs_correction()) {
      for (const char* name : {"tis_level", "tis_mode", "tis_lower_bound", "tis_upper_bound", "tis_batch_normalize",
                               "use_rs", "rs_level", "rs_lower_bound", "rs_upper_bound", "rs_veto_threshold"}) {
        const Field* field = find_field(name, Command::train);
        if (format_value(s_, *field) == format_value(Settings(), *field)) continue;
        complain("{} needs --use-tis --custom-tis-function-path compute_mis_weights", field->flag());
      }
      return;
    }
    if (!s_.tis_upper_bound) s_.tis_upper_bound = std::max(2.0, s_.tis_lower_bound.value_or(0));
    if (!s_.tis_lower_bound) s_.tis_lower_bound = 1 / *s_.tis_upper_bound;
    bounds("tis", *s_.tis_lower_bound, *s_.tis_upper_bound);
    if (s_.tis_batch_normalize && s_.tis_level == "geometric") {
      complain("--tis-batch-normalize with --tis-level geometric: it divides by the mean of tokens or of sequences");
    }
    if (s_.use_rs) {
      if (!s_.rs_lower_bound) s_.rs_lower_bound = s_.tis_lower_bound;
      if (!s_.rs_upper_bound) s_.rs_upper_bound = s_.tis_upper_bound;
      bounds("rs", *s_.rs_lower_bound, *s_.rs_upper_bound);
    } else if (s_.rs_level != "token" || s_.rs_lower_bound || s_.rs_upper_bound || s_.rs_veto_threshold) {
      complain("--rs-level, --rs-lower-bound, --rs-upper-bound and --rs-veto-threshold need --use-rs");
    }
  }
  bool needs_correction() const {
    return s_.use_tis && last_name(s_.custom_tis_function_path).starts_with(mismatch_correction);
  }
  void bounds(const char* of, double low, double high) {
    if (low >= high) complain("--{}-lower-bound {} is not below --{}-upper-bound {}", of, low, of, high);
  }

  // The constant denominator of Dr. GRPO.
  void denominator() {
    auto& function = s_.custom_pg_loss_reducer_function_path;
    if (!function.empty()) {
      if (last_name(function) != constant_denominator) {
        complain(
            "--custom-pg-loss-reducer-function-path {}: the function there is, is {} (with any path before it), whose "
            "number is --pg-loss-divisor",
            printable(function), constant_denominator);
      }
      function = constant_denominator;
      if (!s_.pg_loss_divisor) s_.pg_loss_divisor = 1000;
    }
    if (s_.pg_loss_divisor && s_.calculate_per_token_loss) {
      complain("--pg-loss-divisor {} with --calculate-per-token-loss: both are denominators; leave one out",
               *s_.pg_loss_divisor);
    }
  }

  void log_probs() {
    if (s_.skip_actor_forward_only && s_.use_rollout_logprobs) {
      complain(
          "--skip-actor-forward-only and --use-rollout-logprobs both say which log-probs are the old ones; leave one "
          "out");
    }
    if (s_.skip_actor_forward_only && s_.num_steps_per_rollout.value_or(1) != 1) {
      complain("--skip-actor-forward-only needs one optimizer step a rollout, not {}", *s_.num_steps_per_rollout);
    }
    if (s_.skip_actor_forward_only && s_.kl_coef != 0) {
      complain("--skip-actor-forward-only with --kl-coef {}: the penalty needs that pass; leave one out", s_.kl_coef);
    }
  }

  void importance() {
    correction();
    if (s_.use_tis && s_.use_rollout_logprobs) {
      complain("--use-tis and --use-rollout-logprobs exclude each other: the ratio to the sampler is in the loss then");
    }
    if (s_.tis_clip_low > s_.tis_clip)
      complain("--tis-clip-low {} is above --tis-clip {}", s_.tis_clip_low, s_.tis_clip);
    auto& function = s_.custom_tis_function_path;
    if (!s_.use_tis && (s_.tis_clip != Settings().tis_clip || s_.tis_clip_low != 0 || !function.empty())) {
      complain("--tis-clip, --tis-clip-low and --custom-tis-function-path need --use-tis");
    }
    if (!function.empty()) {
      std::string name = last_name(function);
      if (name.starts_with(mismatch_correction)) name = mismatch_correction;  // ..._with_cp, ..._fsdp
      if (name != "vanilla_tis_function" && name != "icepop_function" && name != mismatch_correction) {
        complain(
            "--custom-tis-function-path {}: the functions there are, are vanilla_tis_function, icepop_function and "
            "compute_mis_weights (with any path before them)",
            printable(function));
      }
      function = name;
    }
    if (corrects_mismatch(s_) && (s_.tis_clip != Settings().tis_clip || s_.tis_clip_low != 0)) {
      complain(
          "--tis-clip and --tis-clip-low have no meaning with compute_mis_weights; its bounds are --tis-lower-bound "
          "and "
          "--tis-upper-bound");
    }
    if (!s_.use_opsm && s_.opsm_delta != Settings().opsm_delta)
      complain("--opsm-delta {} needs --use-opsm", s_.opsm_delta);
  }
};

}  // namespace

void algorithm_conflicts(Settings& settings, Texts& complaints) {
  AlgorithmRules(settings, Command::train, complaints).run();
}

namespace setting {

void add_algorithm(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::algorithm, a...); };
  t.insert(
      t.end(),
      {
          row("advantage_estimator", &Settings::advantage_estimator, T, "how rewards become advantages")
              .choices({"grpo", "gspo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "ppo"}),
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
              .differs("not under grpo and gspo, where it changes nothing and miles still runs the reference for it"),
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
          row("pg_loss_divisor", &Settings::pg_loss_divisor, T,
              "divide a sample's policy loss by this number, not by its own tokens (Dr. GRPO: the longest response)")
              .unit("tokens")
              .above(0)
              .to(1e9)
              .differs("a constant in the source of examples/experimental/DrGRPO"),
          row("custom_pg_loss_reducer_function_path", &Settings::custom_pg_loss_reducer_function_path, T,
              "get_pg_loss_reducer: --pg-loss-divisor 1000 where none is given")
              .unit("name")
              .differs("this name alone, with any path before it"),
          row("normalize_advantages", &Settings::normalize_advantages, T,
              "whiten advantages over all trained tokens of a rollout; the two reinforce_plus_plus need it"),
          row("gamma", &Settings::gamma, T, "discount of a later token's reward (reinforce_plus_plus, ppo)")
              .from(0)
              .to(1),
          row("lambd", &Settings::lambd, T, "decay of generalised advantage estimation (ppo)").from(0).to(1),
          row("value_clip", &Settings::value_clip, T, "how far a value may move from its old one for free (ppo)")
              .from(0)
              .to(1e6),
          row("critic_load", &Settings::critic_load, T,
              "checkpoint that the critic starts from; default: the policy's weights, and a random head")
              .unit("folder")
              .differs("Hugging Face folder, torch_dist or a run's checkpoint; of the first two the trunk"),
          row("critic_lr", &Settings::critic_lr, T, "learning rate of the critic; default: --lr").from(0).to(1e3),
          row("critic_lr_warmup_iters", &Settings::critic_lr_warmup_iters, T, "steps of its linear warm-up")
              .unit("optimizer steps")
              .from(0),
          row("num_critic_only_steps", &Settings::num_critic_only_steps, T,
              "first rollouts in which the critic alone is trained")
              .unit("rollouts")
              .from(0),
          row("use_tis", &Settings::use_tis, T,
              "weigh a token's policy loss by trainer / sampler probability, bounded (truncated importance sampling)"),
          row("tis_clip", &Settings::tis_clip, T, "upper bound of that weight").from(0).to(1e6),
          row("tis_clip_low", &Settings::tis_clip_low, T, "lower bound of that weight").from(0).to(1e6),
          row("custom_tis_function_path", &Settings::custom_tis_function_path, T,
              "vanilla_tis_function: clamp the weight to its bounds; icepop_function: 0 outside of them; "
              "compute_mis_weights: by --tis-level, --tis-mode and --use-rs")
              .unit("name")
              .differs("one of these three names, with any path before it"),
          row("tis_level", &Settings::tis_level, T,
              "compute_mis_weights: of which log-ratio a token's weight is the exponential: its own, the sum over its "
              "response (sequence) or the mean (geometric)")
              .choices({"token", "sequence", "geometric"})
              .differs("this and the next nine are keys of a file (--custom-config-path)"),
          row("tis_mode", &Settings::tis_mode, T,
              "truncate: cut at the upper bound; clip: at both; mask: no loss outside of them")
              .choices({"truncate", "clip", "mask"}),
          row("tis_lower_bound", &Settings::tis_lower_bound, T, "of the weight; default: 1 / --tis-upper-bound")
              .from(0)
              .to(1e6),
          row("tis_upper_bound", &Settings::tis_upper_bound, T, "of the weight; default: 2")
              .above(0)
              .to(1e6)
              .differs("needed"),
          row("tis_batch_normalize", &Settings::tis_batch_normalize, T,
              "divide the weights by their mean over the optimizer step: of tokens, or of sequences")
              .differs("over a micro-batch"),
          row("use_rs", &Settings::use_rs, T, "reject tokens, or responses, whose weight is out of bounds: no loss"),
          row("rs_level", &Settings::rs_level, T, "of the weight that rejects")
              .choices({"token", "sequence", "geometric"}),
          row("rs_lower_bound", &Settings::rs_lower_bound, T, "of it; default: --tis-lower-bound").from(0).to(1e6),
          row("rs_upper_bound", &Settings::rs_upper_bound, T, "of it; default: --tis-upper-bound").above(0).to(1e6),
          row("rs_veto_threshold", &Settings::rs_veto_threshold, T,
              "reject a response whole that has a token with a ratio below this")
              .above(0)
              .to(1),
          row("get_mismatch_metrics", &Settings::get_mismatch_metrics, T,
              "report train/mis_...: how far trainer and sampler are apart, without any correction; costs the pass for "
              "old log-probs"),
          row("use_opsm", &Settings::use_opsm, T,
              "no policy loss where the advantage is negative and the sample has moved away from the old policy"),
          row("opsm_delta", &Settings::opsm_delta, T, "how far: its mean of old - new log-probs").from(0).to(1e6),
          row("ref_update_interval", &Settings::ref_update_interval, T,
              "the reference becomes the policy every N rollouts; default: never")
              .unit("rollouts")
              .from(1)
              .differs("checkpoints hold that reference; a resumed run of miles starts from --ref-load again"),
      });
}

}  // namespace setting
}  // namespace furlong
