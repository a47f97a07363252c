// In programs without CUDA.
#include "base/error.h"
#include "ops/table.h"

namespace furlong::cuda {

const OpTable& ops() { fail(Exit::resources, "a tensor on a CUDA device in a program built without CUDA"); }

}  // namespace furlong::cuda
