// common.pt of a torch_dist folder: what Megatron and miles ask a checkpoint of weights before they read its tensors.
#pragma once
#include <string>

#include "model/config.h"

namespace furlong {

// The bytes of the file. dtype: PyTorch's name of the weights' ("bfloat16"). The arguments are the model's sizes and
// what a loader compares or asks for: megatron/training/checkpointing.py and miles' tools/convert_torch_dist_to_hf.py.
std::string dist_common(const ModelConfig& config, int64_t padded_vocab_size, const std::string& dtype);

}  // namespace furlong
