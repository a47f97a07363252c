// The main job: rollout, reward, update, evaluation, checkpoints.
#pragma once
#include <functional>
#include <vector>

#include "trainer/settings.h"

namespace furlong {

class Stream;
struct Trajectory;
class World;

// Faults that tests put into a run: called in every optimizer step when its gradients are there and the weights are
// still the old ones, and with every rollout.
struct Faults {
  std::function<void(Stream&)> before_update;
  std::function<void(std::vector<Trajectory>&)> after_rollout;
};

// furlong train, with both debug halves, as one of the ranks of `world`. `terminal`: stderr is one, so that progress
// bars make sense.
void train(const Settings& settings, World& world, bool terminal, const Faults& faults = {});
void train(const Settings& settings, bool terminal, const Faults& faults = {});  // alone

// furlong sft: supervised fine-tuning on the conversations of --prompt-data.
void supervised(const Settings& settings, World& world, bool terminal);
void supervised(const Settings& settings, bool terminal);  // alone

}  // namespace furlong
