// The dense feed-forward network (model-spec 1.3): down(silu(gate x) ⊙ up x). Tensor parallel ranks split its width, so
// that rows are gathered over them and their parts of the output summed.
#pragma once
#include "model/batch.h"
#include "model/weights.h"
#include "ops/moe.h"

namespace furlong {

struct MlpSaved {
  Tensor x;             // (rows of the context parallel rank, H) the normalised input
  Tensor gate_up, act;  // (those rows, 2F), (those rows, F) of this rank's part of the width
};

// y (T,H) = residual + the network's output for x, of the rows here. after: a norm of y that is wanted too, or null.
void mlp_forward(Exec&, const ModelConfig&, const MlpWeights&, Tensor y, Tensor x, Tensor residual, const Batch&,
                 MlpSaved&, const NormAfter* after = nullptr);
// Returns dx (T,H); adds to the gradients.
Tensor mlp_backward(Exec&, const ModelConfig&, const MlpWeights&, const MlpSaved&, Tensor dy, const Batch&,
                    MlpWeights& grads);

}  // namespace furlong
