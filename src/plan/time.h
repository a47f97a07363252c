// How long a step takes at least: every phase at the larger of its bytes over the memory's rate and its operations over
// the arithmetic's, with nothing lost between. What a run takes beyond this is what can still be won.
#pragma once
#include <string>
#include <vector>

#include "plan/layout.h"

namespace furlong {

// Ceilings measured with one's own copies and products, not the vendor's.
struct Machine {
  std::string name;
  double memory = 0;                                                    // bytes/s of a copy, read and write counted
  double flops = 0;                                                     // per second, in the model's dtype
  double host_memory = 400e9, host_link = 53.5e9, device_link = 450e9;  // bytes/s
};
// H100, H200, or two cores of the development machine (docs/performance.md).
Machine machine_h100();
Machine machine_h200();
Machine machine_cpu(DType dtype);

// Parameters and operations of one token, of the whole model.
struct ModelCost {
  double dense = 0;   // parameters of layers, without experts, embedding and head
  double expert = 0;  // of one expert in every layer
  double head = 0;    // of the head (and of the embedding)
  double mtp_dense = 0, mtp_expert = 0;
  double linear_flops = 0;     // of a token's forward through the layers, attention's and delta rule's cores left out
  double delta_flops = 0;      // of the delta rule, chunk form
  double attention_flops = 0;  // per key that a query sees
  double head_flops = 0;
  double kv_bytes = 0;     // a cached token in bf16 or fp32
  double state_bytes = 0;  // recurrent state of a sequence, fp32; window of the convolution beside it
  double window_bytes = 0;
  double forward(double length) const { return linear_flops + delta_flops + attention_flops * length / 2 + head_flops; }
};
ModelCost model_cost(const ModelConfig&, DType dtype);

struct TimeInputs {
  ModelConfig model;
  PlanLayout layout;
  DType dtype = DType::bf16;
  Machine machine;
  int64_t sequences = 0;             // of a rollout, on all GPUs
  int64_t running = 0;               // of a GPU at a time
  int64_t prompt = 0, response = 0;  // tokens of each
  int64_t prompts = 0;               // distinct ones: they are read in once
  int64_t drafts = 0;
  int64_t passes = 0;  // log-prob passes besides training
  int64_t steps = 1;   // optimizer steps
  int64_t micro_tokens = 8192;
  bool trains = true, mtp = false, recompute = false, offload = false;
};

struct PhaseTime {
  std::string name;
  double seconds = 0;
};
// A decode step of `batch` sequences a GPU at a mean context, drafts verified.
double decode_step_seconds(const TimeInputs&, double batch, double context);
// Accepted tokens a step, at the acceptance that docs/performance.md counts with (0.85, 0.75, 0.65, 0.6 by position).
double accept_length(int64_t drafts);
std::vector<PhaseTime> step_times(const TimeInputs&);

}  // namespace furlong
