// Drawing tokens: Gumbel-max on the target's logits (architecture.md, rule 8).
#pragma once
#include <vector>

#include "base/rng.h"
#include "tensor/stream.h"

namespace furlong {

struct SampleParams {
  double temperature = 1;  // 0: the likeliest token, ties to the lower id
  int64_t top_k = 0;       // keep the k likeliest; 0 or less: all
  double top_p = 1;        // keep the smallest set of likeliest tokens whose probability reaches p
};

// One row to draw: its noise is a function of (key, token) alone.
struct SampleRow {
  RngKey key;
  SampleParams params;
};

// tokens[r] (i32) = argmax over the kept tokens of logit/T + Gumbel(key_r, token); log_probs[r] (f32) = the drawn
// token's log_softmax(logits/T) before top-k and top-p (T = 0: of the logits). logits (R,V) f32. log_probs may be
// undefined.
void sample(Stream&, Tensor tokens, Tensor log_probs, Tensor logits, const std::vector<SampleRow>& rows);

}  // namespace furlong
