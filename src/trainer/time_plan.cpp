#include "trainer/time_plan.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>
#include <thread>

#include "base/text.h"
#include "monitor/table.h"
#include "trainer/options.h"

namespace furlong {
namespace {

constexpr double large_gpu_bytes = 100 * 1073741824.0;  // an H200 has more, an H100 less
// Of the machine's ceilings, as measured over whole steps (docs/performance.md).
constexpr double reached_on_gpus = 0.5, reached_on_cpus = 0.1;
constexpr size_t remembered_steps = 20;

double figure_or(const Metrics& row, std::string_view name, double otherwise) {
  for (const auto& [key, value] : row) {
    if (key == name) return value;
  }
  return otherwise;
}

std::string seconds_text(double x) { return x < 1 ? fmt::format("{:.3g} ms", 1e3 * x) : human_seconds(x); }

double sum_of(const std::vector<PhaseTime>& phases) {
  double total = 0;
  for (const auto& phase : phases) total += phase.seconds;
  return total;
}

double mean_of_last(const std::vector<double>& values) {
  const size_t n = std::min(values.size(), remembered_steps);
  return std::accumulate(values.end() - static_cast<ptrdiff_t>(n), values.end(), 0.0) / static_cast<double>(n);
}

// For a shell.
std::string quoted_word(const std::string& word) {
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || std::strchr("-_./=:@", c);
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

Machine machine_of(const Settings& s, const PlanInputs& in) {
  Machine machine = machine_h100();
  if (in.cuda && static_cast<double>(in.device_total) > large_gpu_bytes) machine = machine_h200();
  if (!in.cuda) {
    const int64_t cores = s.threads > 0 ? s.threads : std::max(1u, std::thread::hardware_concurrency());
    machine = machine_cpu(in.dtype, cores);
  }
  if (s.machine_tflops) machine.flops = 1e12 * *s.machine_tflops;
  if (s.machine_bandwidth) machine.memory = 1e9 * *s.machine_bandwidth;
  if (s.machine_tflops || s.machine_bandwidth) machine.name += ", ceilings as given";
  return machine;
}

TimeInputs time_inputs(const Settings& s, const PlanInputs& in, int64_t running, int64_t prompt, int64_t response) {
  TimeInputs t{.model = in.model, .layout = in.layout, .dtype = in.dtype, .machine = machine_of(s, in)};
  t.prompts = s.rollout_batch_size.value_or(1);
  t.sequences = t.prompts * s.n_samples_per_prompt;
  t.running = running;
  t.prompt = prompt;
  t.response = response;
  if (s.rollout_speculative_algorithm != "none") t.drafts = s.rollout_speculative_num_draft_tokens.value_or(3) - 1;
  t.steps = s.num_steps_per_rollout.value_or(1);
  t.rolls = !s.debug_train_only;
  t.trains = !s.debug_rollout_only;
  if (t.trains) t.passes = scores_old(s) + scores_reference(s);
  t.critic = in.critic;
  t.micro_tokens = in.micro_tokens;
  t.mtp = in.mtp;
  t.recompute = in.recompute;
  t.offload = in.offload > 0 && in.cuda;
  return t;
}

std::string time_table(const TimeInputs& t) {
  Table table({{fmt::format("least time of a step ({})", t.machine.name)}, {"", Table::Align::right}});
  const auto phases = step_times(t);
  for (const auto& phase : phases) table.add({phase.name, seconds_text(phase.seconds)});
  table.add_rule();
  table.add({"step", seconds_text(sum_of(phases))});
  std::string text = table.str();
  text += fmt::format("if all {} responses have {} tokens after prompts of {}", t.sequences, t.response, t.prompt);
  if (t.drafts > 0)
    text += fmt::format("; {} drafts, {:.2f} tokens accepted a verification", t.drafts, accept_length(t.drafts));
  return text + "; measured steps take longer\n";
}

std::string time_estimate(const TimeInputs& t, int64_t steps, std::optional<double> measured,
                          const EvaluationTime& evaluation) {
  const double reached = t.machine.nominal > 0 ? reached_on_gpus : reached_on_cpus;
  const double each = measured ? *measured : sum_of(step_times(t)) / reached;
  std::string text = fmt::format("estimate: {} a step, {} for {} steps", seconds_text(each),
                                 seconds_text(each * static_cast<double>(steps)), steps);
  if (evaluation.count > 0) {
    double seconds = 0;
    for (const TimeInputs& set : evaluation.sets) seconds += sum_of(step_times(set)) / reached;
    text += fmt::format(", {} for {} evaluations", seconds_text(seconds * static_cast<double>(evaluation.count)),
                        evaluation.count);
  }
  const std::string ceilings = fmt::format(
      "at {:.0f} % of the ceilings, as measured elsewhere; shorter responses take less, checkpoints come on "
      "top",
      100 * reached);
  return text + fmt::format(" ({})\n", measured ? "as the newest steps of this run took" : ceilings);
}

StepReport::StepReport(const Settings& s, const TimeInputs& planned, int64_t rollouts, std::vector<double> seconds)
    : ahead_(s.async_rollout),
      overlaps_(s.async_rollout || s.train_during_tail),
      planned_(planned),
      cost_(model_cost(planned.model, planned.dtype)),
      rollouts_(rollouts),
      seconds_(std::move(seconds)),
      cold_(seconds_.empty()),
      last_(std::chrono::steady_clock::now()) {}

Metrics StepReport::metrics(const std::vector<Trajectory>& trajectories, const Metrics& row) const {
  std::vector<const Trajectory*> all;
  for (const auto& t : trajectories) all.push_back(&t);
  return metrics(all, row);
}

Metrics StepReport::metrics(std::span<const Trajectory* const> trajectories, const Metrics& row) const {
  Metrics out;
  if (trajectories.empty()) return out;
  double forward = 0, training = 0;
  int64_t prompts = 0, responses = 0;
  std::set<int64_t> groups;
  for (const Trajectory* t : trajectories) {
    const auto flops = sequence_flops(planned_.model, cost_, std::ssize(t->tokens), t->response_length, planned_.mtp);
    forward += flops.forward;
    training += flops.training;
    prompts += t->prompt_length();
    responses += t->response_length;
    groups.insert(t->group_index);
  }
  const double gpus = static_cast<double>(planned_.layout.gpus);
  const double old_scores = figure_or(row, "perf/log_probs_time", 0);
  const double reference_scores = figure_or(row, "perf/ref_log_probs_time", 0);
  const double trained = figure_or(row, "perf/actor_train_time", 0);
  // The latter two are means over the optimizer steps.
  const double critic = figure_or(row, "perf/values_time", 0) +
                        static_cast<double>(planned_.steps) * (figure_or(row, "perf/critic_gradients_time", 0) +
                                                               figure_or(row, "perf/critic_optimizer_time", 0));
  const double updates = trained - old_scores - reference_scores - critic;
  const auto add_rate = [&](const char* name, double flops, double seconds) {
    if (seconds > 0) out.emplace_back(name, flops / seconds / gpus / 1e12);
  };
  add_rate("perf/log_probs_tflops", forward, old_scores);
  add_rate("perf/ref_log_probs_tflops", forward, reference_scores);
  if (!overlaps_) add_rate("perf/actor_train_tflops", training, updates);
  const double nominal = planned_.machine.nominal > 0 ? planned_.machine.nominal : planned_.machine.flops;
  if (updates > 0 && !overlaps_) out.emplace_back("perf/actor_train_mfu", training / updates / gpus / nominal);

  TimeInputs t = planned_;
  const int64_t n = std::ssize(trajectories);
  t.sequences = n;
  t.prompts = std::ssize(groups);
  t.prompt = prompts / n;
  t.response = std::max<int64_t>(1, responses / n);
  t.accept = figure_or(row, "rollout/spec_accept_length", 0);
  if (t.accept <= 0) t.drafts = 0;
  t.passes = (old_scores > 0) + (reference_scores > 0);
  const bool within = ahead_ && trained > 0;  // the rollout went on in the time of a training
  const double took = trained + (within ? 0 : figure_or(row, "perf/rollout_time", 0)), least = sum_of(step_times(t));
  if (took > 0) {
    out.emplace_back("perf/least_step_time", least);
    out.emplace_back("perf/limit_share", least / took);
  }
  return out;
}

StepLine StepReport::line(int64_t rollout_id, const Metrics& row) {
  const auto now = std::chrono::steady_clock::now();
  lines_++;
  if (lines_ == 2 && cold_) seconds_.clear();
  if (lines_ > 1 || cold_) seconds_.push_back(std::chrono::duration<double>(now - last_).count());
  last_ = now;
  StepLine line{.step = rollout_id, .steps = rollouts_};
  const auto maybe = [&](std::string_view name) {
    const double value = figure_or(row, name, std::nan(""));
    return std::isnan(value) ? std::nullopt : std::optional<double>(value);
  };
  line.reward = maybe("rollout/raw_reward");
  line.reward_std = maybe("rollout/raw_reward_std");
  line.response_length = maybe("rollout/response_len/mean");
  line.kl = maybe("train/train_rollout_kl");
  line.grad_norm = maybe("train/grad_norm");
  line.accept_length = maybe("rollout/spec_accept_length");
  line.rollout_seconds = maybe("perf/rollout_time");
  line.train_seconds = maybe("perf/actor_train_time");
  line.tokens_per_second = maybe("perf/tokens_per_gpu_per_sec");
  line.limit_share = maybe("perf/limit_share");
  line.eta_seconds = mean_of_last(seconds_) * static_cast<double>(rollouts_ - rollout_id - 1);
  return line;
}

std::string wandb_command(const Settings& s) {
  const std::string script =
      "import json, sys, wandb; run = wandb.init(project=sys.argv[2] or None, entity=sys.argv[3] or None); "
      "[run.log(row, step=row.pop(\"step\")) for row in map(json.loads, open(sys.argv[1]))]; run.finish()";
  return fmt::format("python3 -c '{}' {} {} {}", script, quoted_word(s.run_dir + "/metrics.jsonl"),
                     quoted_word(s.wandb_project), quoted_word(s.wandb_team));
}

}  // namespace furlong
