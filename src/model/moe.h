// Mixture of experts with a gated shared expert (model-spec 3.5). The routing weight multiplies after the down
// projection, in fp32, in the trainer and in the rollout alike.
#pragma once
#include "model/batch.h"
#include "model/experts.h"
#include "model/weights.h"
#include "ops/moe.h"

namespace furlong {

struct MoeSaved {
  Routing routing;
  Tensor x;                                   // (T,H) the normalised input
  Tensor rows;                                // (T·k, H) x gathered by expert
  Tensor gate_up, act;                        // (T·k, 2F), (T·k, F)
  Tensor shared_gate_up, shared_act, shared;  // (T,2Fs), (T,Fs), (T,H)
  Tensor shared_logit;                        // (T,1)
  Arrivals arrivals;                          // in place of rows, gate_up and act where ranks share the experts
  Tensor own_ids;  // (T,k) i32 for what the router would choose where the routing is given; undefined: unwanted
};

// Memory of a layer's routing; kept outside a recompute scope, so that a replay cannot route anew. choices: with that
// of ids and weights.
Routing make_routing(Exec&, const ModelConfig&, int64_t rows, DType activations, bool choices = true);

// Where a layer's routing comes from: its router; ids and weights that are set already, the rest follows from them; or
// all of it from an earlier call with the same MoeSaved.
enum class Routed : uint8_t { here, given, kept };

// y (T,H) = residual + the mixture's output for x, of the rows here. after: a norm of y that is wanted too, or null.
void moe_forward(Exec&, const ModelConfig&, const MoeWeights&, Tensor y, Tensor x, Tensor residual, const Batch&,
                 Routed, MoeSaved&, const NormAfter* after = nullptr);
// Returns dx (T,H); adds to the gradients. Of given routes the router's gradient is that of the softmax over their ids
// where it has the given weights.
Tensor moe_backward(Exec&, const ModelConfig&, const MoeWeights&, const MoeSaved&, Tensor dy, MoeWeights& grads);

}  // namespace furlong
