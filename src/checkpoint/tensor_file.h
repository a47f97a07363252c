// A list of named tensors as one safetensors file, for gradients and other dumps.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace furlong {

// Writes each (f32 or bf16, on the host, contiguous) as F32 under its name. Throws Error(Exit::resources).
void save_tensors(const std::string& path, const std::vector<std::pair<std::string, Tensor>>& tensors);

}  // namespace furlong
