// The registry's tensors as a checkpoint on disk holds them: described at once, their numbers read by range, so that a
// model need never be held to be converted.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/hf.h"
#include "checkpoint/safetensors.h"
#include "model/weights.h"

namespace furlong {

struct StoredTensors {
  std::string directory;  // of the checkpoint
  std::vector<TensorSpec> specs;
  std::vector<std::string> dtypes;  // of each: F32, BF16 or F16, the widest where a tensor is stored in parts
  // Writes `count` numbers of a tensor from its element `first` on to `to` as the file dtype given (F32, BF16, F16).
  // Returns where a NaN or infinity was met: the first element of the part that it is in. May be called from several
  // threads at once. Throws Error(Exit::input) where the files are damaged.
  std::function<std::optional<int64_t>(size_t tensor, int64_t first, int64_t count, const std::string& dtype, void* to)>
      read;
  // These numbers of a tensor will be read soon; empty where that helps nothing.
  std::function<void(size_t tensor, int64_t first, int64_t count)> soon = {};
  std::string identity;  // changes with any of the files: their names, sizes and times
  // The name and file of the part that this element of a tensor is in, for messages.
  std::function<std::string(size_t tensor, int64_t element)> place;
};

// A Hugging Face folder; what load_hf says of its tensors holds here.
StoredTensors stored_hf(const std::string& directory, const ModelConfig& config, Reading reading = Reading::most);

// The config that a checkpoint of this model's trunk has.
inline ModelConfig with_language_head(ModelConfig config) {
  config.value_head = false;
  return config;
}

// The weights of a rank, filled from what `open` finds, which has a language model's head; that of a critic is left at
// zero. On a mesh all ranks call. Error(Exit::input) of one, or with
// all tensors in which some rank met NaN or infinity, is thrown on all.
Weights load_stored(const std::function<StoredTensors()>& open, const ModelConfig& config, DType dtype,
                    const LoadHfOptions& options);

// StoredTensors::read that throws Error(Exit::input) for NaN or infinity.
void read_finite(const StoredTensors& stored, size_t tensor, int64_t first, int64_t count, const std::string& dtype,
                 void* to);

// A file's part of StoredTensors::identity.
std::string file_identity(const std::string& path);

// Hands numbers of a tensor to the sink as a file dtype, in pieces of bounded size. Throws Error(Exit::input) for NaN
// or infinity.
void emit_stored(const StoredTensors& stored, size_t tensor, int64_t first, int64_t count, const std::string& dtype,
                 const ByteSink& sink);

// save_hf of tensors that are read as they are written; `config`'s MTP head, where `stored` has none, is the source's.
// With ranks each reads and writes some of the files, in a folder that all see; what is wrong for one is thrown on all.
void save_hf(const SaveHfOptions& options, const StoredTensors& stored, const ModelConfig& config);
void save_hf(const SaveHfOptions& options, const StoredTensors& stored, const ModelConfig& config, Group& ranks);

// The file dtype that holds the values of both exactly.
std::string wider_dtype(const std::string& a, const std::string& b);

// "text\n  title (n):\n    line ..." with the first lines of a list; nothing for an empty one.
void append_list(std::string& text, const char* title, const std::vector<std::string>& lines);

}  // namespace furlong
