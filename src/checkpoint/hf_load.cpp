#include "base/check.h"
#include "checkpoint/hf.h"
#include "checkpoint/stored.h"
#include "parallel/agree.h"

namespace furlong {

Weights load_hf(const std::string& directory, const ModelConfig& config, DType dtype, const LoadHfOptions& options) {
  return load_stored(
      [&] {
        return stored_hf(directory, with_language_head(config),
                         options.mesh.is_alone() ? Reading::most : Reading::parts);
      },
      config, dtype, options);
}

}  // namespace furlong
