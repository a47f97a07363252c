// The settings of sampling, rewards and evaluation: what they have against each other.
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "reward/scorer.h"
#include "trainer/settings_rules.h"

namespace furlong {
namespace {

class RolloutRules : public SettingsRules {
 public:
  using SettingsRules::SettingsRules;

  void run() {
    if (is(Command::train)) {
      groups();
      at_once();
    }
    if (is(Command::train) || is(Command::eval) || is(Command::grade)) rewards();
    if (is(Command::train) || is(Command::eval)) evaluation();
    if (is(Command::train) || is(Command::eval) || is(Command::generate) || is(Command::serve) ||
        is(Command::inspect)) {
      engine();
    }
  }

 private:
  // Which groups a rollout keeps.
  void groups() {
    auto& filter = s_.dynamic_sampling_filter_path;
    const std::string known = "check_reward_nonzero_std";
    if (!filter.empty()) {
      if (filter == known || filter.ends_with("." + known) || filter.ends_with(":" + known)) {
        filter = known;
      } else {
        complain("--dynamic-sampling-filter-path {}: the filter there is, is {} (with any path before it)",
                 printable(filter), known);
      }
      if (s_.n_samples_per_prompt == 1) {
        complain("--dynamic-sampling-filter-path with --n-samples-per-prompt 1: no group of one passes");
      }
    }
    if (!s_.rollout_batch_size) return;
    const int64_t batch = *s_.rollout_batch_size;
    if (!s_.over_sampling_batch_size) s_.over_sampling_batch_size = batch;
    if (*s_.over_sampling_batch_size < batch) {
      complain("--over-sampling-batch-size {} is less than --rollout-batch-size {}", *s_.over_sampling_batch_size,
               batch);
    }
    if (*s_.over_sampling_batch_size > batch && s_.rollout_speculative_cost_model == "measured") {
      complain(
          "--rollout-speculative-cost-model measured with --over-sampling-batch-size: which groups end first would "
          "follow the clock; use auto or none");
    }
    if (s_.dynamic_sampling_max_groups && filter.empty()) {
      complain("--dynamic-sampling-max-groups needs --dynamic-sampling-filter-path");
    }
    if (!filter.empty() && !s_.dynamic_sampling_max_groups) s_.dynamic_sampling_max_groups = 10 * batch;
    if (s_.dynamic_sampling_max_groups && *s_.dynamic_sampling_max_groups < batch) {
      complain("--dynamic-sampling-max-groups {} is less than --rollout-batch-size {}", *s_.dynamic_sampling_max_groups,
               batch);
    }
    if (s_.partial_rollout && *s_.over_sampling_batch_size == batch) {
      complain(
          "--partial-rollout needs --over-sampling-batch-size above {}: without it nothing is under way at the end",
          batch);
    }
    if (s_.partial_rollout && s_.true_on_policy) {
      complain("--partial-rollout and --true-on-policy exclude each other: its responses are of several weights");
    }
    if (s_.mask_offpolicy_in_partial_rollout && !s_.partial_rollout) {
      complain("--mask-offpolicy-in-partial-rollout needs --partial-rollout");
    }
  }

  // Rollout and training at once.
  void at_once() {
    const bool tail = s_.train_during_tail, ahead = s_.async_rollout;
    if (s_.tail_sequences && !tail) complain("--tail-sequences needs --train-during-tail");
    if (!tail && !ahead) return;
    const char* flag = tail ? "--train-during-tail" : "--async-rollout";
    if (tail && ahead) {
      complain("--train-during-tail and --async-rollout exclude each other: the latter trains beside a whole rollout");
    }
    if (s_.debug_rollout_only || s_.debug_train_only) {
      complain("{} needs both halves; leave out {}", flag,
               s_.debug_rollout_only ? "--debug-rollout-only" : "--debug-train-only and --load-debug-rollout-data");
    }
    if (tail) {
      if (s_.num_steps_per_rollout.value_or(1) != 1) {
        complain(
            "--train-during-tail with {} optimizer steps a rollout: the first would change the weights that still "
            "sample; use --num-steps-per-rollout 1",
            *s_.num_steps_per_rollout);
      }
      if (!s_.custom_generate_command.empty() || !s_.custom_generate_url.empty()) {
        complain("--train-during-tail and conversations (--custom-generate-command, -url) exclude each other");
      }
      if (s_.rollout_speculative_cost_model == "measured") {
        complain(
            "--rollout-speculative-cost-model measured with --train-during-tail: which groups end first would follow "
            "the clock; use auto or none");
      }
      if (!s_.tail_sequences) {
        s_.tail_sequences = std::max<int64_t>(1, s_.rollout_batch_size.value_or(1) * s_.n_samples_per_prompt / 4);
      }
      return;
    }
    if (s_.true_on_policy) {
      complain("--async-rollout and --true-on-policy exclude each other: its responses are of earlier weights");
    }
    if (s_.skip_actor_forward_only) {
      complain(
          "--skip-actor-forward-only with --async-rollout: old log-probs are those of the weights that sampled, which "
          "the forward pass computes; leave it out, or take the rollout's with --use-rollout-logprobs");
    }
    if (s_.use_rollout_routing_replay) {
      complain("--use-rollout-routing-replay with --async-rollout: a checkpoint keeps no routes of the rollout ahead");
    }
    if (s_.pipeline_model_parallel_size > 1) {
      complain("--async-rollout with --pipeline-model-parallel-size {}: its stages do not take turns with the engine",
               s_.pipeline_model_parallel_size);
    }
  }

  void rewards() {
    const bool command = !s_.custom_rm_command.empty(), url = !s_.rm_url.empty();
    if (!s_.rm_type.empty() && s_.rm_type != "remote_rm") {
      try {
        make_scorer(s_.rm_type, s_.nltk_data);
      } catch (const Error& e) {
        complain("{}", e.what());
      }
    }
    if (command && (url || !s_.rm_type.empty())) {
      complain("--custom-rm-command scores everything; leave {} out", url ? "--rm-url" : "--rm-type");
    }
    if (s_.rm_type == "remote_rm" && !url) complain("--rm-type remote_rm needs --rm-url (http://host:port/path)");
    if (s_.rm_batch_size > 1 && !url) complain("--rm-batch-size {} needs --rm-url", s_.rm_batch_size);
    if (s_.group_rm) {
      if (!command && !url)
        complain("--group-rm needs --custom-rm-command or --rm-url: rules judge samples one by one");
      if (s_.rm_batch_size > 1) complain("--group-rm and --rm-batch-size exclude each other: a group is the batch");
    }
    if (!s_.custom_generate_command.empty() && !s_.custom_generate_url.empty()) {
      complain("--custom-generate-command and --custom-generate-url exclude each other");
    }
    const bool talks = !s_.custom_generate_command.empty() || !s_.custom_generate_url.empty();
    if (s_.use_rollout_routing_replay && (talks || s_.partial_rollout)) {
      complain("--use-rollout-routing-replay replays responses that were sampled in one go; leave {} out",
               talks ? "--custom-generate-command and -url" : "--partial-rollout");
    }
    if (s_.group_rm && talks) {
      complain("--group-rm and conversations (--custom-generate-command, -url) exclude each other");
    }
    if (s_.partial_rollout && talks) {
      complain("--partial-rollout and conversations (--custom-generate-command, -url) exclude each other");
    }
  }

  void evaluation() {
    top_k("--rollout-top-k", s_.rollout_top_k);
    top_k("--eval-top-k", s_.eval_top_k);
    if (s_.eval_prompt_data.size() % 2 != 0) {
      complain("--eval-prompt-data needs pairs of a name and a file, got {} words: {}", s_.eval_prompt_data.size(),
               printable(fmt::format("{}", fmt::join(s_.eval_prompt_data, " "))));
    }
    Texts names;
    for (size_t i = 0; i + 1 < s_.eval_prompt_data.size(); i += 2) {
      const auto& name = s_.eval_prompt_data[i];
      if (std::find(names.begin(), names.end(), name) != names.end()) {
        complain("--eval-prompt-data: two sets are called {}", printable(name));
      }
      names.push_back(name);
    }
    const bool any_set = !s_.eval_prompt_data.empty() || !s_.eval_config.empty();
    if (!s_.eval_prompt_data.empty() && !s_.eval_config.empty()) {
      complain("--eval-prompt-data and --eval-config exclude each other");
    }
    if (s_.eval_interval && !any_set) complain("--eval-interval needs --eval-prompt-data (name file) or --eval-config");
    if (is(Command::train) && !s_.eval_interval && any_set) {
      complain("{} without --eval-interval: it would never be read",
               s_.eval_config.empty() ? "--eval-prompt-data" : "--eval-config");
    }
    if (!s_.rollout_max_prompt_len && s_.rollout_max_context_len) {
      s_.rollout_max_prompt_len = *s_.rollout_max_context_len - 1;
    }
    const auto fill = [](auto& value, const auto& from) {
      if (!value) value = from;
    };
    const auto fill_text = [](std::string& value, const std::string& from) {
      if (value.empty()) value = from;
    };
    if (is(Command::train) && !s_.eval_interval) return;
    fill(s_.eval_max_prompt_len, s_.rollout_max_prompt_len);
    fill(s_.eval_max_response_len, s_.rollout_max_response_len);
    fill(s_.eval_temperature, s_.rollout_temperature);
    fill(s_.eval_top_p, s_.rollout_top_p);
    fill(s_.eval_top_k, s_.rollout_top_k);
    fill_text(s_.eval_input_key, s_.input_key);
    fill_text(s_.eval_label_key, s_.label_key);
    fill_text(s_.eval_reward_key, s_.reward_key);
  }

  void engine() {
    const bool eagle = s_.rollout_speculative_algorithm == "EAGLE";
    auto& steps = s_.rollout_speculative_num_steps;
    auto& drafts = s_.rollout_speculative_num_draft_tokens;
    if (!eagle) {
      if (steps || drafts || s_.rollout_speculative_eagle_topk || s_.rollout_forced_accept_length) {
        complain(
            "--rollout-speculative-num-steps, -eagle-topk, -num-draft-tokens and --rollout-forced-accept-length need "
            "--rollout-speculative-algorithm EAGLE");
      }
      return;
    }
    if (!steps) steps = drafts ? *drafts - 1 : 2;
    if (!drafts) drafts = *steps + 1;
    if (!s_.rollout_speculative_eagle_topk) s_.rollout_speculative_eagle_topk = 1;
    if (*drafts != *steps + 1) {
      complain(
          "--rollout-speculative-num-draft-tokens {} with --rollout-speculative-num-steps {}: {} drafted tokens are "
          "verified in {} rows",
          *drafts, *steps, *steps, *steps + 1);
    }
    if (s_.rollout_forced_accept_length.value_or(1) > static_cast<double>(*drafts)) {
      complain("--rollout-forced-accept-length {}: a round verifies {} rows and accepts no more",
               *s_.rollout_forced_accept_length, *drafts);
    }
  }
};

}  // namespace

void rollout_conflicts(Settings& settings, Command command, Texts& complaints) {
  RolloutRules(settings, command, complaints).run();
}

}  // namespace furlong
