#pragma once
#include "tensor/stream.h"

namespace furlong {

// y = silu(gate) ⊙ up;   gate_up (T,2F): gate columns, then up columns;   y (T,F)
void swiglu(Stream&, Tensor y, Tensor gate_up);
// dgate_up (T,2F) overwritten
void swiglu_backward(Stream&, Tensor dgate_up, Tensor dy, Tensor gate_up);

}  // namespace furlong
