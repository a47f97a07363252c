// Matrix products. Weights are stored (out, in); a row's result never depends on how many rows are computed with it.
#pragma once
#include <initializer_list>

#include "tensor/stream.h"

namespace furlong {

// Of so many rows a product leaves parts of a GPU idle, so that another one may run beside it. Of fewer, several share
// a launch already.
inline bool leaves_room(int64_t rows) { return rows > 64 && rows <= 1024; }

// y (T,N) = x (T,K) · w (N,K)ᵀ.   x, w of one dtype; y of that dtype or f32.
void linear(Stream&, Tensor y, Tensor x, Tensor w);
// One of several products of the same rows.
struct LinearOf {
  Tensor y, w;
};
// linear(y, x, w) of each, in the same bits; a GPU computes those of few rows in one launch.
void linear_many(Stream&, Tensor x, std::initializer_list<LinearOf>);
// linear into the halves of gate_up (T,2F), swiglu(y, gate_up) and the other products of x, in the same bits.
// y (T,F)   w_gate, w_up (F,K)
void linear_swiglu(Stream&, Tensor y, Tensor gate_up, Tensor x, Tensor w_gate, Tensor w_up,
                   std::initializer_list<LinearOf> others);
// dx (T,K) (+)= dy (T,N) · w (N,K)
void linear_dx(Stream&, Tensor dx, Tensor dy, Tensor w, bool accumulate);
// dw (N,K) f32 += dy (T,N)ᵀ · x (T,K), summed in token order
void linear_dw(Stream&, Tensor dw, Tensor dy, Tensor x);

// The same per expert: rows [offsets[e], offsets[e+1]) of x and y belong to expert e.
// x (R,K)   w (E,N,K)   y (R,N)   offsets (E+1) i32
void grouped_linear(Stream&, Tensor y, Tensor x, Tensor w, Tensor offsets);
// grouped_linear(gate_up, x, w), then swiglu(y, gate_up), in the same bits.   y (R,F)   gate_up (R,2F)   w (E,2F,K)
void grouped_swiglu(Stream&, Tensor y, Tensor gate_up, Tensor x, Tensor w, Tensor offsets);
// The two products of the experts: grouped_swiglu(act, gate_up, x, w_gate_up), grouped_linear(y, act, w_down).
struct GroupedMlp {
  Tensor y, act, gate_up, x, w_gate_up, w_down, offsets;
};
// linear(y, x, w) and these, in the same bits; on a GPU those of few rows run beside each other.
void grouped_mlp(Stream&, const GroupedMlp&, Tensor y, Tensor x, Tensor w);
void grouped_linear_dx(Stream&, Tensor dx, Tensor dy, Tensor w, Tensor offsets);
void grouped_linear_dw(Stream&, Tensor dw, Tensor dy, Tensor x, Tensor offsets);

}  // namespace furlong
