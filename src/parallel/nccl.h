// GPUs of a run under NCCL.
#pragma once
#include <memory>

#include "parallel/group.h"

namespace furlong {

struct NcclOptions {
  double timeout_seconds = 600;  // of an exchange on the device
  bool even_alone = false;       // what a rank sends to itself goes through NCCL too: all of its path on one GPU
};

// Whether this program was built with NCCL.
bool nccl_built();

// The same ranks, in groups whose exchanges on a CUDA stream are NCCL's sends and receives in that stream's order; they
// may be recorded in a graph. Exchanges on the host and gather_bytes stay with `host`, whose watchdog also asks NCCL
// for errors and ends what waits on the device. The rank's device must be open before a group is made. Throws
// Error(Exit::lost) where NCCL fails. Without NCCL it is `host` itself.
std::unique_ptr<World> nccl_world(std::unique_ptr<World> host, const NcclOptions& options = {});

}  // namespace furlong
