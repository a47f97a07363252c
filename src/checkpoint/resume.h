// Full-state training checkpoints. A folder iter_NNNNNNN is complete by its name and valid by its manifest, which holds
// the length and XXH3-128 of every file and tensor; nothing else decides which checkpoint is used.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/weights.h"

namespace furlong {

// One set of tensors of a checkpoint: "weights", "masters", "exp_avg", ... (letters, digits, _ and -).
struct NamedWeights {
  std::string name;
  const Weights* weights;  // undefined tensors are left out
};

struct SaveCheckpointOptions {
  int keep = 2;  // newest checkpoints to keep, at least 2
};

// Writes DIR/iter_NNNNNNN: one safetensors file per set, state.json and manifest.json, all synced before the folder
// gets its name; then DIR/latest_checkpointed_iteration.txt. `state` is a JSON text of the caller's (counters, data
// position). Older checkpoints beyond `keep` are removed once this one has been read back and verified; temporary
// folders of saves that were cut off are removed. Throws Error(Exit::resources): no space (checked first), a failed
// write or sync; earlier checkpoints are then untouched and nothing half-written stays.
void save_checkpoint(const std::string& directory, int64_t iteration, const std::vector<NamedWeights>& sets,
                     const std::string& state, const SaveCheckpointOptions& options = {});

struct LoadedCheckpoint {
  int64_t iteration = 0;
  std::string path;
  std::string state;  // the JSON text given to save_checkpoint
};

struct LoadCheckpointOptions {
  bool checksums = true;  // off: only lengths and headers are verified
};

// Fills the defined tensors of `sets` from the newest checkpoint of the folder that verifies, logging which newer ones
// were skipped and why. nullopt when there is none at all. Throws Error(Exit::input) when some exist but none verifies
// (naming file and mismatch of each), or when the checkpoint's tensors do not fit the sets.
std::optional<LoadedCheckpoint> load_latest(const std::string& directory, const std::vector<NamedWeights>& sets,
                                            const LoadCheckpointOptions& options = {});

// What is wrong with the checkpoint in a folder iter_NNNNNNN; empty when it verifies.
std::string verify_checkpoint(const std::string& path, bool checksums = true);

}  // namespace furlong
