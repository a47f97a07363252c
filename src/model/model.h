// The trunk: embedding, layers, final norm. Training, scoring, prefill, decode and draft verification are this one
// forward over a packed batch, with or without a memory.
#pragma once
#include "model/block.h"

namespace furlong {

enum class Recompute : uint8_t { none, full };  // full: keep each layer's input only and replay its forward

struct ModelSaved {
  Recompute recompute = Recompute::none;
  std::vector<LayerSaved> layers;
  Tensor last;    // (T,H) residual stream after the last layer
  Tensor last_r;  // (T)
};

// Returns hidden (T,H), the input of the language-model head and of the MTP head. saved null: inference, nothing is
// kept.
Tensor model_forward(Exec&, const ModelConfig&, const Weights&, const Batch&, ModelSaved* saved);
// dhidden (T,H) is overwritten. Adds to every trunk gradient except lm_head's, which the loss head computes.
void model_backward(Exec&, const ModelConfig&, const Weights&, ModelSaved&, Tensor dhidden, const Batch&,
                    Weights& grads);

}  // namespace furlong
