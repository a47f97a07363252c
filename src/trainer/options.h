// From settings to the options of the parts, and what a run says about itself before it starts.
#pragma once
#include <string>

#include "data/trajectory.h"
#include "trainer/session.h"
#include "trainer/train_step.h"

namespace furlong {

TrainOptions train_options(const Settings& settings, const ModelConfig& config);
PromptOptions prompt_options(const Settings& settings);

// Whether a reference model is worth its memory: only where a coefficient or an observation needs it.
bool needs_reference(const Settings& settings);

// The passes that a step makes, and those it leaves out because they change no gradient, and why.
std::string passes_text(const Settings& settings);

// Throws Error(Exit::input) when a trajectory file does not fit the model or its rewards are missing.
void check_trajectories(const std::vector<Trajectory>& trajectories, const ModelConfig& config,
                        const std::string& where);

}  // namespace furlong
