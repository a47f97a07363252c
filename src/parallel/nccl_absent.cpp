// In programs without NCCL: GPUs exchange through the host's memory.
#include "parallel/nccl.h"

namespace furlong {

bool nccl_built() { return false; }
std::unique_ptr<World> nccl_world(std::unique_ptr<World> host, const NcclOptions&) { return host; }

}  // namespace furlong
