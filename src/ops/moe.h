// Mixture of experts: routing and the movement of rows to experts and back (model-spec 3.5).
#pragma once
#include "tensor/stream.h"

namespace furlong {

// Where each (token, choice) went: rows are sorted by expert and, within an expert, by token.
struct Routing {
  Tensor ids;       // (T,k) i32: experts by falling logit, ties to the lower id
  Tensor weights;   // (T,k) f32: softmax over the k chosen logits
  Tensor offsets;   // (E+1) i32: rows of expert e are [offsets[e], offsets[e+1])
  Tensor row_of;    // (T,k) i32: the row of a choice; -1: its expert is not here
  Tensor token_of;  // (R) i32: the token of a row, R = T·k where every expert is here; -1: no row
};

// Fills ids and weights from logits (T,E) f32.
void route(Stream&, const Routing&, Tensor logits);
// Fills offsets, row_of and token_of from ids within [0, experts), for the experts from `first` on that offsets has
// room for: choices of others get row_of -1, rows after the last expert's token_of -1. experts -1: those of offsets are
// all.
void sort_by_expert(Stream&, const Routing&, int64_t first = 0, int64_t experts = -1);
// route, sort_by_expert and gather_rows(rows, x) in one.
void route_rows(Stream&, const Routing&, Tensor rows, Tensor x, Tensor logits);
// dlogits (T,E) f32 overwritten: p_e (dp_e - Σ p dp) on the chosen, 0 elsewhere. dweights (T,k) f32.
void route_backward(Stream&, Tensor dlogits, Tensor dweights, const Routing&);

// Below, a choice whose row_of is -1 and a row whose token_of is -1 are passed over: such rows are left as they are,
// and such choices add nothing. There may then be fewer rows R than T·k, as many as token_of has.

// rows (R, C) = x[token_of]
void gather_rows(Stream&, Tensor rows, Tensor x, const Routing&);
// dx (T,C) += Σ over a token's choices of drows[row_of], in order of choice
void gather_rows_backward(Stream&, Tensor dx, Tensor drows, const Routing&);
// y (T,C) = Σ_choice weight · rows[row_of] + σ(shared_logit) · shared;   shared (T,C), shared_logit (T,1)
// residual (T,C), which may be undefined, is added to y in y's dtype. shared and its logit may be undefined: no such
// part.
void combine(Stream&, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual, const Routing&);
// A norm of what combine gives: rms_norm(y, r, ., w, eps).
struct NormAfter {
  Tensor y, r, w;
  double eps = 0;
};
// combine with a residual, then this norm, in the same bits; a GPU does both for few rows in one launch.
void combine_norm(Stream&, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual, const Routing&,
                  const NormAfter&);
// The shared expert's part of combine's backward: dshared = σ·dy;  dshared_logit (T,1) = ⟨dy, shared⟩·σ(1-σ).
// The routed part is drows = gather_rows(dy), scaled by scale_rows where the weight belongs.
void combine_backward(Stream&, Tensor dshared, Tensor dshared_logit, Tensor dy, Tensor shared, Tensor shared_logit);
// dweights (T,k) f32 = ⟨da, a⟩ per row: a (R,F) the input of the down projection, da its gradient before the routing
// weight is applied. ⟨dy, down(a)⟩ equals it, so the experts' outputs need not be kept.
void routing_weight_gradient(Stream&, Tensor dweights, Tensor da, Tensor a, const Routing&);
// rows[r] *= weight of row r's choice
void scale_rows(Stream&, Tensor rows, const Routing&);
// The routing by which combine and gather_rows_backward sum what P ranks have made of T tokens, whose rows lie rank
// after rank: row_of (T,P)[t][p] = p·T + t, weights (T,P) 1.
void route_to_ranks(Stream&, Tensor row_of, Tensor weights);

}  // namespace furlong
