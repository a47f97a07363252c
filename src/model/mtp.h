// The multi-token-prediction head (model-spec 4): row t joins the trunk's hidden state of position t with the embedding
// of token t+1 and, through one layer of its own, predicts token t+2. It lies on the last pipeline stage; tensors of
// (T,H) are those of the rows here (rows_here).
#pragma once
#include "model/block.h"

namespace furlong {

struct MtpSaved {
  Tensor hidden, embedded;      // inputs, constants
  Tensor joined;                // (T,2H): normalised embedding, then normalised hidden
  Tensor embedded_r, hidden_r;  // (T)
  Tensor x, last, last_r;       // (T,H) into and out of the layer
  LayerSaved layer;
};

// Returns m (T,H), the head's own normalised output: lm_head(m_t) are the logits of token t+2, and m_t is the hidden
// state that a further draft step starts from. hidden (T,H); next_tokens (T) i32: token t+1 of each row (any valid id
// where there is none). pages undefined: no memory. saved null: inference.
Tensor mtp_forward(Exec&, const ModelConfig&, const Weights&, Tensor hidden, Tensor next_tokens, const Batch&,
                   const KvPages& pages, MtpSaved* saved);
// dm (T,H) is overwritten. Adds to the gradients of the MTP tensors only: hidden, embedding and lm_head are constants.
void mtp_backward(Exec&, const ModelConfig&, const Weights&, const MtpSaved&, Tensor dm, const Batch&, Weights& grads);

}  // namespace furlong
