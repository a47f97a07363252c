#include "checkpoint/tensor_file.h"

#include "checkpoint/values.h"
#include "tensor/copy.h"

namespace furlong {

void save_tensors(const std::string& path, const std::vector<std::pair<std::string, Tensor>>& tensors) {
  std::vector<TensorSource> sources;
  for (const auto& [name, tensor] : tensors) {
    CHECK(tensor.contiguous(), "{} {}", name, tensor.describe());
    std::vector<int64_t> shape;
    for (int i = 0; i < tensor.rank(); i++) shape.push_back(tensor.dim(i));
    sources.push_back({.name = name, .dtype = "F32", .shape = shape, .emit = [t = tensor](const ByteSink& sink) {
                         const OnHost host(t);
                         emit_values(t.dtype(), host.view().data(), t.numel(), "F32", sink);
                       }});
  }
  write_safetensors(path, std::move(sources));
}

}  // namespace furlong
