#include "model/attention.h"

#include "model/collectives.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/rope.h"

namespace furlong {
namespace {

// AttentionSizes on this rank: of the projections, for the rows of its context parallel rank, and of the mixer, for all
// rows.
struct AttentionSizes {
  RowBlocks by_tensor, by_context;
  AttentionShape shape;
  int64_t rows, rows_here, queries, keys;  // queries, keys: columns of the projections
  RopeShape query_rope, key_rope;
  MeshRank place;

  AttentionSizes(const ModelConfig& c, const Mesh& mesh, const Batch& batch)
      : by_tensor(tensor_rows(mesh, batch.rows())),
        by_context(context_rows(mesh, batch.rows())),
        shape(attention_shape(c, mesh.place())),
        rows(batch.rows()),
        rows_here(by_context.mine().size()),
        query_rope{shape.heads, c.head_dim, 2 * c.head_dim, c.rotary_dim, c.rope_theta, c.rms_norm_eps},
        key_rope{shape.kv_heads, c.head_dim, c.head_dim, c.rotary_dim, c.rope_theta, c.rms_norm_eps},
        place(mesh.place()) {
    const HeadRanges heads = projected_heads(c, place);
    queries = heads.query.size() * c.head_dim;
    keys = heads.kv.size() * c.head_dim;
  }
  bool whole() const { return by_context.group.size() == 1; }  // projections and mixer have the same rows and heads
};

// The projections of saved.x, for the rows and heads of the mixer.
void project(Exec& exec, const ModelConfig& c, const AttentionWeights& w, const AttentionSizes& s,
             const AttentionSaved& saved) {
  if (s.whole()) {
    linear_many(exec.stream, saved.x, {{saved.qg, w.q}, {saved.k_raw, w.k}, {saved.v, w.v}});
    return;
  }
  const Arena::Scope scope(exec.arena);
  const DType t = saved.x.dtype();
  const Tensor qg = exec.arena.make("attention.rows", t, {s.rows_here, 2 * s.queries});
  const Tensor k = exec.arena.make("attention.rows", t, {s.rows_here, s.keys});
  const Tensor v = exec.arena.make("attention.rows", t, {s.rows_here, s.keys});
  linear_many(exec.stream, saved.x, {{qg, w.q}, {k, w.k}, {v, w.v}});
  const RankColumns queries = query_columns(c, s.place, 2 * c.head_dim), keys = kv_columns(c, s.place);
  rows_to_heads(exec, s.by_context, {{saved.qg, qg, queries}, {saved.k_raw, k, keys}, {saved.v, v, keys}});
}

}  // namespace

Tensor attention_forward(Exec& exec, const ModelConfig& c, const AttentionWeights& w, Tensor x, const Batch& batch,
                         const KvPages& pages, AttentionSaved& saved) {
  auto& [stream, arena, mesh] = exec;
  const AttentionSizes s(c, mesh, batch);
  const int64_t rows = s.rows, queries = s.shape.heads * c.head_dim, keys = s.shape.kv_heads * c.head_dim;
  const DType t = x.dtype(), acc = accumulate_dtype(t);
  const Tensor y = arena.make("attention.y", t, {x.rows(), c.hidden_size});
  saved.x = all_gather(exec, s.by_tensor, "attention.x", x);
  saved.qg = arena.make("attention.qg", t, {rows, 2 * queries});
  saved.k_raw = arena.make("attention.k_raw", t, {rows, keys});
  saved.v = arena.make("attention.v", t, {rows, keys});
  project(exec, c, w, s, saved);
  saved.q = arena.make("attention.q", t, {rows, queries});
  saved.q_r = arena.make("attention.q_r", acc, {rows, s.shape.heads});
  saved.k = arena.make("attention.k", t, {rows, keys});
  saved.k_r = arena.make("attention.k_r", acc, {rows, s.shape.kv_heads});
  norm_rope_both(stream, {saved.q, saved.q_r, saved.qg, w.q_norm, s.query_rope},
                 {saved.k, saved.k_r, saved.k_raw, w.k_norm, s.key_rope}, batch.segments.positions);
  saved.o = arena.make("attention.o", t, {rows, queries});
  saved.lse = arena.make("attention.lse", acc, {rows, s.shape.heads});
  attention(stream, saved.o, saved.lse, saved.q, saved.k, saved.v, batch.segments, pages, s.shape);
  saved.gated = arena.make("attention.gated", t, {s.rows_here, s.queries});
  if (s.whole()) {
    attention_gate(stream, saved.gated, saved.o, saved.qg, s.shape);
  } else {
    const Arena::Scope scope(arena);
    const Tensor gated = arena.make_like("attention.heads", saved.o);
    attention_gate(stream, gated, saved.o, saved.qg, s.shape);
    heads_to_rows(exec, s.by_context, {{saved.gated, gated, query_columns(c, s.place, c.head_dim)}});
  }
  row_parallel(exec, s.by_tensor, y, saved.gated, w.o);
  return y;
}

Tensor attention_backward(Exec& exec, const ModelConfig& c, const AttentionWeights& w, const AttentionSaved& saved,
                          Tensor dy, const Batch& batch, AttentionWeights& grads) {
  auto& [stream, arena, mesh] = exec;
  const AttentionSizes s(c, mesh, batch);
  const DType t = dy.dtype();
  const auto like = [&](const char* name, const Tensor& x) { return arena.make(name, t, {x.rows(), x.dim(1)}); };
  const Tensor dx = arena.make("attention.dx", t, {dy.rows(), c.hidden_size});
  dy = all_gather(exec, s.by_tensor, "attention.dy", dy);
  Tensor dgated = like("attention.dgated", saved.gated);
  linear_dw(stream, grads.o, dy, saved.gated);
  linear_dx(stream, dgated, dy, w.o, false);
  if (!s.whole()) {
    const Tensor heads = like("attention.dgated", saved.o);
    rows_to_heads(exec, s.by_context, {{heads, dgated, query_columns(c, s.place, c.head_dim)}});
    dgated = heads;
  }
  Tensor do_ = like("attention.do", saved.o), dqg = like("attention.dqg", saved.qg);
  attention_gate_backward(stream, do_, dqg, dgated, saved.o, saved.qg, s.shape);
  Tensor dq = like("attention.dq", saved.q), dk = like("attention.dk", saved.k), dv = like("attention.dv", saved.v);
  attention_backward(stream, dq, dk, dv, do_, saved.q, saved.k, saved.v, saved.o, saved.lse, batch.segments, s.shape);
  Tensor dk_raw = like("attention.dk_raw", saved.k_raw);
  norm_rope_backward(stream, dqg, grads.q_norm, dq, saved.qg, w.q_norm, saved.q_r, batch.segments.positions,
                     s.query_rope);
  norm_rope_backward(stream, dk_raw, grads.k_norm, dk, saved.k_raw, w.k_norm, saved.k_r, batch.segments.positions,
                     s.key_rope);
  if (!s.whole()) {
    const auto rows = [&](int64_t columns) { return arena.make("attention.rows", t, {s.rows_here, columns}); };
    const Tensor q = rows(2 * s.queries), k = rows(s.keys), v = rows(s.keys);
    const RankColumns queries = query_columns(c, s.place, 2 * c.head_dim), keys = kv_columns(c, s.place);
    heads_to_rows(exec, s.by_context, {{q, dqg, queries}, {k, dk_raw, keys}, {v, dv, keys}});
    dqg = q;
    dk_raw = k;
    dv = v;
  }
  linear_dw(stream, grads.q, dqg, saved.x);
  linear_dw(stream, grads.k, dk_raw, saved.x);
  linear_dw(stream, grads.v, dv, saved.x);
  const bool alone = s.by_tensor.group.size() == 1;
  const Tensor partial = alone ? dx : like("attention.dx", saved.x);
  linear_dx(stream, partial, dqg, w.q, false);
  linear_dx(stream, partial, dk_raw, w.k, true);
  linear_dx(stream, partial, dv, w.v, true);
  if (!alone) reduce_scatter(exec, s.by_tensor, dx, partial);
  return dx;
}

}  // namespace furlong
