#include "ops/moe.h"

#include <algorithm>

#include "ops/front.h"

namespace furlong {
namespace {

void check_routing(const char* op, const Routing& r) {
  front::expect(r.ids.rank() == 2 && r.ids.dtype() == DType::i32 && r.ids.contiguous() && r.weights.same_shape(r.ids) &&
                    r.weights.contiguous() && r.row_of.same_shape(r.ids) && r.row_of.contiguous() &&
                    r.token_of.numel() <= r.ids.numel(),
                op, "ids, weights, row_of (T,k), token_of of as many rows at most wanted",
                {r.ids, r.weights, r.row_of, r.token_of});
}

// x (T,C) beside the rows (R,C) of its choices.
void check_rows(const char* op, const Tensor& x, const Tensor& rows, const Routing& r) {
  check_routing(op, r);
  front::expect(x.rank() == 2 && rows.rank() == 2 && x.rows() == r.ids.rows() && rows.rows() == r.token_of.numel() &&
                    x.dim(1) == rows.dim(1) && x.dtype() == rows.dtype(),
                op, "tokens (T,C) and rows (R,C) of one dtype wanted", {x, rows, r.ids, r.token_of});
}

void check_weights(const char* op, const Tensor& rows, const Routing& r) {
  front::expect(r.weights.dtype() == front::acc(rows.dtype()), op, "routing weights in fp32 wanted", {rows, r.weights});
}

void check_shared(const char* op, const Tensor& y, const Tensor& shared, const Tensor& logit) {
  front::expect(y.rank() == 2 && shared.same_shape(y) && shared.dtype() == y.dtype() && logit.numel() == y.rows(), op,
                "shared (T,C) as y, shared_logit (T,1) wanted", {y, shared, logit});
}

void check_logits(const char* op, const Tensor& logits, const Routing& routing) {
  front::expect(
      logits.rank() == 2 && routing.ids.rank() == 2 && logits.rows() == routing.ids.rows() &&
          routing.ids.dim(1) <= logits.dim(1) && routing.weights.same_shape(routing.ids) && routing.ids.contiguous() &&
          routing.weights.contiguous() && routing.weights.dtype() == logits.dtype() &&
          (logits.dtype() == DType::f32 || logits.dtype() == DType::f64),
      op, "logits (T,E) in fp32, ids and weights (T,k) with k <= E wanted", {logits, routing.ids, routing.weights});
}

}  // namespace

void route(Stream& stream, const Routing& routing, Tensor logits) {
  check_logits("route", logits, routing);
  if (front::skip(stream, routing.ids)) return;
  front::body(logits).route(stream, routing, logits);
}

void sort_by_expert(Stream& stream, const Routing& routing, int64_t first, int64_t experts) {
  check_routing("sort_by_expert", routing);
  front::expect(routing.offsets.rank() == 1 && routing.offsets.rows() >= 2, "sort_by_expert", "offsets (E+1) wanted",
                {routing.offsets});
  const int64_t here = routing.offsets.rows() - 1;
  if (experts < 0) experts = here;
  CHECK(first >= 0 && first + here <= experts, "sort_by_expert: experts {} to {} of {}", first, first + here, experts);
  front::expect(routing.token_of.numel() >= routing.ids.rows() * std::min(here, routing.ids.dim(1)), "sort_by_expert",
                "token_of for all rows that these experts may get wanted", {routing.token_of, routing.ids});
  if (stream.is_dry()) return;
  body_of(routing.ids.device(), DType::f32).sort_by_expert(stream, routing, first, experts);
}

void route_rows(Stream& stream, const Routing& routing, Tensor rows, Tensor x, Tensor logits) {
  check_logits("route_rows", logits, routing);
  check_rows("route_rows", x, rows, routing);
  front::expect(routing.offsets.rank() == 1 && routing.offsets.rows() == logits.dim(1) + 1, "route_rows",
                "offsets (E+1) wanted", {routing.offsets, logits});
  if (front::skip(stream, rows)) return;
  front::body(x).route_rows(stream, routing, rows, x, logits);
}

void route_backward(Stream& stream, Tensor dlogits, Tensor dweights, const Routing& routing) {
  front::expect(dlogits.rank() == 2 && dlogits.rows() == routing.ids.rows() && dweights.same_shape(routing.ids) &&
                    routing.weights.same_shape(routing.ids) && dweights.contiguous() && routing.weights.contiguous() &&
                    dweights.dtype() == dlogits.dtype() && routing.weights.dtype() == dlogits.dtype(),
                "route_backward", "dlogits (T,E), dweights (T,k) as the weights wanted",
                {dlogits, dweights, routing.ids, routing.weights});
  if (front::skip(stream, dlogits)) return;
  front::body(dlogits).route_backward(stream, dlogits, dweights, routing);
}

void gather_rows(Stream& stream, Tensor rows, Tensor x, const Routing& routing) {
  check_rows("gather_rows", x, rows, routing);
  if (front::skip(stream, rows)) return;
  front::body(x).gather_rows(stream, rows, x, routing);
}

void gather_rows_backward(Stream& stream, Tensor dx, Tensor drows, const Routing& routing) {
  check_rows("gather_rows_backward", dx, drows, routing);
  if (front::skip(stream, dx)) return;
  front::body(dx).gather_rows_backward(stream, dx, drows, routing);
}

void combine(Stream& stream, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual,
             const Routing& routing) {
  check_rows("combine", y, rows, routing);
  check_weights("combine", rows, routing);
  if (shared.defined()) check_shared("combine", y, shared, shared_logit);
  front::expect(!residual.defined() || (residual.same_shape(y) && residual.dtype() == y.dtype()), "combine",
                "a residual (T,C) as y wanted", {y, residual});
  if (front::skip(stream, y)) return;
  front::body(y).combine(stream, y, rows, shared, shared_logit, residual, routing);
}

void combine_norm(Stream& stream, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual,
                  const Routing& routing, const NormAfter& after) {
  check_rows("combine_norm", y, rows, routing);
  check_weights("combine_norm", rows, routing);
  check_shared("combine_norm", y, shared, shared_logit);
  front::expect(residual.same_shape(y) && residual.dtype() == y.dtype() && after.y.same_shape(y) &&
                    after.y.dtype() == y.dtype() && after.w.rows() == y.dim(1) && after.r.numel() == y.rows(),
                "combine_norm", "a residual and normed rows (T,C) as y, w (C), r (T) wanted",
                {y, residual, after.y, after.w, after.r});
  if (front::skip(stream, y)) return;
  front::body(y).combine_norm(stream, y, rows, shared, shared_logit, residual, routing, after);
}

void combine_backward(Stream& stream, Tensor dshared, Tensor dshared_logit, Tensor dy, Tensor shared,
                      Tensor shared_logit) {
  check_shared("combine_backward", dy, shared, shared_logit);
  check_shared("combine_backward", dy, dshared, dshared_logit);
  if (front::skip(stream, dy)) return;
  front::body(dy).combine_backward(stream, dshared, dshared_logit, dy, shared, shared_logit);
}

void routing_weight_gradient(Stream& stream, Tensor dweights, Tensor da, Tensor a, const Routing& routing) {
  front::expect(da.same_shape(a) && a.rank() == 2 && a.rows() == routing.token_of.numel() && a.dtype() == da.dtype() &&
                    dweights.same_shape(routing.row_of) && dweights.dtype() == front::acc(a.dtype()) &&
                    dweights.contiguous() && routing.row_of.contiguous(),
                "routing_weight_gradient", "dweights (T,k) in fp32, da and a (R,F) wanted",
                {dweights, da, a, routing.row_of});
  if (front::skip(stream, dweights)) return;
  front::body(a).routing_weight_gradient(stream, dweights, da, a, routing);
}

void scale_rows(Stream& stream, Tensor rows, const Routing& routing) {
  check_routing("scale_rows", routing);
  check_weights("scale_rows", rows, routing);
  front::expect(rows.rank() == 2 && rows.rows() == routing.token_of.numel(), "scale_rows", "rows (R,C) wanted",
                {rows, routing.token_of});
  if (front::skip(stream, rows)) return;
  front::body(rows).scale_rows(stream, rows, routing);
}

void route_to_ranks(Stream& stream, Tensor row_of, Tensor weights) {
  front::expect(row_of.rank() == 2 && weights.same_shape(row_of) && row_of.dtype() == DType::i32 &&
                    row_of.contiguous() && weights.contiguous(),
                "route_to_ranks", "row_of (T,P) i32 and weights (T,P) wanted", {row_of, weights});
  if (front::skip(stream, row_of)) return;
  front::body(weights).route_to_ranks(stream, row_of, weights);
}

}  // namespace furlong
