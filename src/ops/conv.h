// Causal depthwise convolution along a segment, then SiLU (model-spec 3.4, Conv).
#pragma once
#include "ops/segments.h"
#include "tensor/stream.h"

namespace furlong {

// y_t = silu(Σ_i w[c,i]·x_{t-taps+1+i}); x, y (T,C), w (C,1,taps). Inputs before a sequence's start are zero; with
// slots the inputs before the segment come from their window, and the segment's own are added to it.
void conv_silu(Stream&, Tensor y, Tensor x, Tensor w, const Segments&, const DeltaSlots&);
// dx overwritten, dw (C,1,taps) f32 +=. Without memory only.
void conv_silu_backward(Stream&, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, const Segments&);

}  // namespace furlong
