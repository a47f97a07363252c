#include "trainer/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "base/ending.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "data/rollout_stats.h"
#include "monitor/metrics.h"
#include "monitor/progress.h"
#include "trainer/coherence.h"
#include "trainer/collect.h"
#include "trainer/critic.h"
#include "trainer/options.h"
#include "trainer/replay.h"
#include "trainer/rollout_files.h"
#include "trainer/run_inputs.h"
#include "trainer/step_figures.h"
#include "trainer/tail.h"
#include "trainer/targets.h"

namespace furlong {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::vector<const Trajectory*> pointers_to(std::span<const Trajectory> trajectories) {
  std::vector<const Trajectory*> pointers;
  for (const auto& t : trajectories) pointers.push_back(&t);
  return pointers;
}

TrainOptions options_with(const RunInputs& in, const Faults& faults) {
  TrainOptions options = train_options(in.settings, in.session.config);
  set_schedule(options.optim.schedule, in.settings, optimizer_steps(in.settings, in.rollouts));
  options.before_update = faults.before_update;
  return options;
}

// Everything a run keeps between its steps.
struct Run : RunInputs {
  bool terminal;
  TrainStep step;
  std::unique_ptr<Engine> engine;
  std::optional<Weights> reference;
  std::unique_ptr<Critic> critic;
  RunState state;
  std::unique_ptr<MetricsWriter> metrics;
  std::optional<StepReport> report;
  DeviceMemoryWatch watch;
  Faults faults;
  int64_t committed = 0;  // rollouts in the newest checkpoint

  Run(const Settings& s, World& w, bool is_terminal, const Faults& f)
      : RunInputs(s, w),
        terminal(is_terminal && files.writes()),
        step(session.config, session.weights, *session.threads, options_with(*this, f), training_memory(),
             *session.mesh),
        watch(session.device, memory.plan),
        faults(f) {}

  void prepare();
  std::vector<NamedWeights> kept_besides() const;
  void critic_steps(const std::vector<const Trajectory*>& all, const std::vector<TokenTargets>& targets,
                    size_t per_step, Metrics& out);
  void print_plan();
  Metrics generate(int64_t rollout_id, std::vector<Trajectory>& trajectories, Beside* beside = nullptr,
                   TailTraining* tail = nullptr);
  Metrics learn(int64_t rollout_id, std::vector<Trajectory>& trajectories, TailTraining* tail);
  void updated();
  bool looks_at_reference(int64_t rollout_id) const;
  std::vector<TokenTargets> targets_of(std::span<const Trajectory> trajectories, bool several, bool look_at_reference,
                                       Metrics& out);
  std::vector<Metrics> optimizer_steps(int64_t rollout_id, const std::vector<Trajectory>& trajectories, Metrics& out);
  Metrics step_and_roll(int64_t next, std::vector<Trajectory> trajectories, std::vector<TokenTargets> targets);
  // A second queue of kernels needs a second thread; several ranks keep in step in one.
  bool has_thread_beside() const { return session.device == Device::cuda && world.size() == 1; }
  Metrics evaluation();
  void one(int64_t rollout_id);
  void commit(int64_t id);
  [[noreturn]] void stop(int signal);
};

void Run::prepare() {
  const Settings& s = settings;
  if (work.rolls) {
    EngineOptions options = engine_options(session.config, session.directory, s, work.longest, work.requests);
    options.memory_bytes = memory.plan.pool;
    const int64_t data = session.mesh->place().data_size;
    options.max_running = (options.max_running + data - 1) / data;
    engine = std::make_unique<Engine>(session.config, session.weights, options, *session.threads, block, *session.mesh);
  }
  if (needs_reference(s)) {
    const std::string directory = s.ref_load.empty() ? session.directory : s.ref_load;
    reference = read_weights(session, directory, session.weights.dtype(), "--ref-load");
  }
  if (parse_estimator(s.advantage_estimator) == Estimator::ppo && !s.debug_rollout_only) {
    critic =
        std::make_unique<Critic>(session, s, options_with(*this, faults), furlong::optimizer_steps(s, rollouts), block);
  }
  if (const auto resumed = files.resume(session, step, kept_besides())) {
    state = *resumed;
    if (critic) critic->loaded(state.critic.optimizer_steps, state.critic.skipped, state.critic.skipped_in_a_row);
    if (cursor) cursor->restore(state.cursor);
    check_buffer(state.buffer, settings, session);
  }
  const bool to_export = state.next_rollout == rollouts && !state.exported && settings.save_hf != nowhere;
  if (state.next_rollout >= rollouts && !to_export) {
    fail(Exit::usage,
         "the run in {} has already done {} of {} rollouts; raise --num-rollout to go on, or choose another --run-dir",
         files.directory(), state.next_rollout, rollouts);
  }
  if (files.writes()) {
    metrics = std::make_unique<MetricsWriter>(files.directory() + "/metrics.jsonl", state.next_rollout,
                                              files.directory() + "/tensorboard");
  }
  print_plan();
  if (work.rolls && state.next_rollout == 0) check_text_loss(session, s, step, work.longest);
}

// What a checkpoint holds beside the policy and its optimizer.
std::vector<NamedWeights> Run::kept_besides() const {
  std::vector<NamedWeights> sets;
  if (settings.ref_update_interval && reference) sets.push_back({"reference", &*reference});
  if (critic) {
    for (const NamedWeights& set : critic->sets()) sets.push_back(set);
  }
  return sets;
}

void Run::print_plan() {
  const auto seconds = files.writes() ? newest_values(files.directory() + "/metrics.jsonl", "perf/step_time", 20)
                                      : std::vector<double>();
  report.emplace(settings, longest_step(), rollouts, seconds);
  const std::string text =
      plan_text(state.next_rollout, seconds.empty() ? std::nullopt : std::optional(mean_of(seconds)));
  files.write_plan(text);
  if (files.writes()) log::info("{}", text);
  if (settings.use_wandb && files.writes())
    log::info("--use-wandb: nothing is sent; when you like: {}", wandb_command(settings));
}

Metrics Run::evaluation() {
  world.phase("evaluation");
  const auto start = Clock::now();
  engine->set_weights_version(static_cast<uint64_t>(state.weight_version));
  Metrics m = evaluate(session, settings, *engine, eval_sets, *judge, environment.get());
  std::string line = "evaluation";
  for (const auto& set : eval_sets) {
    line += fmt::format("  {} {:.4f} (truncated {:.3f})", set.spec.name, figure_of(m, "eval/" + set.spec.name),
                        figure_of(m, "eval/" + set.spec.name + "-truncated_ratio"));
  }
  if (files.writes()) log::info("{}", line);
  m.emplace_back("perf/eval_time", seconds_since(start));
  return m;
}

Metrics Run::generate(int64_t rollout_id, std::vector<Trajectory>& trajectories, Beside* beside, TailTraining* tail) {
  const Settings& s = settings;
  world.phase(fmt::format("rollout {}", rollout_id + 1));
  const auto start = Clock::now();
  const CollectRules rules = collect_rules(s);
  const int64_t samples = rules.groups * s.n_samples_per_prompt;
  Progress bar("rollout", samples, terminal);
  engine->reset_stats();
  engine->set_weights_version(static_cast<uint64_t>(state.weight_version));
  const RolloutTask task{.samples = s.n_samples_per_prompt,
                         .limits = rollout_limits(session, s),
                         .judge = judge.get(),
                         .reward_key = s.reward_key,
                         .group_rm = s.group_rm,
                         .mask_older = s.mask_offpolicy_in_partial_rollout,
                         .longest_first = rules.at_a_time == rules.groups && tail == nullptr,
                         .seed = static_cast<uint64_t>(s.rollout_seed),
                         .weight_version = state.weight_version,
                         .environment = environment.get(),
                         .max_turns = s.generate_max_turns};
  EarlyGroups early;
  if (tail != nullptr) {
    early.below = *s.tail_sequences;
    early.take = [&](std::vector<Trajectory> group) { tail->take(std::move(group)); };
  }
  Collected found = collect_rollout(
      session, *engine, *prompts, task, rules, *cursor, state.buffer,
      [&](size_t done, int64_t) {
        bar.update(std::min(samples, static_cast<int64_t>(done)));
        if (beside != nullptr) beside->tick();
        // Alone, and without training beside it, what is sampled can be dropped; otherwise the step is ended first.
        if (beside == nullptr && world.size() == 1 && ending_signal() != 0) throw Interrupted{ending_signal()};
      },
      early);
  bar.clear();
  trajectories = std::move(found.trajectories);
  if (faults.after_rollout) faults.after_rollout(trajectories);
  // The next epoch starts with what takes longest.
  prompts->past_responses.resize(prompts->tokens.size(), -1);
  for (const auto& t : trajectories) {
    auto& longest = prompts->past_responses[static_cast<size_t>(found.prompt_of.at(t.group_index))];
    longest = std::max<int64_t>(longest, t.response_length);
  }
  if (!s.save_debug_rollout_data.empty() && files.writes()) {
    const std::string path = numbered(s.save_debug_rollout_data, rollout_id);
    write_trajectories(path, trajectories);
    if (s.use_rollout_routing_replay) save_routes(routes_path(path), trajectories, session.config);
  }
  if (found.failure) {
    const std::string kept = fmt::format("{}/rollout/{}.jsonl", files.directory(), rollout_id);
    if (files.writes()) {
      make_directories(files.directory() + "/rollout");
      write_trajectories(kept, trajectories);
    }
    fail(found.failure->code(), "rollout {}: {}. The trajectories are in {}.", rollout_id, found.failure->what(), kept);
  }
  const double seconds = seconds_since(start);
  int64_t tokens = 0;
  for (const auto& t : trajectories) tokens += t.response_length;
  Metrics out = std::move(found.metrics);
  out.emplace_back("perf/rollout_time", seconds);
  out.emplace_back("perf/tokens_per_gpu_per_sec", static_cast<double>(tokens) / seconds / world.size());
  return out;
}

bool Run::looks_at_reference(int64_t rollout_id) const {
  return settings.kl_loss_coef != 0 || settings.kl_coef != 0 ||
         (settings.observe_kl > 0 && rollout_id % settings.observe_kl == 0);
}

// Of whole groups. `several`: they are learnt from in several optimizer steps.
std::vector<TokenTargets> Run::targets_of(std::span<const Trajectory> trajectories, bool several,
                                          bool look_at_reference, Metrics& out) {
  const auto all = pointers_to(trajectories);
  Passes passes{.old_log_probs = [&] { return step.score(session.weights, all); },
                .ref_log_probs = [&] { return step.score(*reference, all); }};
  if (critic) {
    const auto start = Clock::now();
    passes.values = critic->values(all);
    out.emplace_back("perf/values_time", seconds_since(start));
  }
  return token_targets(settings, trajectories, passes, several, look_at_reference && reference, out);
}

// The gradients of a step beside the next rollout, then the update. The samples of that rollout and their old
// log-probs are those of the weights before it.
Metrics Run::step_and_roll(int64_t next, std::vector<Trajectory> trajectories, std::vector<TokenTargets> targets) {
  step.begin(std::ssize(trajectories));
  step.add(std::move(trajectories), std::move(targets), true);
  RolloutAhead ahead;
  {
    Beside beside(has_thread_beside());
    beside.add([&] { return step.advance(); });
    ahead.metrics = generate(next, ahead.trajectories, &beside);
    beside.finish();
  }
  if (!settings.use_rollout_logprobs) {
    auto scores = step.score(session.weights, pointers_to(ahead.trajectories));
    for (size_t i = 0; i < scores.size(); i++) ahead.trajectories[i].log_probs = std::move(scores[i]);
  }
  state.ahead = std::move(ahead);
  return step.finish();
}

void stop_if_lost(const TrainStep& step, const Settings& s, const char* rate) {
  if (step.skipped_in_a_row() < stop_after_skipped) return;
  fail(Exit::numerics,
       "{} training steps in a row had a loss or gradient that is not finite; the newest good checkpoint is in {}. "
       "Lower {} or look at the data of this rollout.",
       stop_after_skipped, s.save, rate);
}

void Run::critic_steps(const std::vector<const Trajectory*>& all, const std::vector<TokenTargets>& targets,
                       size_t per_step, Metrics& out) {
  std::vector<Metrics> results;
  for (size_t from = 0; from == 0 || from + per_step <= all.size(); from += per_step) {
    const auto begin = static_cast<int64_t>(from);
    const auto end = static_cast<int64_t>(std::min(all.size(), from + per_step));
    results.push_back(
        critic->run({all.begin() + begin, all.begin() + end}, {targets.begin() + begin, targets.begin() + end}));
    stop_if_lost(critic->step(), settings, "--critic-lr");
  }
  TrainStep& own = critic->step();
  state.critic = {own.optimizer().steps(), own.skipped(), own.skipped_in_a_row()};
  append_means(out, results, false);
}

// Old log-probs where a step needs them, then the optimizer steps in index order.
std::vector<Metrics> Run::optimizer_steps(int64_t rollout_id, const std::vector<Trajectory>& trajectories,
                                          Metrics& out) {
  const Settings& s = settings;
  const auto all = pointers_to(trajectories);
  const auto per_step = static_cast<size_t>(s.global_batch_size.value_or(static_cast<int64_t>(all.size())));
  const size_t steps = std::max<size_t>(1, all.size() / per_step);
  const auto targets = targets_of(trajectories, steps > 1, looks_at_reference(rollout_id), out);
  if (critic) critic_steps(all, targets, per_step, out);
  std::vector<Metrics> results;
  if (critic && rollout_id < s.num_critic_only_steps) return results;
  Progress bar("training", static_cast<int64_t>(steps), terminal);
  for (size_t i = 0; i < steps; i++) {
    const auto from = static_cast<int64_t>(i * per_step);
    const auto to = static_cast<int64_t>(std::min(all.size(), (i + 1) * per_step));
    std::vector<TokenTargets> some(targets.begin() + from, targets.begin() + to);
    if (i == 0 && s.async_rollout && rollout_id + 1 < rollouts) {
      results.push_back(
          step_and_roll(rollout_id + 1, {trajectories.begin() + from, trajectories.begin() + to}, std::move(some)));
    } else {
      results.push_back(step.run({all.begin() + from, all.begin() + to}, some));
    }
    updated();
    bar.advance();
  }
  return results;
}

// After an optimizer step.
void Run::updated() {
  state.optimizer_steps = step.optimizer().steps();
  state.weight_version++;
  stop_if_lost(step, settings, "--lr");
}

Metrics Run::learn(int64_t rollout_id, std::vector<Trajectory>& trajectories, TailTraining* tail) {
  world.phase(fmt::format("training on rollout {}", rollout_id + 1));
  const auto start = Clock::now();
  Metrics out;
  std::vector<Metrics> results;
  if (tail != nullptr && tail->has_begun()) {
    results.push_back(tail->finish(trajectories));
    targets_of(trajectories, false, false, out);  // for its figures
    updated();
  } else {
    results = optimizer_steps(rollout_id, trajectories, out);
  }
  // The first step's weights are those that sampled.
  const double difference = results.empty() ? 0 : figure_of(results.front(), "train/train_rollout_logprob_abs_diff", 0);
  if (settings.true_on_policy && difference != 0) {
    fail(Exit::numerics,
         "--true-on-policy: rollout {}: the trainer's log-probs differ from the sampler's by {} on average. This is a "
         "fault of the program; --save-debug-rollout-data keeps the samples that show it",
         rollout_id, difference);
  }
  append_means(out, results, settings.use_rollout_logprobs);
  out.emplace_back("perf/actor_train_time", seconds_since(start));
  return out;
}

void Run::one(int64_t rollout_id) {
  const Settings& s = settings;
  const auto start = Clock::now();
  Metrics row;
  const auto append = [&](const Metrics& more) { row.insert(row.end(), more.begin(), more.end()); };
  const bool evaluates = !eval_sets.empty() && s.eval_interval;
  if (evaluates && rollout_id == 0 && !s.skip_eval_before_train) {
    // The first row's figures are those of the untouched weights.
    for (auto& [name, value] : evaluation())
      row.emplace_back(
          name.starts_with("eval/") ? "eval_before_train/" + name.substr(5) : "perf/eval_before_train_time", value);
  }
  std::vector<Trajectory> trajectories;
  std::optional<TailTraining> tail;
  std::optional<Beside> beside;  // which uses the one before it
  if (s.debug_train_only) {
    trajectories = read_trajectories(numbered(s.load_debug_rollout_data, rollout_id));
    if (trajectories.empty()) fail(Exit::input, "{}: no trajectories", s.load_debug_rollout_data);
    check_trajectories(trajectories, session.config, s.load_debug_rollout_data);
    const std::string routes = routes_path(numbered(s.load_debug_rollout_data, rollout_id));
    if (s.use_rollout_routing_replay) load_routes(routes, trajectories, session.config);
  } else if (state.ahead) {
    trajectories = std::move(state.ahead->trajectories);
    append(state.ahead->metrics);
    state.ahead.reset();
  } else {
    if (s.train_during_tail) {
      beside.emplace(has_thread_beside());
      tail.emplace(step, *beside, train_options(s, session.config).pack, *s.rollout_batch_size * s.n_samples_per_prompt,
                   [&](std::span<const Trajectory> groups) {
                     Metrics unused;
                     return targets_of(groups, false, looks_at_reference(rollout_id), unused);
                   });
    }
    append(generate(rollout_id, trajectories, beside ? &*beside : nullptr, tail ? &*tail : nullptr));
  }
  append(rollout_metrics(trajectories));
  if (s.async_rollout) append(staleness(trajectories, state.weight_version));
  if (files.writes() && !s.debug_train_only)
    keep_rollout(files.directory(), rollout_id, s.keep_rollouts, session, trajectories);
  if (!s.debug_rollout_only) append(learn(rollout_id, trajectories, tail ? &*tail : nullptr));
  if (s.ref_update_interval && (rollout_id + 1) % *s.ref_update_interval == 0 && !s.debug_rollout_only)
    copy_weights(*reference, session.weights, *session.threads);
  state.next_rollout = rollout_id + 1;
  if (cursor) state.cursor = cursor->state();
  if (evaluates && !s.debug_rollout_only && ((rollout_id + 1) % *s.eval_interval == 0 || rollout_id + 1 == rollouts)) {
    append(evaluation());
  }
  append(watch.metrics());
  append(report->metrics(trajectories, row));
  row.emplace_back("perf/step_time", seconds_since(start));
  if (!files.writes()) return;
  metrics->write(rollout_id, row);
  log::info("{}", format_step_line(report->line(rollout_id, row)));
}

void Run::commit(int64_t id) {
  world.phase("saving");
  if (metrics) metrics->sync();
  const bool last = id + 1 == rollouts, numbered_export = settings.save_hf.find("{rollout_id}") != std::string::npos;
  if (files.commit(session, step, state, last, last || numbered_export, kept_besides())) committed = state.next_rollout;
}

// Ends the run at a signal, with what it has done committed.
void Run::stop(int signal) {
  const bool keeps = settings.save != nowhere && !settings.debug_rollout_only;
  if (keeps && state.next_rollout > committed) {
    world.phase("saving");
    if (metrics) metrics->sync();
    files.save(session, step, state, false, kept_besides());
    committed = state.next_rollout;
  }
  end_by_signal(signal, !keeps ? "nothing was to be kept"
                        : committed == 0
                            ? "no rollout was complete"
                            : fmt::format("{} of {} rollouts are in {}", committed, rollouts, settings.save));
}

}  // namespace

void train(const Settings& settings, bool terminal, const Faults& faults) {
  train(settings, *solo_world(), terminal, faults);
}

void train(const Settings& settings, World& world, bool terminal, const Faults& faults) {
  if (settings.dry_run) {
    const RunInputs inputs(settings, world);
    if (world.rank() == 0) std::fputs(inputs.plan_text(0).c_str(), stdout);
    return;
  }
  Run run(settings, world, terminal, faults);
  run.prepare();
  const int64_t first = run.state.next_rollout;
  const EndingSignals signals;
  run.committed = first;
  for (int64_t id = first; id < run.rollouts; id++) {
    const RunState before = run.state;
    try {
      run.one(id);
    } catch (const Interrupted& interrupted) {
      run.state = before;  // the weights are still those
      run.stop(interrupted.signal);
    }
    const bool due = settings.save_interval && (id + 1) % *settings.save_interval == 0;
    if (!settings.debug_rollout_only && (due || id + 1 == run.rollouts)) run.commit(id);
    if (id + 1 == run.rollouts) break;
    if (const int signal = agreed_signal(run.session.mesh->world()); signal != 0) run.stop(signal);
  }
  if (first == run.rollouts) run.commit(first - 1);  // all but the export was done
  if (run.metrics) run.metrics->sync();
  if (const std::string text = run.watch.summary(); !text.empty() && run.files.writes()) log::info("{}", text);
}

}  // namespace furlong
