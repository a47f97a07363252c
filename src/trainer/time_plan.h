// The time of a run before and while it goes: the least that its steps can take on this machine, what they are expected
// to take, and what they took.
#pragma once
#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/trajectory.h"
#include "monitor/metrics.h"
#include "plan/memory.h"
#include "plan/time.h"
#include "trainer/memory_plan.h"
#include "trainer/rollout.h"

namespace furlong {

// The ceilings that a plan's machine has; --machine-tflops and --machine-bandwidth say otherwise.
Machine machine_of(const Settings&, const PlanInputs&);
// A step whose responses all have `response` tokens after prompts of `prompt`, with `running` sequences a rank at most.
TimeInputs time_inputs(const Settings&, const PlanInputs&, int64_t running, int64_t prompt, int64_t response);

// The least time by phase and what was assumed.
std::string time_table(const TimeInputs&);
// So many evaluations, each the rollouts of its sets one after the other.
struct EvaluationTime {
  int64_t count = 0;
  std::vector<TimeInputs> sets;  // as steps that do not train
};
// "estimate: 1.8 s a step, 36 s for 20 steps ...". `measured`: seconds of a step of this run so far, in place of the
// machine's ceilings.
std::string time_estimate(const TimeInputs&, int64_t steps, std::optional<double> measured = std::nullopt,
                          const EvaluationTime& evaluation = {});

// What a step did in what time.
class StepReport {
 public:
  // `planned`: a step as time_inputs() has it; `seconds`: of the run's steps before this start, if any.
  StepReport(const Settings&, const TimeInputs& planned, int64_t rollouts, std::vector<double> seconds);

  // From the row's times and the step's own trajectories:
  //   perf/{actor_train,log_probs,ref_log_probs}_tflops  operations of the model (sequence_flops) a GPU and second,
  //   1e12 perf/actor_train_mfu      the first of them as a share of the vendor's dense rate (CPU: of the measured
  //   ceiling) perf/least_step_time      seconds that the step takes at least at the machine's ceilings (plan/time.h)
  //   perf/limit_share          that, over the time that its rollout and training took
  // Where training goes on beside a rollout (--train-during-tail, --async-rollout) its own time is not known, and the
  // first two are left out.
  Metrics metrics(const std::vector<Trajectory>&, const Metrics& row) const;
  Metrics metrics(std::span<const Trajectory* const>, const Metrics& row) const;

  // The step's line. The time since the last one (or the start) counts as the step's own, saving and evaluation too;
  // what is left is expected to go on as the newest 20 steps did.
  StepLine line(int64_t rollout_id, const Metrics& row);

 private:
  bool ahead_, overlaps_;  // the next rollout, or training and rollout, in the time of training
  TimeInputs planned_;
  ModelCost cost_;
  int64_t rollouts_;
  std::vector<double> seconds_;
  bool cold_;  // nothing was known at the start: its first step, slower than others, counts until there is a second
  int64_t lines_ = 0;
  std::chrono::steady_clock::time_point last_;
};

// The command that brings a run's metrics.jsonl to Weights & Biases, by wandb's own Python package (tried with 0.31.0;
// `wandb sync` reads TensorBoard events up to 0.28 only).
std::string wandb_command(const Settings&);

}  // namespace furlong
