// The trunk: embedding, layers, final norm. Training, scoring, prefill, decode and draft verification are this one
// forward over a packed batch, with or without a memory. Over a mesh, every tensor of (T,H) below is that of the rows
// here (rows_here), and a pipeline stage computes its own layers.
#pragma once
#include "model/block.h"

namespace furlong {

enum class Recompute : uint8_t { none, full };  // full: keep each layer's input only and replay its forward

struct ModelSaved {
  Recompute recompute = Recompute::none;
  std::vector<LayerSaved> layers;  // of the whole model; those of other stages stay empty
  Tensor last;                     // (T,H) residual stream after the last layer; on the last stage
  Tensor last_r;                   // (T)
};

// One stage: x (T,H) is the residual stream that enters it, undefined on the first stage, which embeds the tokens.
// Returns the stream that leaves it or, on the last stage, hidden: see model_forward. The batch's memory is that of the
// stage's layers. saved null: inference, nothing is kept.
Tensor stage_forward(Exec&, const ModelConfig&, const Weights&, const Batch&, Tensor x, ModelSaved* saved);
// Told of a part of the model (TensorSpec::part) once what a backward adds to its gradients has been launched.
using PartDone = std::function<void(int part)>;
// d (T,H): the gradient of what stage_forward returned, overwritten. Returns that of its x, undefined on the first
// stage; it lies in the arena or is d itself. Adds to the gradients of the stage's tensors except lm_head's and the MTP
// head's. Parts are done in the order final norm, layers from the last to the first, embedding; between two of them no
// other is written.
Tensor stage_backward(Exec&, const ModelConfig&, const Weights&, ModelSaved&, Tensor d, const Batch&, Weights& grads,
                      const PartDone& done = {});

// The stages one after another, what one hands to the next exchanged between them. Returns hidden (T,H), the input of
// the language-model head and of the MTP head, on the last stage, and an undefined tensor on the others.
Tensor model_forward(Exec&, const ModelConfig&, const Weights&, const Batch&, ModelSaved* saved);
// dhidden (T,H) is overwritten; undefined on stages before the last. Adds to every trunk gradient except lm_head's,
// which the loss head computes.
void model_backward(Exec&, const ModelConfig&, const Weights&, ModelSaved&, Tensor dhidden, const Batch&,
                    Weights& grads, const PartDone& done = {});

}  // namespace furlong
