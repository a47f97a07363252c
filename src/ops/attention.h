// Causal grouped-query attention over packed segments, with or without a paged memory (model-spec 3.3, steps 4 and 5).
#pragma once
#include "ops/segments.h"
#include "tensor/stream.h"

namespace furlong {

struct AttentionShape {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
};

// o (T, heads·D) = softmax(q kᵀ / sqrt(D)) v over the rows of the same segment up to one's own position.
// q (T, heads·D)   k, v (T, kv_heads·D)   lse (T, heads) f32: log of the softmax's denominator, for backward
// With pages: k and v are first written there, and earlier rows are read from there.
void attention(Stream&, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, const Segments&, const KvPages&,
               const AttentionShape&);
// dq, dk, dv overwritten. Without memory only.
void attention_backward(Stream&, Tensor dq, Tensor dk, Tensor dv, Tensor do_, Tensor q, Tensor k, Tensor v, Tensor o,
                        Tensor lse, const Segments&, const AttentionShape&);

// a = o ⊙ σ(gate): gate of head h is x[t, (2h+1)·D ..), the second half of each head's rows of the query projection.
// a, o (T, heads·D)   x (T, heads·2·D)
void attention_gate(Stream&, Tensor a, Tensor o, Tensor x, const AttentionShape&);
// do_ overwritten; writes the gate half of each head of dx
void attention_gate_backward(Stream&, Tensor do_, Tensor dx, Tensor da, Tensor o, Tensor x, const AttentionShape&);

}  // namespace furlong
