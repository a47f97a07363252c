// The main job: rollout, reward, update, evaluation, checkpoints.
#pragma once
#include "trainer/settings.h"

namespace furlong {

// furlong train, with both debug halves. `terminal`: stderr is one, so that progress bars make sense.
void train(const Settings& settings, bool terminal);

// furlong sft: supervised fine-tuning on the conversations of --prompt-data.
void supervised(const Settings& settings, bool terminal);

}  // namespace furlong
