// Supervised fine-tuning: the same optimizer step with the log-likelihood of the assistant's tokens as its objective.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>

#include "base/ending.h"
#include "base/error.h"
#include "base/log.h"
#include "monitor/metrics.h"
#include "trainer/memory_plan.h"
#include "trainer/options.h"
#include "trainer/run_files.h"
#include "trainer/time_plan.h"
#include "trainer/trainer.h"

namespace furlong {
namespace {

using Clock = std::chrono::steady_clock;

// A conversation as a trajectory: the response begins at the first token to learn.
Trajectory tokenize_one(const Session& session, const PromptSet& set, int64_t i) {
  if (!set[i].is_chat())
    fail(Exit::input, "{}: a conversation (a list of messages) is wanted, this is a text", set.where(i));
  std::vector<Message> messages;
  for (const auto& m : set[i].messages) messages.push_back(message_of(m));
  ChatValues values = session.chat_values;
  if (!set[i].tools.empty()) values.tools = set[i].tools;
  TokenizedChat chat;
  try {
    chat = tokenize_conversation(*session.tokenizer, *session.chat, messages, values);
  } catch (const Error& e) {
    fail(e.code(), "{}: {}", set.where(i), e.what());
  }
  const auto first = std::find(chat.loss_mask.begin(), chat.loss_mask.end(), 1) - chat.loss_mask.begin();
  if (first == static_cast<int64_t>(chat.ids.size()))
    fail(Exit::input, "{}: no assistant turn to learn from", set.where(i));
  Trajectory t;
  t.response_length = static_cast<int32_t>(static_cast<int64_t>(chat.ids.size()) - first);
  t.loss_mask.assign(chat.loss_mask.begin() + first, chat.loss_mask.end());
  t.tokens = std::move(chat.ids);
  t.group_index = t.index = i;
  return t;
}

std::vector<Trajectory> tokenize_all(const Session& session, const Settings& s) {
  if (!session.tokenizer) fail(Exit::input, "{} has no tokenizer.json, which conversations need", session.directory);
  if (!session.chat) fail(Exit::usage, "{}", session.chat_error);
  if (s.prompt_data.empty()) fail(Exit::usage, "--prompt-data FILE is needed: the conversations to learn");
  PromptSet set(prompt_options(s));
  const int64_t limit =
      std::min(session.config.max_position_embeddings > 0 ? session.config.max_position_embeddings : INT32_MAX,
               s.rollout_max_context_len.value_or(INT32_MAX));
  std::vector<Trajectory> all;
  int64_t too_long = 0;
  const int64_t bad_rows = set.bad().count();
  for (int64_t i = 0; i < set.size(); i++) {
    try {
      Trajectory t = tokenize_one(session, set, i);
      if (std::ssize(t.tokens) > limit) {
        too_long++;
      } else {
        all.push_back(std::move(t));
      }
    } catch (const Error& error) {
      set.bad().add(error);
    }
  }
  set.bad().report(s.prompt_data, set.size() - (set.bad().count() - bad_rows));
  if (too_long > 0) log::warn("{}: {} conversations of more than {} tokens left out", s.prompt_data, too_long, limit);
  if (all.empty()) fail(Exit::input, "{}: no conversation fits {} tokens", s.prompt_data, limit);
  return all;
}

}  // namespace

void supervised(const Settings& settings, bool terminal) { supervised(settings, *solo_world(), terminal); }

void supervised(const Settings& s, World& world, bool) {
  RunFiles files(s, Command::sft, world.rank());
  Session session = open_session(s, world);
  join_mesh(session, s, world);
  TrainOptions options = train_options(s, session.config);
  options.objective = Objective::supervised;
  options.temperature = 1;
  const auto conversations = tokenize_all(session, s);
  const auto batch = s.global_batch_size.value_or(s.rollout_batch_size.value_or(32));
  const int64_t per_epoch = std::max<int64_t>(1, static_cast<int64_t>(conversations.size()) / batch);
  const int64_t steps = s.num_rollout ? *s.num_rollout : s.num_epoch.value_or(1) * per_epoch;
  set_schedule(options.optim.schedule, s, steps);
  Workload work{
      .trains = true, .supervised = true, .shortest = std::numeric_limits<int32_t>::max(), .ranks = world.size()};
  for (const auto& t : conversations) {
    work.longest = std::max(work.longest, std::ssize(t.tokens));
    work.shortest = std::min(work.shortest, std::ssize(t.tokens));
  }
  const CheckedPlan memory = require_memory(session, s, work);
  load_weights(session, s);
  TrainStep step(session.config, session.weights, *session.threads, options,
                 Share::block(memory.plan.block, session.device), *session.mesh);
  PromptCursor cursor(static_cast<int64_t>(conversations.size()), s.rollout_shuffle, s.rollout_seed);
  RunState state;
  if (const auto resumed = files.resume(session, step)) {
    state = *resumed;
    cursor.restore(state.cursor);
  }
  const bool to_export = state.next_rollout == steps && !state.exported && s.save_hf != nowhere;
  if (state.next_rollout >= steps && !to_export) {
    fail(Exit::usage,
         "the run in {} has already done {} of {} steps; raise --num-rollout to go on, or choose another --run-dir",
         files.directory(), state.next_rollout, steps);
  }
  TimeInputs time = time_inputs(s, memory.inputs, 1, 1, std::max<int64_t>(1, work.longest - 1));
  time.rolls = false;
  time.sequences = batch;
  StepReport report(s, time, steps, {});
  std::unique_ptr<MetricsWriter> metrics;
  if (files.writes()) {
    metrics = std::make_unique<MetricsWriter>(files.directory() + "/metrics.jsonl", state.next_rollout,
                                              files.directory() + "/tensorboard");
    const std::string plan = memory.table + "\n" + time_table(time) + time_estimate(time, steps - state.next_rollout);
    files.write_plan(plan);
    log::info("{}", plan);
    if (s.use_wandb) log::info("--use-wandb: nothing is sent; when you like: {}", wandb_command(s));
  }
  DeviceMemoryWatch watch(session.device, memory.plan);
  const int64_t first = state.next_rollout;
  const EndingSignals signals;
  for (int64_t id = first; id < steps; id++) {
    const auto start = Clock::now();
    std::vector<const Trajectory*> picked;
    int64_t tokens = 0;
    for (int64_t i = 0; i < batch; i++) {
      picked.push_back(&conversations[static_cast<size_t>(cursor.next(1).prompt)]);
      tokens += static_cast<int64_t>(picked.back()->tokens.size());
    }
    Metrics row = step.run(picked, std::vector<TokenTargets>(picked.size()));
    if (step.skipped_in_a_row() >= stop_after_skipped) {
      fail(Exit::numerics, "{} training steps in a row had a loss or gradient that is not finite; lower --lr",
           stop_after_skipped);
    }
    state = {id + 1,         step.optimizer().steps(), state.weight_version + 1,
             step.skipped(), step.skipped_in_a_row(),  cursor.state()};
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    row.emplace_back("perf/actor_train_time", seconds);
    for (const auto& figure : watch.metrics()) row.push_back(figure);
    for (const auto& figure : report.metrics(picked, row)) row.push_back(figure);
    const StepLine line = report.line(id, row);
    if (metrics) metrics->write(id, row);
    if (metrics && (id % std::max<int64_t>(1, steps / 20) == 0 || id + 1 == steps)) {
      log::info("step {}/{}  loss {}  gnorm {}  {} tok/s  {:.3g}% of limit  ETA {}", id + 1, steps,
                short_number(row[0].second), short_number(row[1].second),
                short_number(static_cast<double>(tokens) / seconds), 100 * line.limit_share.value_or(0),
                short_duration(*line.eta_seconds));
    }
    const bool last = id + 1 == steps;
    const int signal = last ? 0 : agreed_signal(session.mesh->world());
    if ((s.save_interval && (id + 1) % *s.save_interval == 0) || last || signal != 0) {
      if (metrics) metrics->sync();
      files.commit(session, step, state, last || signal != 0, last);
    }
    if (signal == 0) continue;
    end_by_signal(signal, s.save == nowhere ? "nothing was to be kept"
                                            : fmt::format("{} of {} steps are in {}", id + 1, steps, s.save));
  }
  if (first == steps) files.commit(session, step, state, true, true);  // all but the export was done
  const std::string used = watch.summary();
  if (files.writes() && !used.empty()) log::info("{}", used);
}

}  // namespace furlong
