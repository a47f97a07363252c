#include "base/check.h"
#include "checkpoint/hf.h"
#include "checkpoint/stored.h"

namespace furlong {

Weights load_hf(const std::string& directory, const ModelConfig& config, DType dtype, const LoadHfOptions& options) {
  CHECK(dtype == DType::f32 || dtype == DType::bf16, "weights of {}", name_of(dtype));
  const StoredTensors stored = stored_hf(directory, config);
  Weights weights(config, dtype, options.device);
  fill_weights(stored, options, weights);
  return weights;
}

}  // namespace furlong
