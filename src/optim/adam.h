// AdamW over a model's Weights: masters and moments are further Weights of the same layout.
#pragma once
#include <vector>

#include "model/weights.h"
#include "ops/adamw.h"
#include "tensor/stream.h"

namespace furlong {

struct OptimOptions {
  double lr = 1e-6;
  double min_lr = 0;
  int64_t warmup_steps = 0;
  double warmup_init = 0;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
  double clip_grad = 1.0;  // 0: off
  bool train_mtp = true;   // false: the MTP tensors stay byte-identical
};

struct StepResult {
  double grad_norm = 0;  // before clipping, over all trained tensors
  double lr = 0;
  bool skipped = false;  // the norm was not finite: nothing was touched
};

class Optimizer {
 public:
  // fp32 (and f64) weights are their own masters; bf16 weights get fp32 ones, copied from them. The moments begin at
  // zero.
  // stream: where weights on a device are worked on.
  Optimizer(const ModelConfig&, Weights& weights, OptimOptions options, Stream* stream = nullptr);

  // One step in place from gradients (f32, same layout). Every gradient is checked before anything is written.
  StepResult step(Stream&, const Weights& grads);
  // The learning rate of the step after `steps` finished ones: linear warm-up, then constant.
  double lr_at(int64_t steps) const;

  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  // What the exported checkpoint is made of.
  const Weights& masters() const { return has_masters_ ? masters_ : *weights_; }
  Weights& mutable_masters() { return masters_; }
  bool has_masters() const { return has_masters_; }
  Weights& exp_avg() { return exp_avg_; }
  Weights& exp_avg_sq() { return exp_avg_sq_; }
  // After masters were filled from a checkpoint: weights = masters rounded to the weights' dtype.
  void weights_from_masters(Stream&);

 private:
  Weights* weights_;
  OptimOptions options_;
  bool has_masters_;
  Weights masters_, exp_avg_, exp_avg_sq_;
  int64_t steps_ = 0;
};

}  // namespace furlong
