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

inline constexpr const char* preset_names[] = {"tiny", "tiny-dense", "tiny-tied", "small",   "0.8b", "4b",
                                               "9b",   "27b",        "35b-a3b",   "80b-a3b", "mini", "slice"};

// tiny: 4 layers, hidden 128, 8 experts, a byte-level tokenizer. tiny-dense: a dense network of width 256 in place of
// the experts and three value heads a key head; tiny-tied: dense, the head being the embedding. small: 8 layers, hidden
// 512, 32 experts, the same tokenizer. mini: 4 layers, hidden 256, 16 experts, vocabulary 4,096; slice: 4 layers of the
// released sizes with 16 experts, vocabulary 32,768 (what `furlong bench` measures). 0.8b ... 80b-a3b (Qwen3-Next): the
// shapes of the released models, the same tokenizer. num_layers replaces the number of layers; every fourth stays full
// attention, and the last where there are fewer. Throws Error(Exit::usage) for another name.
Preset make_preset(const std::string& name, std::optional<int64_t> num_layers);

}  // namespace furlong
