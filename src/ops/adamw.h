#pragma once
#include "tensor/stream.h"

namespace furlong {

struct AdamParams {
  double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
  double grad_scale = 1;  // multiplies the gradient (clipping)
  int64_t step = 1;       // 1 for the first
};

// Decoupled AdamW (Loshchilov and Hutter, 2019) on a master copy:
//   m = β1 m + (1-β1) g;  v = β2 v + (1-β2) g²;  w = w (1 - lr·decay) - lr · (m/(1-β1^t)) / (sqrt(v/(1-β2^t)) + eps)
// All of it in fp32, whatever the tensors are kept in: master, m, v and grad are each f32 or bf16, read widened and
// written rounded to nearest even; weight = the new master rounded to its dtype. weight and master may be the same
// tensor. (f64 weights take everything in f64.) No two operations are fused, so that every device and instruction set
// gives the same bits.
void adamw(Stream&, Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamParams&);

}  // namespace furlong
