// Full-state training checkpoints. A folder iter_NNNNNNN is complete by its name and valid by its manifest, which holds
// the length and XXH3-128 of every file and tensor; nothing else decides which checkpoint is used.
//
// On a mesh every rank calls with what it holds, and all end alike. Ranks on several hosts need a file system that all
// of them see. A checkpoint can be loaded on any layout, whatever the one that it was saved on.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/weights.h"

namespace furlong {

// One set of tensors of a checkpoint: "weights", "masters", "exp_avg", ... (letters, digits, _ and -). Flat ones
// (Placement::owned) too, of which over all ranks each number is owned once.
struct NamedWeights {
  std::string name;
  const Weights* weights;  // undefined tensors are left out
};

struct SaveCheckpointOptions {
  int keep = 2;  // newest checkpoints to keep, at least 2
};

// Writes DIR/iter_NNNNNNN: one safetensors file per set and rank, state.json and manifest.json, all synced before the
// folder gets its name; then DIR/latest_checkpointed_iteration.txt. A rank writes its share of what it holds (share_of
// in shards.h), flat where that is no whole tensor. `state` is a JSON text of the caller's (counters, data position);
// rank 0's is taken. Older checkpoints beyond `keep` are removed once this one has been read back and verified;
// temporary folders of saves that were cut off are removed. Throws Error(Exit::resources): no space (checked first), a
// failed write or sync; earlier checkpoints are then untouched and nothing half-written stays.
void save_checkpoint(const std::string& directory, int64_t iteration, const std::vector<NamedWeights>& sets,
                     const std::string& state, const SaveCheckpointOptions& options = {},
                     const Mesh& mesh = Mesh::alone());

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
// (naming file and mismatch of each), or when the checkpoint's tensors do not fit the sets. On a mesh the files are
// verified by one rank each, and each rank verifies the tensors that it reads of the others' files.
std::optional<LoadedCheckpoint> load_latest(const std::string& directory, const std::vector<NamedWeights>& sets,
                                            const LoadCheckpointOptions& options = {},
                                            const Mesh& mesh = Mesh::alone());

// What is wrong with the checkpoint in a folder iter_NNNNNNN; empty when it verifies.
std::string verify_checkpoint(const std::string& path, bool checksums = true);

}  // namespace furlong
