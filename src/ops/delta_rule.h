// The gated delta rule (model-spec 3.4): per value head, with S (Dk,Dv) the state,
//   S <- e^g S;  u = beta (v - Sᵀk);  S <- S + k uᵀ;  o = Sᵀ q / sqrt(Dk),     q, k l2-normalised per head.
// Computed in chunks of 64 rows anchored at position 0 of a sequence; inside a chunk row i is solved from the entering
// state and the rows before it, so that a decode step is the same row function and gives the same bits.
#pragma once
#include <vector>

#include "ops/segments.h"
#include "tensor/stream.h"

namespace furlong {

struct DeltaShape {
  int64_t key_heads = 0;
  int64_t value_heads = 0;
  int64_t key_dim = 0;    // per head
  int64_t value_dim = 0;  // per head
};

// What the forward keeps for the backward; f32 but for gamma. NC chunks in all, in segment order.
struct DeltaSaved {
  Tensor q, k;      // (T, Kh, Dk) normalised
  Tensor q_r, k_r;  // (T, Kh) inverse norms
  Tensor u;         // (T, Vh, Dv)
  Tensor gamma;     // (T, Vh) f64: cumulative log decay within the chunk
  Tensor states;    // (NC, Vh, Dk, Dv) state entering each chunk
};

// The dtype of a slot's rings of keys and corrections for a model of this dtype on this device (segments.h).
DType delta_rings(Device, DType model, const DeltaShape&);

// The chunks of these segments when each starts at its own position.
int64_t delta_chunks(const Segments&);

// g (T,Vh) f32 = -exp(A_log)·softplus(a + dt_bias),   beta (T,Vh) f32 = σ(b);   a, b (T,Vh)
void delta_gates(Stream&, Tensor g, Tensor beta, Tensor a, Tensor b, Tensor A_log, Tensor dt_bias);
// da, db overwritten; dA_log, ddt_bias (Vh) f32 +=
void delta_gates_backward(Stream&, Tensor da, Tensor db, Tensor dA_log, Tensor ddt_bias, Tensor dg, Tensor dbeta,
                          Tensor g, Tensor beta, Tensor a, Tensor A_log, Tensor dt_bias);

// o (T, Vh·Dv) from x (T, 2·Kh·Dk + Vh·Dv) = [q | k | v] after the convolution, g and beta (T,Vh) f32.
// state0/state1 (S,Vh,Dk,Dv) f32 may be undefined: the state before and after each segment (without slots).
// saved: fill its tensors for the backward where they are defined (with slots their contents are left open).
void delta_rule(Stream&, Tensor o, Tensor x, Tensor g, Tensor beta, Tensor state0, Tensor state1, const Segments&,
                const DeltaSlots&, const DeltaSaved& saved, const DeltaShape&);
// What lies between the products of a delta-net layer: the operands, and what is formed on the way.
struct DeltaCore {
  Tensor qkv, z, a, b;                // (T, 2·Kh·Dk + Vh·Dv), (T, Vh·Dv), (T, Vh), (T, Vh)
  Tensor conv, A_log, dt_bias, norm;  // weights: (C,1,taps), (Vh), (Vh), (Dv)
  double eps = 0;
  Tensor mixed, g, beta, o, o_r;  // as conv_silu, delta_gates, delta_rule and gated_rms_norm (o_r: T·Vh) write them
};
// y (T, Vh·Dv) = conv_silu, delta_gates, delta_rule without states and gated_rms_norm, in the same bits; a GPU does
// that for few rows in one launch. With slots the contents of `core` and `saved` are left open.
void delta_core(Stream&, Tensor y, const DeltaCore& core, const Segments&, const DeltaSlots&, const DeltaSaved& saved,
                const DeltaShape&);
// dx (T, 2·Kh·Dk + Vh·Dv), dg, dbeta overwritten. dstate1 may be undefined (zero); dstate0 may be undefined.
void delta_rule_backward(Stream&, Tensor dx, Tensor dg, Tensor dbeta, Tensor dstate0, Tensor do_, Tensor dstate1,
                         Tensor x, Tensor g, Tensor beta, const Segments&, const DeltaSaved&, const DeltaShape&);

// Moves a slot's state past the chunk that its first `after` positions complete, when `before` positions were
// committed, in every layer: DeltaSlots of the same sizes. At most one chunk may be completed by one commit.
// slots: the slot of each sequence; before, after: its counts; all (S) i32
void delta_commit(Stream&, const std::vector<DeltaSlots>& layers, Tensor slots, Tensor before, Tensor after,
                  const DeltaShape&);

}  // namespace furlong
