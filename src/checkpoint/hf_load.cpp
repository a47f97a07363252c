#include "checkpoint/hf.h"
#include "checkpoint/stored.h"

namespace furlong {

Weights load_hf(const std::string& directory, const ModelConfig& config, DType dtype, const LoadHfOptions& options) {
  const Reading reading = options.mesh.world().size() > 1 ? Reading::parts : Reading::most;
  return load_stored([&] { return stored_hf(directory, config, reading); }, config, dtype, options);
}

}  // namespace furlong
