// Matrix products. Weights are stored (out, in); a row's result never depends on how many rows are computed with it.
#pragma once
#include "tensor/stream.h"

namespace furlong {

// y (T,N) = x (T,K) · w (N,K)ᵀ.   x, w of one dtype; y of that dtype or f32.
void linear(Stream&, Tensor y, Tensor x, Tensor w);
// dx (T,K) (+)= dy (T,N) · w (N,K)
void linear_dx(Stream&, Tensor dx, Tensor dy, Tensor w, bool accumulate);
// dw (N,K) f32 += dy (T,N)ᵀ · x (T,K), summed in token order
void linear_dw(Stream&, Tensor dw, Tensor dy, Tensor x);

// The same per expert: rows [offsets[e], offsets[e+1]) of x and y belong to expert e.
// x (R,K)   w (E,N,K)   y (R,N)   offsets (E+1) i32
void grouped_linear(Stream&, Tensor y, Tensor x, Tensor w, Tensor offsets);
void grouped_linear_dx(Stream&, Tensor dx, Tensor dy, Tensor w, Tensor offsets);
void grouped_linear_dw(Stream&, Tensor dw, Tensor dy, Tensor x, Tensor offsets);

}  // namespace furlong
