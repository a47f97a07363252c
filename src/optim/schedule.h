// The course of the learning rate over optimizer steps: Megatron-Core's OptimizerParamScheduler. It counts samples;
// with equal batches steps are the same.
#pragma once
#include <cstdint>
#include <string>

namespace furlong {

enum class LrDecay { constant, linear, cosine, inverse_square_root, wsd };
enum class WsdDecay { linear, cosine, exponential, minus_sqrt };
// constant, linear, cosine, inverse-square-root, WSD; linear, cosine, exponential, minus_sqrt. Exit::usage otherwise.
LrDecay parse_lr_decay(const std::string& name);
WsdDecay parse_wsd_decay(const std::string& name);

struct LrSchedule {
  double min_lr = 0;
  double warmup_steps = 0, warmup_init = 0;
  LrDecay decay = LrDecay::constant;
  int64_t decay_steps = 0;  // the step that has min_lr, warm-up counted in; more than warmup_steps unless constant
  WsdDecay wsd_decay = WsdDecay::exponential;
  int64_t wsd_steps = 0;  // the last of decay_steps, in which wsd goes down

  // The rate of the step after `done` finished ones, lr being the highest: linear from warmup_init to lr in the
  // warm-up, then lr for ever, or down to min_lr at decay_steps and min_lr from then on. inverse_square_root: lr
  // (warmup_steps / done)^1/2, not below min_lr; it needs a warm-up.
  double rate(double lr, int64_t done) const;
};

}  // namespace furlong
