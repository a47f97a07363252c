#include "model/moe.h"

#include "ops/linear.h"
#include "ops/reduce.h"
#include "ops/swiglu.h"

namespace furlong {

Routing make_routing(Exec& exec, const ModelConfig& c, int64_t rows, DType activations) {
  auto& arena = exec.arena;
  const int64_t k = c.experts_per_token;
  return {.ids = arena.make("moe.ids", DType::i32, {rows, k}),
          .weights = arena.make("moe.weights", accumulate_dtype(activations), {rows, k}),
          .offsets = arena.make("moe.offsets", DType::i32, {c.num_experts + 1}),
          .row_of = arena.make("moe.row_of", DType::i32, {rows, k}),
          .token_of = arena.make("moe.token_of", DType::i32, {rows * k})};
}

void moe_forward(Exec& exec, const ModelConfig& c, const MoeWeights& w, Tensor y, Tensor x, Tensor residual,
                 bool routed, MoeSaved& saved, const NormAfter* after) {
  auto& [stream, arena] = exec;
  const int64_t rows = x.rows(), routed_rows = rows * c.experts_per_token, f = c.moe_intermediate_size;
  const int64_t fs = c.shared_intermediate_size;
  const DType t = x.dtype(), acc = accumulate_dtype(t);
  saved.x = x;
  saved.shared_gate_up = arena.make("moe.shared_gate_up", t, {rows, 2 * fs});
  saved.shared_logit = arena.make("moe.shared_logit", acc, {rows, 1});
  saved.shared_act = arena.make("moe.shared_act", t, {rows, fs});
  saved.rows = arena.make("moe.rows", t, {routed_rows, c.hidden_size});
  const LinearOf shared_logit{saved.shared_logit, w.shared_expert_gate};
  if (routed) {
    linear_swiglu(stream, saved.shared_act, saved.shared_gate_up, x, w.shared_gate, w.shared_up, {shared_logit});
    gather_rows(stream, saved.rows, x, saved.routing);
  } else {
    Tensor logits = arena.make("moe.logits", acc, {rows, c.num_experts});
    linear_swiglu(stream, saved.shared_act, saved.shared_gate_up, x, w.shared_gate, w.shared_up,
                  {{logits, w.router}, shared_logit});
    route_rows(stream, saved.routing, saved.rows, x, logits);
  }
  saved.shared = arena.make("moe.shared", t, {rows, c.hidden_size});
  saved.gate_up = arena.make("moe.gate_up", t, {routed_rows, 2 * f});
  saved.act = arena.make("moe.act", t, {routed_rows, f});
  Tensor out = arena.make("moe.out", t, {routed_rows, c.hidden_size});
  grouped_mlp(stream, {out, saved.act, saved.gate_up, saved.rows, w.gate_up, w.down, saved.routing.offsets},
              saved.shared, saved.shared_act, w.shared_down);
  if (after != nullptr) {
    combine_norm(stream, y, out, saved.shared, saved.shared_logit, residual, saved.routing, *after);
  } else {
    combine(stream, y, out, saved.shared, saved.shared_logit, residual, saved.routing);
  }
}

Tensor moe_backward(Exec& exec, const ModelConfig& c, const MoeWeights& w, const MoeSaved& saved, Tensor dy,
                    MoeWeights& grads) {
  auto& [stream, arena] = exec;
  const int64_t rows = dy.rows(), routed_rows = rows * c.experts_per_token, f = c.moe_intermediate_size;
  const int64_t fs = c.shared_intermediate_size;
  const DType t = dy.dtype(), acc = accumulate_dtype(t);
  const Routing& routing = saved.routing;
  Tensor dx = arena.make("moe.dx", t, {rows, c.hidden_size});

  // Shared expert first: it writes dx, the rest adds.
  Tensor dshared = arena.make("moe.dshared", t, {rows, c.hidden_size});
  Tensor dshared_logit = arena.make("moe.dshared_logit", acc, {rows, 1});
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

  // Routed experts: the gradient of the down projection's input before the routing weight gives that weight's gradient.
  Tensor drows = arena.make("moe.drows", t, {routed_rows, c.hidden_size});
  gather_rows(stream, drows, dy, routing);
  Tensor dact = arena.make("moe.dact", t, {routed_rows, f});
  grouped_linear_dx(stream, dact, drows, w.down, routing.offsets);
  Tensor dweights = arena.make("moe.dweights", acc, {rows, c.experts_per_token});
  routing_weight_gradient(stream, dweights, dact, saved.act, routing);
  scale_rows(stream, drows, routing);
  scale_rows(stream, dact, routing);
  grouped_linear_dw(stream, grads.down, drows, saved.act, routing.offsets);
  Tensor dgate_up = arena.make("moe.dgate_up", t, {routed_rows, 2 * f});
  swiglu_backward(stream, dgate_up, dact, saved.gate_up);
  grouped_linear_dw(stream, grads.gate_up, dgate_up, saved.rows, routing.offsets);
  grouped_linear_dx(stream, drows, dgate_up, w.gate_up, routing.offsets);
  gather_rows_backward(stream, dx, drows, routing);

  Tensor dlogits = arena.make("moe.dlogits", acc, {rows, c.num_experts});
  route_backward(stream, dlogits, dweights, routing);
  linear_dw(stream, grads.router, dlogits, saved.x);
  linear_dx(stream, dx, dlogits, w.router, true);
  return dx;
}

}  // namespace furlong
