// Per-head RMS norm followed by partial rotary embedding (model-spec 3.3, steps 2 and 3), one rounding.
#pragma once
#include "tensor/stream.h"

namespace furlong {

struct RopeShape {
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t head_stride = 0;  // elements from one head of x to the next (2·head_dim where a gate is interleaved)
  int64_t rotary_dim = 0;   // the leading dims that rotate, in pairs (j, j + rotary_dim/2)
  double theta = 1e7;
  double eps = 1e-6;
};

// y (T, heads·head_dim) = rope(norm(x)); x (T, heads·head_stride), w (head_dim) zero-centred, r (T, heads) f32,
// positions (T) i32. Angles are formed in fp32.
void norm_rope(Stream&, Tensor y, Tensor r, Tensor x, Tensor w, Tensor positions, const RopeShape&);
// The operands of one norm_rope.
struct RopeOf {
  Tensor y, r, x, w;
  RopeShape shape;
};
// norm_rope of queries and of keys, in the same bits; a GPU does those of few rows in one launch.
void norm_rope_both(Stream&, const RopeOf& queries, const RopeOf& keys, Tensor positions);
// Writes the first head_dim entries of each head of dx; dw (head_dim) f32 +=
void norm_rope_backward(Stream&, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r, Tensor positions,
                        const RopeShape&);

}  // namespace furlong
