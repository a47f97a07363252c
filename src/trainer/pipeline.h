// The turns of a pipeline stage at the micro-batches of a step: some forwards to fill the pipeline, then one forward
// and one backward in turn, then the backwards left (1F1B; Narayanan et al., "Efficient Large-Scale Language Model
// Training on GPU Clusters Using Megatron-LM", 2021, section 2.2).
#pragma once
#include <functional>

#include "parallel/mesh.h"

namespace furlong {

struct StageWork {
  // Micro-batch i. A forward follows input(i), a backward d_output(i).
  std::function<void(size_t)> forward, backward;
  // What crosses the edges of the stage, contiguous and of the same size at either end: the residual stream that enters
  // and its gradient; the stream that leaves and its gradient. Those to be received are asked for when they arrive;
  // input(i) begins micro-batch i, when all before it but in_flight() - 1 have ended.
  std::function<Tensor(size_t)> input, d_input, output, d_output;
};

// Micro-batches that a stage holds at a time, of so many in a step.
size_t in_flight(const MeshRank& place, size_t micro_batches);

// All ranks of the mesh call, with the same number of micro-batches. On the first stage input() and d_input() are not
// exchanged, on the last output() and d_output(); input() is called in either case.
void run_stage(Stream&, const Mesh&, size_t micro_batches, const StageWork&);

}  // namespace furlong
