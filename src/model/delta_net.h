// Gated DeltaNet (model-spec 3.4): projections, causal convolution, gated delta rule, gated norm, output projection.
#pragma once
#include "model/batch.h"
#include "model/heads.h"
#include "model/weights.h"

namespace furlong {

struct DeltaNetSaved {
  Tensor x;      // (rows of the context parallel rank, H) the normalised input
  Tensor qkv;    // (T,C) before the convolution
  Tensor mixed;  // (T,C) after it
  Tensor z;      // (T, Vh·Dv)
  Tensor a, b;   // (T,Vh)
  Tensor g, beta;
  DeltaSaved rule;
  Tensor o, o_r;
  Tensor
      normed;  // rows and heads as those of x and of the projections; all others have the mixer's heads, for all rows
};

// x and the result: the rows here (rows_here), H wide. `slots` undefined: no memory. keep_states: what the backward
// needs.
Tensor delta_net_forward(Exec&, const ModelConfig&, const DeltaNetWeights&, Tensor x, const Batch&,
                         const DeltaSlots& slots, bool keep_states, DeltaNetSaved&);
// dy, dx: the rows here, H wide. Returns dx; adds to the gradients.
Tensor delta_net_backward(Exec&, const ModelConfig&, const DeltaNetWeights&, const DeltaNetSaved&, Tensor dy,
                          const Batch&, DeltaNetWeights& grads);

}  // namespace furlong
