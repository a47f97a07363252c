#include "model/delta_net.h"

#include "ops/conv.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace furlong {

DeltaShape delta_shape(const ModelConfig& c) {
  return {c.linear_num_key_heads, c.linear_num_value_heads, c.linear_key_head_dim, c.linear_value_head_dim};
}

Tensor delta_net_forward(Exec& exec, const ModelConfig& c, const DeltaNetWeights& w, Tensor x, const Batch& batch,
                         const DeltaSlots& slots, bool keep_states, DeltaNetSaved& saved) {
  auto& [stream, arena] = exec;
  const int64_t rows = x.rows(), kh = c.linear_num_key_heads, vh = c.linear_num_value_heads;
  const int64_t dk = c.linear_key_head_dim, dv = c.linear_value_head_dim;
  const DType t = x.dtype(), acc = accumulate_dtype(t);
  saved.x = x;
  saved.qkv = arena.make("delta.qkv", t, {rows, c.conv_dim()});
  saved.z = arena.make("delta.z", t, {rows, c.value_dim()});
  saved.a = arena.make("delta.a", t, {rows, vh});
  saved.b = arena.make("delta.b", t, {rows, vh});
  linear_many(stream, x, {{saved.qkv, w.qkv}, {saved.z, w.z}, {saved.b, w.b}, {saved.a, w.a}});
  saved.mixed = arena.make("delta.mixed", t, {rows, c.conv_dim()});
  saved.g = arena.make("delta.g", acc, {rows, vh});
  saved.beta = arena.make("delta.beta", acc, {rows, vh});
  DeltaSaved& rule = saved.rule;
  rule.q = arena.make("delta.q", acc, {rows, kh, dk});
  rule.k = arena.make("delta.k", acc, {rows, kh, dk});
  rule.q_r = arena.make("delta.q_r", acc, {rows, kh});
  rule.k_r = arena.make("delta.k_r", acc, {rows, kh});
  rule.u = arena.make("delta.u", acc, {rows, vh, dv});
  rule.gamma = arena.make("delta.gamma", DType::f64, {rows, vh});
  rule.states = keep_states ? arena.make("delta.states", acc, {delta_chunks(batch.segments), vh, dk, dv}) : Tensor();
  saved.o = arena.make("delta.o", t, {rows, c.value_dim()});
  saved.o_r = arena.make("delta.o_r", acc, {rows * vh});
  saved.normed = arena.make("delta.normed", t, {rows, c.value_dim()});
  delta_core(stream, saved.normed,
             {saved.qkv, saved.z, saved.a, saved.b, w.conv, w.A_log, w.dt_bias, w.norm, c.rms_norm_eps, saved.mixed,
              saved.g, saved.beta, saved.o, saved.o_r},
             batch.segments, slots, rule, delta_shape(c));
  Tensor y = arena.make("delta.y", t, {rows, c.hidden_size});
  linear(stream, y, saved.normed, w.out);
  return y;
}

Tensor delta_net_backward(Exec& exec, const ModelConfig& c, const DeltaNetWeights& w, const DeltaNetSaved& saved,
                          Tensor dy, const Batch& batch, DeltaNetWeights& grads) {
  auto& [stream, arena] = exec;
  const int64_t rows = dy.rows(), vh = c.linear_num_value_heads, dv = c.linear_value_head_dim;
  const DType t = dy.dtype(), acc = accumulate_dtype(t);
  const auto like = [&](const char* name, const Tensor& x) { return arena.make(name, t, {rows, x.dim(1)}); };
  Tensor dnormed = like("delta.dnormed", saved.normed);
  linear_dw(stream, grads.out, dy, saved.normed);
  linear_dx(stream, dnormed, dy, w.out, false);
  Tensor do_ = like("delta.do", saved.o), dz = like("delta.dz", saved.z);
  gated_rms_norm_backward(stream, do_.reshape({rows * vh, dv}), dz.reshape({rows * vh, dv}), grads.norm,
                          dnormed.reshape({rows * vh, dv}), saved.o.reshape({rows * vh, dv}),
                          saved.z.reshape({rows * vh, dv}), w.norm, saved.o_r);
  Tensor dmixed = like("delta.dmixed", saved.mixed);
  Tensor dg = arena.make("delta.dg", acc, {rows, vh}), dbeta = arena.make("delta.dbeta", acc, {rows, vh});
  delta_rule_backward(stream, dmixed, dg, dbeta, {}, do_, {}, saved.mixed, saved.g, saved.beta, batch.segments,
                      saved.rule, delta_shape(c));
  Tensor da = like("delta.da", saved.a), db = like("delta.db", saved.b);
  delta_gates_backward(stream, da, db, grads.A_log, grads.dt_bias, dg, dbeta, saved.g, saved.beta, saved.a, w.A_log,
                       w.dt_bias);
  Tensor dqkv = like("delta.dqkv", saved.qkv);
  conv_silu_backward(stream, dqkv, grads.conv, dmixed, saved.qkv, w.conv, batch.segments);
  linear_dw(stream, grads.qkv, dqkv, saved.x);
  linear_dw(stream, grads.z, dz, saved.x);
  linear_dw(stream, grads.a, da, saved.x);
  linear_dw(stream, grads.b, db, saved.x);
  Tensor dx = like("delta.dx", saved.x);
  linear_dx(stream, dx, dqkv, w.qkv, false);
  linear_dx(stream, dx, dz, w.z, true);
  linear_dx(stream, dx, da, w.a, true);
  linear_dx(stream, dx, db, w.b, true);
  return dx;
}

}  // namespace furlong
