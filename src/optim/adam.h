// AdamW over a model's Weights: masters and moments are further Weights, on the weights' device or in page-locked host
// memory. Each rank of a mesh keeps and updates the numbers that it owns (owners.h).
#pragma once
#include <memory>
#include <vector>

#include "model/weights.h"
#include "ops/adamw.h"
#include "optim/offload.h"
#include "optim/owners.h"
#include "optim/schedule.h"
#include "tensor/stream.h"

namespace furlong {

struct OptimOptions {
  double lr = 1e-6;  // the highest of the schedule
  LrSchedule schedule;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
  double clip_grad = 1.0;  // 0: off
  bool train_mtp = true;   // false: the MTP tensors stay byte-identical
  // What bf16 weights' masters and the moments are kept in, f32 or bf16; the update is computed in fp32 either way.
  // Masters in bf16 are the weights themselves. f32 and f64 weights are always their own masters.
  DType main_params = DType::f32, exp_avg = DType::f32, exp_avg_sq = DType::f32;
  DType main_grads = DType::f32;  // what the caller keeps gradients in
  // Of weights on a device: masters, moments and update of the first tensors that hold up to this part of all numbers
  // are the host's. The bits are the same.
  double offload = 0;
  bool overlap = false;  // with offload: gradients go down part by part as gradients_done() tells of them
  int64_t offload_block = int64_t{8} << 20;    // numbers that move and are updated together
  int64_t exchange_block = int64_t{16} << 20;  // gradients on their way to one owner at a time
};

struct StepResult {
  double grad_norm = 0;  // before clipping, over all trained tensors
  double lr = 0;
  bool skipped = false;  // the norm was not finite: nothing was touched
};

class Optimizer {
 public:
  // fp32 (and f64) weights are their own masters; bf16 weights get fp32 ones, copied from them, unless main_params is
  // bf16. The moments begin at zero. stream: where weights on a device are worked on. On a mesh all ranks make one, and
  // call the same functions; masters and moments are flat. Throws Error(Exit::resources) when the memory cannot be had.
  Optimizer(const ModelConfig&, Weights& weights, OptimOptions options, Stream* stream = nullptr,
            const Mesh& mesh = Mesh::alone());

  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // One step in place from gradients (same layout; main_grads, or f64 for f64 weights). Every gradient is checked
  // before anything is written. The new weights are there for what the stream is given afterwards. On a mesh the owned
  // numbers of the gradients are the sums over their holders then; the norm is that of the whole model.
  StepResult step(Stream&, const Weights& grads);
  // The stream has been given all that this step adds to the gradients of a part (TensorSpec::part): they begin to be
  // summed over ranks, and travel to the host.
  void gradients_done(Stream&, const Weights& grads, int part);
  // Sums over ranks what gradients_done() was not told of. What the stream is given afterwards finds all sums.
  void reduce(Stream& stream, const Weights& grads) { owners_.reduce_rest(stream, grads); }
  // The gradients told of are not wanted any more: there will be no step with them.
  void drop_gradients();
  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  const Owners& owners() const { return owners_; }
  // What the exported checkpoint is made of: the owned numbers, flat, where there are masters on a mesh.
  const Weights& masters() const { return has_masters_ ? masters_ : *weights_; }
  Weights& mutable_masters() { return masters_; }
  bool has_masters() const { return has_masters_; }
  Weights& exp_avg() { return exp_avg_; }
  Weights& exp_avg_sq() { return exp_avg_sq_; }
  const Weights& exp_avg() const { return exp_avg_; }
  const Weights& exp_avg_sq() const { return exp_avg_sq_; }
  // After masters were filled from a checkpoint: weights = masters rounded to the weights' dtype.
  void weights_from_masters(Stream&);
  // After weights (and masters) were filled from a checkpoint: what else is derived from them.
  void weights_loaded(Stream&);

  // Bytes on the weights' device and of page-locked host memory: masters, moments, and what offloading adds.
  uint64_t device_bytes() const;
  uint64_t host_bytes() const;

 private:
  Weights* weights_;
  OptimOptions options_;
  bool has_masters_;
  Owners owners_;
  std::vector<bool> on_host_;  // by tensor; empty without offload
  Weights masters_, exp_avg_, exp_avg_sq_;
  std::unique_ptr<Offload> offload_;
  int64_t steps_ = 0;
};

}  // namespace furlong
