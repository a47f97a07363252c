// One layer: norm, mixer, residual; norm, experts or a dense network, residual (model-spec 3.0).
#pragma once
#include "model/attention.h"
#include "model/delta_net.h"
#include "model/mlp.h"
#include "model/moe.h"

namespace furlong {

struct LayerSaved {
  Tensor input;  // (T,H) residual stream entering the layer
  Tensor normed, r, mid, mid_normed, mid_r;
  AttentionSaved attention;
  DeltaNetSaved delta;
  MoeSaved moe;
  MlpSaved mlp;
};

// The memory of one layer; both undefined in training.
struct LayerMemory {
  KvPages pages;
  DeltaSlots slots;
};

// out (T,H) = layer(x). keep: fill what the backward needs (delta-net states). saved.moe.routing must be set where
// there are experts. normed: saved.normed and saved.r are x after the input norm already. after: a norm of `out` that
// is wanted too, as that of the next layer's input, or null.
void layer_forward(Exec&, const ModelConfig&, const LayerWeights&, Tensor out, Tensor x, const Batch&,
                   const LayerMemory&, bool keep, Routed, LayerSaved& saved, bool normed = false,
                   const NormAfter* after = nullptr);
// d (T,H): the gradient of the layer's output on entry, of its input on return.
void layer_backward(Exec&, const ModelConfig&, const LayerWeights&, const LayerSaved&, Tensor d, const Batch&,
                    LayerWeights& grads);

}  // namespace furlong
