// The embedding of a batch's tokens, whose vocabulary tensor parallel ranks split.
#pragma once
#include "model/batch.h"
#include "model/weights.h"

namespace furlong {

// x (rows here, H) = the embeddings of those of tokens (T) that belong to them.
void embed_here(Exec&, const ModelConfig&, Tensor table, Tensor x, Tensor tokens);
// dtable (this rank's part of the vocabulary, H) += from dx (rows here, H).
void embed_here_backward(Exec&, const ModelConfig&, Tensor dtable, Tensor dx, Tensor tokens);

}  // namespace furlong
