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
      const std::string name = last_name(function);
      if (name != "vanilla_tis_function" && name != "icepop_function") {
        complain(
            "--custom-tis-function-path {}: the functions there are, are vanilla_tis_function and icepop_function "
            "(with any path before them)",
            printable(function));
      }
      function = name;
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
              "vanilla_tis_function: clamp the weight to its bounds; icepop_function: 0 outside of them")
              .unit("name")
              .differs("one of these two names, with any path before it"),
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
