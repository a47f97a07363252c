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
// Told of a part of the model (TensorSpec::part) once what a backward adds to its gradients has been launched.
using PartDone = std::function<void(int part)>;
// dhidden (T,H) is overwritten. Adds to every trunk gradient except lm_head's, which the loss head computes. Parts are
// done in the order final norm, layers from the last to the first, embedding; between two of them no other is written.
void model_backward(Exec&, const ModelConfig&, const Weights&, ModelSaved&, Tensor dhidden, const Batch&,
                    Weights& grads, const PartDone& done = {});

}  // namespace furlong
