// From settings to the options of the parts, and what a run says about itself before it starts.
#pragma once
#include <string>

#include "data/trajectory.h"
#include "rl/mismatch.h"
#include "trainer/session.h"
#include "trainer/train_step.h"

namespace furlong {

// Without what only a run's length tells of the learning rate: set_schedule().
TrainOptions train_options(const Settings& settings, const ModelConfig& config);
// What is wrong with the learning rate's schedule in a run of `iterations` optimizer steps; empty: nothing.
std::string schedule_conflict(const Settings& settings, int64_t iterations);
// What is wrong with --rollout of `furlong inspect` and the filters of its samples; empty: nothing.
std::string browsing_conflict(const Settings& settings);
// In a run of so many optimizer steps. Throws Error(Exit::usage) when the schedule does not fit it.
void set_schedule(LrSchedule& schedule, const Settings& settings, int64_t iterations);
// Of `furlong train` with so many rollouts.
int64_t optimizer_steps(const Settings& settings, int64_t rollouts);
// The names that --custom-tis-function-path and --custom-pg-loss-reducer-function-path may have.
inline constexpr const char* mismatch_correction = "compute_mis_weights";
inline constexpr const char* constant_denominator = "get_pg_loss_reducer";
// Whether sampled tokens are weighed and rejected by compute_mis_weights.
bool corrects_mismatch(const Settings& settings);
MismatchOptions mismatch_options(const Settings& settings);
// Whether a step begins with a pass of the trained weights over its rollout, and with one of the reference.
bool scores_old(const Settings& settings);
bool scores_reference(const Settings& settings);
PromptOptions prompt_options(const Settings& settings);

// Whether a reference model is worth its memory: only where a coefficient or an observation needs it.
bool needs_reference(const Settings& settings);

// The passes that a step makes, and those it leaves out because they change no gradient, and why.
std::string passes_text(const Settings& settings);

// Throws Error(Exit::input) when a trajectory file does not fit the model or its rewards are missing.
void check_trajectories(const std::vector<Trajectory>& trajectories, const ModelConfig& config,
                        const std::string& where);

}  // namespace furlong
