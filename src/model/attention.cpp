#include "model/attention.h"

#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/reduce.h"
#include "ops/rope.h"

namespace furlong {
namespace {

AttentionShape shape_of(const ModelConfig& c) { return {c.num_heads, c.num_kv_heads, c.head_dim}; }

RopeShape query_rope(const ModelConfig& c) {
  return {c.num_heads, c.head_dim, 2 * c.head_dim, c.rotary_dim, c.rope_theta, c.rms_norm_eps};
}

RopeShape key_rope(const ModelConfig& c) {
  return {c.num_kv_heads, c.head_dim, c.head_dim, c.rotary_dim, c.rope_theta, c.rms_norm_eps};
}

}  // namespace

Tensor attention_forward(Exec& exec, const ModelConfig& c, const AttentionWeights& w, Tensor x, const Batch& batch,
                         const KvPages& pages, AttentionSaved& saved) {
  auto& [stream, arena] = exec;
  const int64_t rows = x.rows(), queries = c.num_heads * c.head_dim, keys = c.num_kv_heads * c.head_dim;
  const DType t = x.dtype(), acc = accumulate_dtype(t);
  saved.x = x;
  saved.qg = arena.make("attention.qg", t, {rows, 2 * queries});
  saved.k_raw = arena.make("attention.k_raw", t, {rows, keys});
  saved.v = arena.make("attention.v", t, {rows, keys});
  linear_many(stream, x, {{saved.qg, w.q}, {saved.k_raw, w.k}, {saved.v, w.v}});
  saved.q = arena.make("attention.q", t, {rows, queries});
  saved.q_r = arena.make("attention.q_r", acc, {rows, c.num_heads});
  saved.k = arena.make("attention.k", t, {rows, keys});
  saved.k_r = arena.make("attention.k_r", acc, {rows, c.num_kv_heads});
  norm_rope_both(stream, {saved.q, saved.q_r, saved.qg, w.q_norm, query_rope(c)},
                 {saved.k, saved.k_r, saved.k_raw, w.k_norm, key_rope(c)}, batch.segments.positions);
  saved.o = arena.make("attention.o", t, {rows, queries});
  saved.lse = arena.make("attention.lse", acc, {rows, c.num_heads});
  attention(stream, saved.o, saved.lse, saved.q, saved.k, saved.v, batch.segments, pages, shape_of(c));
  saved.gated = arena.make("attention.gated", t, {rows, queries});
  attention_gate(stream, saved.gated, saved.o, saved.qg, shape_of(c));
  Tensor y = arena.make("attention.y", t, {rows, c.hidden_size});
  linear(stream, y, saved.gated, w.o);
  return y;
}

Tensor attention_backward(Exec& exec, const ModelConfig& c, const AttentionWeights& w, const AttentionSaved& saved,
                          Tensor dy, const Batch& batch, AttentionWeights& grads) {
  auto& [stream, arena] = exec;
  const int64_t rows = dy.rows();
  const DType t = dy.dtype();
  const auto like = [&](const char* name, const Tensor& x) { return arena.make(name, t, {rows, x.dim(1)}); };
  Tensor dgated = like("attention.dgated", saved.gated);
  linear_dw(stream, grads.o, dy, saved.gated);
  linear_dx(stream, dgated, dy, w.o, false);
  Tensor do_ = like("attention.do", saved.o), dqg = like("attention.dqg", saved.qg);
  attention_gate_backward(stream, do_, dqg, dgated, saved.o, saved.qg, shape_of(c));
  Tensor dq = like("attention.dq", saved.q), dk = like("attention.dk", saved.k), dv = like("attention.dv", saved.v);
  attention_backward(stream, dq, dk, dv, do_, saved.q, saved.k, saved.v, saved.o, saved.lse, batch.segments,
                     shape_of(c));
  Tensor dk_raw = like("attention.dk_raw", saved.k_raw);
  norm_rope_backward(stream, dqg, grads.q_norm, dq, saved.qg, w.q_norm, saved.q_r, batch.segments.positions,
                     query_rope(c));
  norm_rope_backward(stream, dk_raw, grads.k_norm, dk, saved.k_raw, w.k_norm, saved.k_r, batch.segments.positions,
                     key_rope(c));
  linear_dw(stream, grads.q, dqg, saved.x);
  linear_dw(stream, grads.k, dk_raw, saved.x);
  linear_dw(stream, grads.v, dv, saved.x);
  Tensor dx = like("attention.dx", saved.x);
  linear_dx(stream, dx, dqg, w.q, false);
  linear_dx(stream, dx, dk_raw, w.k, true);
  linear_dx(stream, dx, dv, w.v, true);
  return dx;
}

}  // namespace furlong
