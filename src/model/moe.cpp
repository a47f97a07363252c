#include "model/moe.h"

#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/swiglu.h"

namespace furlong {

Routing make_routing(Exec& exec, const ModelConfig& c, int64_t rows, DType activations, bool choices) {
  auto& arena = exec.arena;
  const int64_t k = c.experts_per_token;
  return {.ids = choices ? arena.make("moe.ids", DType::i32, {rows, k}) : Tensor(),
          .weights = choices ? arena.make("moe.weights", accumulate_dtype(activations), {rows, k}) : Tensor(),
          .offsets = arena.make("moe.offsets", DType::i32, {c.num_experts + 1}),
          .row_of = arena.make("moe.row_of", DType::i32, {rows, k}),
          .token_of = arena.make("moe.token_of", DType::i32, {rows * k})};
}

void moe_forward(Exec& exec, const ModelConfig& c, const MoeWeights& w, Tensor y, Tensor x, Tensor residual,
                 const Batch& batch, Routed routed, MoeSaved& saved, const NormAfter* after) {
  auto& [stream, arena, mesh] = exec;
  const int64_t rows = x.rows(), routed_rows = rows * c.experts_per_token, f = c.moe_intermediate_size;
  const int64_t fs = c.shared_intermediate_size;
  const bool alone = mesh.experts().size() == 1;
  const DType t = x.dtype(), acc = accumulate_dtype(t);
  saved.x = x;
  saved.shared_gate_up = arena.make("moe.shared_gate_up", t, {rows, 2 * fs});
  saved.shared_logit = arena.make("moe.shared_logit", acc, {rows, 1});
  saved.shared_act = arena.make("moe.shared_act", t, {rows, fs});
  if (alone) saved.rows = arena.make("moe.rows", t, {routed_rows, c.hidden_size});
  const LinearOf shared_logit{saved.shared_logit, w.shared_expert_gate};
  const bool observes = routed == Routed::given && saved.own_ids.defined();
  Tensor logits;
  saved.shared = arena.make("moe.shared", t, {rows, c.hidden_size});
  // The shared expert beside routing and experts, where none of them fills the device.
  const bool apart =
      stream.device() == Device::cuda && routed == Routed::here && alone && !observes && leaves_room(rows);
  Branch branch(stream, apart);
  if (apart) {
    linear_swiglu(branch.stream(), saved.shared_act, saved.shared_gate_up, x, w.shared_gate, w.shared_up,
                  {shared_logit});
    linear(branch.stream(), saved.shared, saved.shared_act, w.shared_down);
    logits = arena.make("moe.logits", acc, {rows, c.num_experts});
    linear(stream, logits, x, w.router);
  } else if (routed == Routed::here || observes) {
    logits = arena.make("moe.logits", acc, {rows, c.num_experts});
    linear_swiglu(stream, saved.shared_act, saved.shared_gate_up, x, w.shared_gate, w.shared_up,
                  {{logits, w.router}, shared_logit});
  } else {
    linear_swiglu(stream, saved.shared_act, saved.shared_gate_up, x, w.shared_gate, w.shared_up, {shared_logit});
  }
  if (observes) {
    Routing own = saved.routing;
    own.ids = saved.own_ids;
    own.weights = arena.make("moe.own_weights", acc, {rows, c.experts_per_token});
    route(stream, own, logits);
  }
  if (routed == Routed::here && alone) {
    route_rows(stream, saved.routing, saved.rows, x, logits);
  } else if (routed == Routed::here) {
    route(stream, saved.routing, logits);
  } else if (alone) {
    if (routed == Routed::given) sort_by_expert(stream, saved.routing);
    gather_rows(stream, saved.rows, x, saved.routing);
  }
  if (!alone) {
    linear(stream, saved.shared, saved.shared_act, w.shared_down);
    experts_forward(exec, c, w, y, x, saved.shared, saved.shared_logit, residual, batch, saved.routing,
                    routed == Routed::kept, saved.arrivals);
    if (after != nullptr) rms_norm(stream, after->y, after->r, y, after->w, after->eps);
    return;
  }
  saved.gate_up = arena.make("moe.gate_up", t, {routed_rows, 2 * f});
  saved.act = arena.make("moe.act", t, {routed_rows, f});
  Tensor out = arena.make("moe.out", t, {routed_rows, c.hidden_size});
  if (apart) {
    grouped_swiglu(stream, saved.act, saved.gate_up, saved.rows, w.gate_up, saved.routing.offsets);
    grouped_linear(stream, out, saved.act, w.down, saved.routing.offsets);
    branch.join();
  } else {
    grouped_mlp(stream, {out, saved.act, saved.gate_up, saved.rows, w.gate_up, w.down, saved.routing.offsets},
                saved.shared, saved.shared_act, w.shared_down);
  }
  if (after != nullptr) {
    combine_norm(stream, y, out, saved.shared, saved.shared_logit, residual, saved.routing, *after);
  } else {
    combine(stream, y, out, saved.shared, saved.shared_logit, residual, saved.routing);
  }
}

namespace {

// Of the shared expert, as combine has it: dx is written.
void shared_backward(Exec& exec, const ModelConfig& c, const MoeWeights& w, const MoeSaved& saved, Tensor dx, Tensor dy,
                     MoeWeights& grads) {
  auto& [stream, arena, mesh] = exec;
  const int64_t rows = dy.rows(), fs = c.shared_intermediate_size;
  const DType t = dy.dtype();
  Tensor dshared = arena.make("moe.dshared", t, {rows, c.hidden_size});
  Tensor dshared_logit = arena.make("moe.dshared_logit", accumulate_dtype(t), {rows, 1});
  combine_backward(stream, dshared, dshared_logit, dy, saved.shared, saved.shared_logit);
  Tensor dshared_act = arena.make("moe.dshared_act", t, {rows, fs});
  linear_dw(stream, grads.shared_down, dshared, saved.shared_act);
  linear_dx(stream, dshared_act, dshared, w.shared_down, false);
  Tensor dshared_gate_up = arena.make("moe.dshared_gate_up", t, {rows, 2 * fs});
  swiglu_backward(stream, dshared_gate_up, dshared_act, saved.shared_gate_up);
  const Tensor dgate = dshared_gate_up.columns(0, fs), dup = dshared_gate_up.columns(fs, 2 * fs);
  linear_dw(stream, grads.shared_gate, dgate, saved.x);
  linear_dw(stream, grads.shared_up, dup, saved.x);
  linear_dw(stream, grads.shared_expert_gate, dshared_logit, saved.x);
  linear_dx(stream, dx, dgate, w.shared_gate, false);
  linear_dx(stream, dx, dup, w.shared_up, true);
  linear_dx(stream, dx, dshared_logit, w.shared_expert_gate, true);
}

}  // namespace

Tensor moe_backward(Exec& exec, const ModelConfig& c, const MoeWeights& w, const MoeSaved& saved, Tensor dy,
                    MoeWeights& grads) {
  auto& [stream, arena, mesh] = exec;
  const int64_t rows = dy.rows();
  const DType t = dy.dtype(), acc = accumulate_dtype(t);
  Tensor dx = arena.make("moe.dx", t, {rows, c.hidden_size});
  // The shared expert first: it writes dx, the rest adds.
  shared_backward(exec, c, w, saved, dx, dy, grads);
  Tensor dweights = arena.make("moe.dweights", acc, {rows, c.experts_per_token});
  if (mesh.experts().size() == 1) {
    rows_backward(exec, w, dx, dweights, dy, {saved.routing, saved.rows, saved.gate_up, saved.act}, grads);
  } else {
    experts_backward(exec, c, w, dx, dweights, dy, saved.routing, saved.arrivals, grads);
  }
  Tensor dlogits = arena.make("moe.dlogits", acc, {rows, c.num_experts});
  route_backward(stream, dlogits, dweights, saved.routing);
  linear_dw(stream, grads.router, dlogits, saved.x);
  linear_dx(stream, dx, dlogits, w.router, true);
  return dx;
}

}  // namespace furlong
