// Ranks as processes that mpirun or srun started, on one host or several. MPI carries tensors of the host (those of a
// GPU by way of page-locked memory) and bytes; the ranks watch each other beside it (watchdog.h).
#pragma once
#include <memory>

#include "parallel/group.h"
#include "parallel/watchdog.h"

namespace furlong {

struct MpiOptions {
  int ranks = 1;                         // that the launcher says it has started
  double timeout_seconds = 600;          // of a wait for another rank
  WatchLimits watch;                     //
  size_t piece_bytes = size_t{1} << 30;  // a message of MPI is at most so long (it counts in int)
};

// Whether this program was built with MPI.
bool mpi_built();

// The world of this process among `ranks`; that of a process alone, without touching MPI, when there is one. To be made
// before any thread: it blocks SIGTERM for the process (the watchdog takes it). Of the thread that will do the
// exchanges. Throws Error(Exit::usage) when MPI sees another number of ranks or this program has no MPI,
// Error(Exit::lost) when the ranks do not find each other. Destroyed, it waits for the other ranks to come to their
// end.
std::unique_ptr<World> mpi_world(const MpiOptions& options);

}  // namespace furlong
