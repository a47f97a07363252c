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
  double nominal = 0;  // the vendor's operations per second, of which MFU is by custom a share; 0: there is no such
};
// H100, H200, or cores like the two of the development machine (docs/performance.md).
Machine machine_h100();
Machine machine_h200();
Machine machine_cpu(DType dtype, int64_t cores = 2);

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

// Operations that a sequence of `tokens` tokens asks for: each linear layer's in proportion to the tokens, attention's
// with their square, the head's for the rows of the response alone. Recomputation is not counted.
struct SequenceFlops {
  double forward = 0;
  double training = 0;  // forward and backward, three times the forward; with `mtp` the MTP layer's too
};
SequenceFlops sequence_flops(const ModelConfig&, const ModelCost&, int64_t tokens, int64_t response, bool mtp);

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
  double accept = 0;    // tokens that a verification yields; 0: accept_length(drafts)
  int64_t passes = 0;   // log-prob passes besides training
  bool critic = false;  // PPO's: a pass for its values, and its own training
  int64_t steps = 1;    // optimizer steps
  int64_t micro_tokens = 8192;
  bool rolls = true, trains = true, mtp = false, recompute = false, offload = false;
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
