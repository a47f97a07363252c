// The routed experts of a layer when the ranks of a mesh share them: rows travel to the ranks that hold their experts,
// and what those compute travels back (Mesh::experts, Dispatcher).
#pragma once
#include "model/batch.h"
#include "model/weights.h"
#include "ops/moe.h"

namespace furlong {

// What some experts work on.
struct ExpertRows {
  Routing routing;
  Tensor rows, gate_up, act;  // (R,H), (R,2F), (R,F) by expert
};

// out (R,H) = expert(rows); fills gate_up and act.
void rows_forward(Exec&, const MoeWeights&, Tensor out, const ExpertRows&);
// dy (N,H): the gradient of the weighted sums of N tokens. dx (N,H) +=, dweights (N,k) overwritten, adds to the
// experts' gradients. Takes memory that the caller's scope closes.
void rows_backward(Exec&, const MoeWeights&, Tensor dx, Tensor dweights, Tensor dy, const ExpertRows&,
                   MoeWeights& grads);

// What of a layer's rows came to this rank: the choices of single rows (alltoall) or of tokens (flex) for its experts.
struct Arrivals : ExpertRows {
  std::vector<int64_t> counts;  // alltoall: rows by rank of the group and expert of the model; flex: rows by rank
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
