// Ranks as threads of one process: every layout on one machine, in one debugger, on the CPU or on one GPU.
#pragma once
#include <functional>

#include "parallel/group.h"

namespace furlong {

// Runs `body` as ranks 0 … size-1, each a thread with a world of its own, and waits for all. Tensors travel through
// host memory. When a rank throws, the others' exchanges throw too, and the first error is thrown here.
void run_ranks(int size, const std::function<void(World&)>& body);

}  // namespace furlong
