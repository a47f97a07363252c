#include "checkpoint/hf.h"
#include "checkpoint/stored.h"

namespace furlong {

Weights load_hf(const std::string& directory, const ModelConfig& config, DType dtype, const LoadHfOptions& options) {
  return load_stored([&] { return stored_hf(directory, config); }, config, dtype, options);
}

}  // namespace furlong
