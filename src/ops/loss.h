// Log-probabilities over a chunk of logits rows (model-spec 3.6).
#pragma once
#include "tensor/stream.h"

namespace furlong {

// For each row of logits (R,V) f32, at temperature temp: log_prob[r] = l_y/temp - logsumexp(l/temp) at targets[r], and
// the entropy of the row. lse (R) f32 is kept for the gradient. entropy may be undefined. A target of -1 is not among
// these logits: l_y counts as 0 there.
void log_prob(Stream&, Tensor log_prob, Tensor lse, Tensor entropy, Tensor logits, Tensor targets, double temperature);
// logits <- d loss / d logits in place, from d_log_prob (R) f32 and d_entropy (R) f32 (may be undefined):
// (d_log_prob (onehot - p) - d_entropy p (log p + H)) / temp; onehot is 0 throughout where the target is -1. lse and
// entropy may be those of a longer row that these logits are a part of.
void log_prob_backward(Stream&, Tensor logits, Tensor d_log_prob, Tensor d_entropy, Tensor lse, Tensor entropy,
                       Tensor targets, double temperature);

}  // namespace furlong
