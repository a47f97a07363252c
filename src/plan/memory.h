// The memory of a run, by name, place and phase, before anything is loaded. Pages, slots and working memory are found
// by dry runs, which the caller hands in: this room knows the model, not the trainer or the rollout.
#pragma once
#include <array>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "plan/layout.h"

namespace furlong {

enum class Phase : uint8_t { rollout, training };

// What decides the memory of a run. Sizes in tokens, sequences or bytes.
struct PlanInputs {
  ModelConfig model;
  PlanLayout layout;
  DType dtype = DType::f32;
  bool cuda = false;        // weights on GPUs; otherwise everything lies on the host
  int64_t gpus_a_host = 1;  // processes that share the host's memory

  bool trains = false, rolls = false;
  bool at_once = false;    // both have their working memory at the same time
  bool mtp = false;        // the MTP head is trained
  bool reference = false;  // a reference model is kept
  bool critic = false;     // a critic of the same trunk is trained beside the policy
  uint64_t routes = 0;     // bytes of the routes of a rollout, which every process keeps
  double offload = 0;      // part of masters, moments and update that is the host's
  bool overlap = false;    // then gradients go down while the backward pass runs, into host memory of their own
  DType master = DType::f32, exp_avg = DType::f32, exp_avg_sq = DType::f32, main_grads = DType::f32;

  bool recompute = false;
  int64_t micro_tokens = 0;    // of the largest micro-batch; without training, of a batch that is scored; 0: none
  int64_t micro_segments = 1;  // sequences in it at most
  int64_t longest = 0;         // tokens of the longest sample: no micro-batch can be smaller
  bool packs = false;          // micro-batches are filled up to micro_tokens, so that they may be made smaller

  int64_t max_running = 0;         // sequences a rank decodes at a time
  std::optional<double> fraction;  // of device (CPU: available host) memory that resident data and the rollout take

  // What there is. Of a GPU: its whole memory, and what of it was taken before this program's first tensor.
  uint64_t device_total = 0, device_taken = 0;
  uint64_t host_available = 0;
  bool device_measured = false;  // device_taken was found, not assumed

  bool may_offload = false;  // whether --optimizer-cpu-offload can be advised, and more GPUs
  bool may_spread = false;
};

// Found by dry runs of one rank.
struct WorkingBytes {
  std::vector<std::pair<std::string, uint64_t>> parts;
  uint64_t bytes = 0;
};
struct RolloutBytes {
  int64_t page = 0, pages = 0, slots = 0;  // rows of a page; pages and slots
  uint64_t page_bytes = 0, slot_bytes = 0, working = 0;
  uint64_t packs = 0;  // weights laid out for products
  uint64_t block = 0;  // of all, boundaries included
  uint64_t least = 0;  // pages and slots for one longest request
};
struct DryRuns {
  std::function<WorkingBytes(const PlanInputs&)> training;
  // With at most pool bytes of pages and slots.
  std::function<RolloutBytes(const PlanInputs&, uint64_t pool)> rollout;
};

struct PlanRow {
  std::string name;
  std::array<uint64_t, 2> device{}, host{};  // per GPU and per host, by phase
};

struct MemoryPlan {
  std::vector<PlanRow> rows;
  std::vector<std::string> problems;  // why it does not fit; empty: it fits
  uint64_t pool = 0;                  // bytes for pages and slots at most
  int64_t sequences = 0;              // longest requests that they hold at a time
  uint64_t block = 0;                 // the block that rollout and training use in turn, or at once
  uint64_t training_at = 0;           // where training's part of it begins
  uint64_t device_limit = 0, host_limit = 0;
  uint64_t device(Phase) const;
  uint64_t host(Phase) const;
  uint64_t device_peak() const;
  uint64_t host_peak() const;
  bool fits() const { return problems.empty(); }
};

// The plan of one rank and its host. Whatever it says holds for the ranks that hold most.
MemoryPlan plan_memory(const PlanInputs&, const DryRuns&);

// What to change so that it fits, nearest first: single settings, then several together, then more GPUs. Each entry
// names flags and values and what they would take. Empty when nothing known helps.
std::vector<std::string> nearest_that_fits(const PlanInputs&, const DryRuns&);

// Scratch of one queue of kernels at these sizes (an upper estimate of what the ops ask for).
uint64_t kernel_scratch(const ModelConfig&, DType, int64_t tokens, int64_t segments, bool backward);

}  // namespace furlong
