// RMS normalisation (model-spec 3.1, 3.2). Statistics and products in fp32, one rounding on store.
#pragma once
#include "tensor/stream.h"

namespace furlong {

// y = x / rms(x) * (1 + w)      x, y (T,C)   w (C)   r (T) f32: 1/rms, kept for backward
void rms_norm(Stream&, Tensor y, Tensor r, Tensor x, Tensor w, double eps);
// x += d, then rms_norm(y, r, x, w), in the same bits
void add_rms_norm(Stream&, Tensor y, Tensor r, Tensor x, Tensor d, Tensor w, double eps);
// dx += , dw (C) f32 +=
void rms_norm_backward(Stream&, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r);

// y = o / rms(o) * w * silu(z), per row of C      o, z, y (R,C)   w (C) plain   r (R) f32
void gated_rms_norm(Stream&, Tensor y, Tensor r, Tensor o, Tensor z, Tensor w, double eps);
// do_, dz overwritten, dw (C) f32 +=
void gated_rms_norm_backward(Stream&, Tensor do_, Tensor dz, Tensor dw, Tensor dy, Tensor o, Tensor z, Tensor w,
                             Tensor r);

}  // namespace furlong
