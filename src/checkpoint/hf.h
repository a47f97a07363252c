// Hugging Face checkpoints of Qwen3.5: a folder of safetensors to Weights, and back.
#pragma once
#include <cstdint>
#include <string>

#include "base/threads.h"
#include "model/weights.h"

namespace furlong {

struct LoadHfOptions {
  bool allow_nonfinite = false;   // take NaN and infinity as they are
  ThreadPool* threads = nullptr;  // null: the caller's thread alone
  Device device = Device::cpu;    // where the weights shall lie
  // The ranks that hold the model together: each reads its own part of every tensor and no more. All of them call; what
  // is wrong for one is thrown on all.
  const Mesh& mesh = Mesh::alone();
};

// Reads the language model and, if the config has one, the MTP head. `dtype` is f32 or bf16 (rounded
// to nearest even); A_log is f32 in either. F32, BF16 and F16 sources, experts fused or one by one (trunk and MTP each
// for itself), names beginning with model.language_model., model. or language_model.model. All missing, unexpected and
// mismatched tensors are reported in one Error(Exit::input), as are NaN and infinity. Tensors of other parts
// (model.visual.*) are left alone.
Weights load_hf(const std::string& directory, const ModelConfig& config, DType dtype,
                const LoadHfOptions& options = {});

enum class HfDtype : uint8_t { source, bf16, f32 };
enum class ExpertPacking : uint8_t { source, fused, per_expert };

struct SaveHfOptions {
  std::string source_dir;  // the Hugging Face checkpoint the weights came from; empty: there is none
  std::string output_dir;
  // The text of config.json when there is no source_dir; otherwise the source's config.json is taken.
  std::string config_text;
  // Each tensor's dtype: as in the source (without one, the weights' own), or this. A_log is F32 in every mode, but for
  // a source that has it in 16 bits, as Qwen3.6 does: then as there while that holds its numbers exactly.
  HfDtype dtype = HfDtype::source;
  // Without a source, `source` means fused.
  ExpertPacking experts = ExpertPacking::source;
  // Files hold at most this many bytes of tensors. With a source and neither dtype nor packing changed, tensors are
  // grouped into files as there.
  uint64_t shard_bytes = 5'000'000'000;
};

// Writes a checkpoint folder that other programs load. Names, packing, tensors that are not ours (and tensors undefined
// in `weights`) and the small files (configs, tokenizer, chat template) come from the source. The folder is built
// beside output_dir and renamed into place; if output_dir already holds a checkpoint, its files are replaced, the index
// last, so that a half-replaced folder never loads. Throws Error(Exit::resources) when it cannot be written, with
// nothing half-written left; Error(Exit::input) when output_dir holds something else or is the source itself.
// On a mesh all ranks call with what they hold (flat weights too); rank 0 alone reads the source and writes, and gets
// the numbers of the others in pieces of at most 2^24. The files are those that one rank would write.
void save_hf(const SaveHfOptions& options, const Weights& weights, const Mesh& mesh = Mesh::alone());

}  // namespace furlong
