// Checkpoints of the format torch_dist (Megatron-LM, as miles writes it) to Weights and to Hugging Face folders, and
// Hugging Face folders to torch_dist. Only weights: optimizer and random-number state is left alone. Converting never
// holds more than a few pieces of a tensor.
#pragma once
#include <cstdint>
#include <string>

#include "checkpoint/hf.h"
#include "checkpoint/stored.h"

namespace furlong {

// The model's tensors in a torch_dist folder, or in one of its iterations; see dist_names.h for what is found. Throws
// Error(Exit::input) with the list of all that is missing, unexpected or of another shape; for MTP tensors that the
// config wants and the folder lacks; for the parts of Megatron's own gated DeltaNet; and for whatever is wrong with the
// files themselves.
StoredTensors stored_torch_dist(const std::string& path, const ModelConfig& config);

// load_hf, from a torch_dist folder.
Weights load_torch_dist(const std::string& path, const ModelConfig& config, DType dtype,
                        const LoadHfOptions& options = {});

// One of several workers that write a checkpoint together.
struct ConvertPart {
  int rank = 0, count = 1;
};

struct ToTorchDistOptions {
  std::string output_dir;
  // Of the written tensors: as stored (the widest where several are joined), or this. A_log is F32 in every mode.
  HfDtype dtype = HfDtype::source;
  int64_t vocab_multiple = 128;         // rows of embedding and head are padded with zeros to a multiple of it
  uint64_t archive_bytes = 64 << 20;    // a tensor is cut into rows of at most this, experts one by one
  uint64_t file_bytes = 5'000'000'000;  // a worker begins a new file when one would grow beyond it
};

// Writes a worker's part of DIR/release: its archives into files __{rank}_{k}.distcp of a folder beside it, which all
// workers share. The worker that finds every part there joins them (index, common.pt, tag), gives the folder its name,
// replacing an older release, and writes the tracker last; for it alone the result is true. Workers may run one after
// the other, as threads, or as processes on a shared file system. A part that an earlier, interrupted conversion of the
// same files left complete is kept. Throws Error(Exit::resources) when it cannot be written, Error(Exit::input) for NaN
// and infinity and when output_dir holds something else.
bool write_torch_dist_part(const StoredTensors& source, const ModelConfig& config, const ToTorchDistOptions& options,
                           ConvertPart part);

// The whole of it by `workers` threads; nothing half-written stays when it fails.
void write_torch_dist(const StoredTensors& source, const ModelConfig& config, const ToTorchDistOptions& options,
                      int workers);

}  // namespace furlong
