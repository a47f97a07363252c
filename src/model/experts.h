// The routed experts of a layer when the ranks of a mesh share them: rows travel to the ranks that hold their experts,
// and what those compute travels back (Mesh::experts, Dispatcher).
#pragma once
#include "model/batch.h"
#include "model/weights.h"
#include "ops/moe.h"

namespace furlong {

// What of a layer's rows came to this rank.
struct Arrivals {
  std::vector<int64_t> counts;  // alltoall: rows by rank of the group and expert of the model; flex: rows by rank
  // The choices of what arrived that are for this rank's experts: of single rows (alltoall), of tokens (flex).
  Routing routing;
  Tensor rows, gate_up, act;  // (R,H), (R,2F), (R,F) by expert
};

// y (T,H) = Σ_choice weight · expert(x) + σ(shared_logit) · shared + residual, for the rows here. routing: at home, ids
// and weights set. replayed: as before, with the routing and the counts that an earlier call of this layer left.
void experts_forward(Exec&, const ModelConfig&, const MoeWeights&, Tensor y, Tensor x, Tensor shared,
                     Tensor shared_logit, Tensor residual, const Batch&, const Routing& routing, bool replayed,
                     Arrivals&);
// dx (T,H) +=, dweights (T,k) overwritten, adds to the experts' gradients.
void experts_backward(Exec&, const ModelConfig&, const MoeWeights&, Tensor dx, Tensor dweights, Tensor dy,
                      const Routing& routing, const Arrivals&, MoeWeights& grads);

}  // namespace furlong
