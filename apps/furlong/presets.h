// The models that `furlong init` makes.
#pragma once
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"

namespace furlong {

struct Preset {
  ModelConfig config;
  // The small files of the checkpoint beside config.json: name, text.
  std::vector<std::pair<std::string, std::string>> files;
};

// tiny: 4 layers, hidden 128, 8 experts, a byte-level tokenizer. small: 8 layers, hidden 512, 32 experts, the same
// tokenizer. 35b-a3b: the shapes of Qwen3.5-35B-A3B, the same tokenizer. num_layers replaces the number of layers;
// every fourth stays full attention, and the last where there are fewer. Throws Error(Exit::usage) for another name.
Preset make_preset(const std::string& name, std::optional<int64_t> num_layers);

}  // namespace furlong
