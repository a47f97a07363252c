// A build without NCCL: GPUs exchange through the host's memory.
#ifndef FURLONG_NCCL
#include "parallel/nccl.h"

namespace furlong {

bool nccl_built() { return false; }
std::unique_ptr<World> nccl_world(std::unique_ptr<World> host, const NcclOptions&) { return host; }

}  // namespace furlong
#endif
