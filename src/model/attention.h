// Gated full attention (model-spec 3.3): projections, per-head norm and rotary embedding, attention, output gate.
#pragma once
#include "model/batch.h"
#include "model/weights.h"

namespace furlong {

struct AttentionSaved {
  Tensor x;         // (rows of the context parallel rank, H) the normalised input
  Tensor qg;        // (T, Hq·2·D) queries and gates, interleaved per head
  Tensor k_raw, v;  // (T, Hkv·D)
  Tensor q, q_r, k, k_r;
  Tensor o, lse;
  Tensor gated;  // rows and heads as those of x and of the projections; all others have the mixer's heads, for all rows
};

// x and the result: the rows here (rows_here), H wide. `pages` undefined: no memory.
Tensor attention_forward(Exec&, const ModelConfig&, const AttentionWeights&, Tensor x, const Batch&,
                         const KvPages& pages, AttentionSaved&);
// dy, dx: the rows here, H wide. Returns dx; adds to the gradients.
Tensor attention_backward(Exec&, const ModelConfig&, const AttentionWeights&, const AttentionSaved&, Tensor dy,
                          const Batch&, AttentionWeights& grads);

}  // namespace furlong
