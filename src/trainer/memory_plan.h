// The memory of a command before it loads any weights: what it will take, what there is, and a refusal that says what
// to change.
#pragma once
#include <string>

#include "plan/memory.h"
#include "trainer/session.h"

namespace furlong {

// What a command will do, in tokens and sequences.
struct Workload {
  bool trains = false, rolls = false;
  bool supervised = false;
  int64_t longest = 0;    // tokens of prompt and response at most
  int64_t shortest = 1;   // tokens of a sample at least
  int64_t requests = 0;   // sequences of a rollout or evaluation at most
  int64_t pack_size = 0;  // tokens of a batch of `score`
  int64_t ranks = 0;      // of the run; 0: as many as --gpus says or the parallel sizes ask for
};

// The memory of this machine as a plan counts it; --gpu-memory-gib and --host-memory-gib stand for what is there.
struct MachineMemory {
  uint64_t device_total = 0, device_taken = 0, host_available = 0;
  bool device_found = false;  // device_taken was measured, not assumed
};
MachineMemory machine_memory(Device device, const Settings& settings);

PlanInputs plan_inputs(const Settings&, const ModelConfig&, const Workload&, const MachineMemory&);
// Dry runs of the trainer's and the engine's own code over weights without memory.
DryRuns dry_runs(const Settings&, const Workload&, ThreadPool&);

// Rows by place and phase, totals, what there is.
std::string plan_table(const MemoryPlan&, const PlanInputs&);

struct CheckedPlan {
  MemoryPlan plan;
  std::string table;
  PlanInputs inputs;
};
// Throws Error(Exit::resources) with the table and the nearest settings that fit, when the plan does not. All ranks of
// the session's mesh call, and plan with the memory of the one that has least.
CheckedPlan require_memory(const Session&, const Settings&, const Workload&);

// What the device really holds beside its plan, in all: perf/device_memory_gib, the most so far, and
// perf/device_memory_plan_gib. Nothing without a device.
class DeviceMemoryWatch {
 public:
  DeviceMemoryWatch(Device device, const MemoryPlan& plan) : device_(device), planned_(plan.device_peak()) {}
  // Called at the end of a step: memory is only ever added, so that the present is the most.
  std::vector<std::pair<std::string, double>> metrics();
  // "device memory: 1.2 GiB in use at most, 1.1 GiB planned", or empty.
  std::string summary() const;

 private:
  Device device_;
  uint64_t planned_, most_ = 0;
};

}  // namespace furlong
