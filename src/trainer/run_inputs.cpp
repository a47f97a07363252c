#include "trainer/run_inputs.h"

#include <algorithm>
#include <filesystem>
#include <limits>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "trainer/options.h"

namespace furlong {

RunInputs::RunInputs(const Settings& s, World& w)
    : settings(s), world(w), files(s, Command::train, w.rank()), session(open_session(s, w)) {
  join_mesh(session, s, world);
  const int64_t data = session.mesh->place().data_size, samples = s.global_batch_size.value_or(data);
  if (files.writes() && samples < data) {
    log::warn("--global-batch-size {} on {} data parallel ranks: {} of them have nothing to compute in a step", samples,
              data, data - samples);
  }
  work.ranks = world.size();
  work.trains = true;
  work.rolls = !s.debug_train_only;
  if (work.rolls) {
    read_prompts();
  } else {
    read_lengths();
  }
  rollouts = s.num_rollout ? *s.num_rollout
                           : s.num_epoch.value_or(1) * (prompts ? prompts->set.size() / *s.rollout_batch_size : 1);
  memory = require_memory(session, s, work);
  if (s.dry_run) return;
  world.phase("loading the weights");
  load_weights(session, s);
  block = Share::block(memory.plan.block, session.device);
}

TimeInputs RunInputs::longest_step() const {
  const int64_t prompt = std::max<int64_t>(1, prompts ? prompts->longest : work.shortest);
  return time_inputs(settings, memory.inputs, memory.plan.sequences, prompt,
                     std::max<int64_t>(1, work.longest - prompt));
}

std::string RunInputs::plan_text(int64_t first, std::optional<double> measured) const {
  const TimeInputs step = longest_step();
  EvaluationTime evaluation;
  for (const EvalSet& set : eval_sets) {
    TimeInputs t = step;
    t.trains = false;
    t.passes = 0;
    t.prompts = set.prompts.set.size();
    t.sequences = t.prompts * set.spec.samples;
    t.prompt = set.prompts.longest;
    t.response = set.limits.max_response;
    evaluation.sets.push_back(t);
  }
  if (!eval_sets.empty() && !settings.debug_rollout_only) {
    const int64_t interval = *settings.eval_interval;
    evaluation.count = rollouts / interval - first / interval + (rollouts % interval != 0) +
                       (first == 0 && !settings.skip_eval_before_train);
  }
  return memory.table + "\n" + passes_text(settings) + "\n" + time_table(step) +
         time_estimate(step, rollouts - first, measured, evaluation);
}

void RunInputs::read_prompts() {
  const Settings& s = settings;
  if (s.train_during_tail && world.size() > 1) {
    fail(Exit::usage, "--train-during-tail on {} ranks: their rollouts end together, in rounds; leave it out",
         world.size());
  }
  if (s.async_rollout && world.size() > 1 && !(s.custom_generate_command.empty() && s.custom_generate_url.empty())) {
    fail(Exit::usage,
         "--async-rollout with conversations (--custom-generate-command, -url) on {} ranks, whose turns differ; leave "
         "one out",
         world.size());
  }
  if (s.partial_rollout && world.size() > 1) {
    fail(Exit::usage, "--partial-rollout on {} ranks: groups under way go on on one rank alone; leave it out",
         world.size());
  }
  if (s.prompt_data.empty()) fail(Exit::usage, "--prompt-data FILE is needed: the prompts to learn from");
  const std::string reward_logs = files.directory() + "/reward";
  const bool commands = !s.custom_rm_command.empty() || !s.custom_generate_command.empty();
  if (commands && !s.dry_run) make_directories(reward_logs);
  judge = std::make_unique<Judge>(judge_options(s, reward_logs));
  environment = make_environment(s, session, reward_logs);
  const SamplingLimits limits = rollout_limits(session, s);
  prompts = prepare_prompts(session, prompt_options(s), s.rollout_max_prompt_len.value_or(0), limits.max_context);
  for (int64_t i = 0; i < prompts->set.size(); i++) judge->check(prompts->set[i].metadata, prompts->set.where(i));
  cursor.emplace(prompts->set.size(), s.rollout_shuffle, s.rollout_seed);
  if (s.eval_interval) eval_sets = load_eval_sets(session, s, *judge);
  work.longest = std::min(limits.max_context, prompts->longest + limits.max_response);
  work.shortest = limits.max_context;
  for (const auto& tokens : prompts->tokens) work.shortest = std::min(work.shortest, std::ssize(tokens) + 1);
  work.requests = s.over_sampling_batch_size.value_or(*s.rollout_batch_size) * s.n_samples_per_prompt;
  const EvalWork evaluated = work_of(eval_sets);
  work.longest = std::max(work.longest, evaluated.longest);
  work.requests = std::max(work.requests, evaluated.requests);
}

// Of the first trajectory file; later ones may be longer, and the trainer makes room for them then.
void RunInputs::read_lengths() {
  const std::string path = numbered(settings.load_debug_rollout_data, 0);
  if (!std::filesystem::exists(path)) return;
  work.shortest = std::numeric_limits<int32_t>::max();
  for (const auto& t : read_trajectories(path)) {
    work.longest = std::max(work.longest, std::ssize(t.tokens));
    work.shortest = std::min(work.shortest, std::ssize(t.tokens));
  }
}

}  // namespace furlong
