#include "model/delta_net.h"

#include "model/collectives.h"
#include "ops/conv.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

// DeltaSizes on this rank: of the projections, for the rows of its context parallel rank, and of the mixer, for all
// rows.
struct DeltaSizes {
  RowBlocks by_tensor, by_context;
  DeltaShape shape;
  Range value_heads;  // of the projection's
  int64_t rows, rows_here;
  int64_t channels, values, heads;               // columns of the projections
  RankColumns of_channels, of_values, of_heads;  // empty where the mixer has them all

  DeltaSizes(const ModelConfig& c, const Mesh& mesh, const Batch& batch)
      : by_tensor(tensor_rows(mesh, batch.rows())),
        by_context(context_rows(mesh, batch.rows())),
        shape(delta_shape(c, mesh.place())),
        value_heads(mixer_heads(c, mesh.place()).delta_value),
        rows(batch.rows()),
        rows_here(by_context.mine().size()) {
    const HeadRanges projected = projected_heads(c, mesh.place());
    heads = projected.delta_value.size();
    values = heads * c.linear_value_head_dim;
    channels = 2 * projected.delta_key.size() * c.linear_key_head_dim + values;
    if (whole()) return;
    of_channels = delta_columns(c, mesh.place());
    of_values = delta_value_columns(c, mesh.place(), c.linear_value_head_dim);
    of_heads = delta_value_columns(c, mesh.place(), 1);
  }
  bool whole() const { return by_context.group.size() == 1; }  // projections and mixer have the same rows and heads
  int64_t mixer_channels() const { return 2 * shape.key_heads * shape.key_dim + shape.value_heads * shape.value_dim; }
  const std::vector<Range>& my_channels() const { return of_channels[static_cast<size_t>(by_context.group.rank())]; }
};

// The projections of saved.x, for the rows and heads of the mixer.
void project(Exec& exec, const DeltaNetWeights& w, const DeltaSizes& s, const DeltaNetSaved& saved) {
  if (s.whole()) {
    linear_many(exec.stream, saved.x, {{saved.qkv, w.qkv}, {saved.z, w.z}, {saved.b, w.b}, {saved.a, w.a}});
    return;
  }
  const Arena::Scope scope(exec.arena);
  const auto rows = [&](int64_t columns) {
    return exec.arena.make("delta.rows", saved.x.dtype(), {s.rows_here, columns});
  };
  const Tensor qkv = rows(s.channels), z = rows(s.values), b = rows(s.heads), a = rows(s.heads);
  linear_many(exec.stream, saved.x, {{qkv, w.qkv}, {z, w.z}, {b, w.b}, {a, w.a}});
  rows_to_heads(
      exec, s.by_context,
      {{saved.qkv, qkv, s.of_channels}, {saved.z, z, s.of_values}, {saved.b, b, s.of_heads}, {saved.a, a, s.of_heads}});
}

// Calls f(range of the projection's channels, range of the mixer's) for its queries, keys and values.
template <class F>
void each_channel_range(const DeltaSizes& s, F&& f) {
  int64_t at = 0;
  for (const Range& r : s.my_channels()) {
    f(r, Range{at, at + r.size()});
    at += r.size();
  }
}

// The convolution's weights of the mixer's channels.
Tensor conv_weights(Exec& exec, const DeltaNetWeights& w, const DeltaSizes& s) {
  if (s.whole()) return w.conv;
  const Tensor mine = exec.arena.make("delta.conv", w.conv.dtype(), {s.mixer_channels(), 1, w.conv.dim(2)});
  each_channel_range(s, [&](const Range& in, const Range& at) {
    copy(exec.stream, mine.rows(at.begin, at.end), w.conv.rows(in.begin, in.end));
  });
  return mine;
}

// The entries of the mixer's value heads.
Tensor of_mixer(const Tensor& by_head, const DeltaSizes& s) {
  return by_head.rows(s.value_heads.begin, s.value_heads.end);
}

void conv_backward(Exec& exec, const DeltaNetWeights& w, const DeltaSizes& s, Tensor dqkv, Tensor dmixed, Tensor qkv,
                   const Batch& batch, Tensor grad) {
  const Arena::Scope scope(exec.arena);
  const Tensor mine =
      s.whole() ? grad : exec.arena.make("delta.dconv", grad.dtype(), {s.mixer_channels(), 1, w.conv.dim(2)});
  if (!s.whole()) set_zero(exec.stream, mine);
  conv_silu_backward(exec.stream, dqkv, mine, dmixed, qkv, conv_weights(exec, w, s), batch.segments);
  if (s.whole()) return;
  each_channel_range(s, [&](const Range& in, const Range& at) {
    add(exec.stream, grad.rows(in.begin, in.end), mine.rows(at.begin, at.end));
  });
}

}  // namespace

Tensor delta_net_forward(Exec& exec, const ModelConfig& c, const DeltaNetWeights& w, Tensor x, const Batch& batch,
                         const DeltaSlots& slots, bool keep_states, DeltaNetSaved& saved) {
  auto& [stream, arena, mesh] = exec;
  const DeltaSizes s(c, mesh, batch);
  const auto [kh, vh, dk, dv] = s.shape;
  const int64_t rows = s.rows;
  const DType t = x.dtype(), acc = accumulate_dtype(t);
  const Tensor y = arena.make("delta.y", t, {x.rows(), c.hidden_size});
  saved.x = all_gather(exec, s.by_tensor, "delta.x", x);
  saved.qkv = arena.make("delta.qkv", t, {rows, s.mixer_channels()});
  saved.z = arena.make("delta.z", t, {rows, vh * dv});
  saved.a = arena.make("delta.a", t, {rows, vh});
  saved.b = arena.make("delta.b", t, {rows, vh});
  project(exec, w, s, saved);
  saved.mixed = arena.make("delta.mixed", t, {rows, s.mixer_channels()});
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
  saved.o = arena.make("delta.o", t, {rows, vh * dv});
  saved.o_r = arena.make("delta.o_r", acc, {rows * vh});
  saved.normed = arena.make("delta.normed", t, {s.rows_here, s.values});
  {
    const Arena::Scope scope(arena);
    const Tensor normed = s.whole() ? saved.normed : arena.make("delta.heads", t, {rows, vh * dv});
    delta_core(stream, normed,
               {saved.qkv, saved.z, saved.a, saved.b, conv_weights(exec, w, s), of_mixer(w.A_log, s),
                of_mixer(w.dt_bias, s), w.norm, c.rms_norm_eps, saved.mixed, saved.g, saved.beta, saved.o, saved.o_r},
               batch.segments, slots, rule, s.shape);
    if (!s.whole()) heads_to_rows(exec, s.by_context, {{saved.normed, normed, s.of_values}});
  }
  row_parallel(exec, s.by_tensor, y, saved.normed, w.out);
  return y;
}

Tensor delta_net_backward(Exec& exec, const ModelConfig& c, const DeltaNetWeights& w, const DeltaNetSaved& saved,
                          Tensor dy, const Batch& batch, DeltaNetWeights& grads) {
  auto& [stream, arena, mesh] = exec;
  const DeltaSizes s(c, mesh, batch);
  const int64_t rows = s.rows, vh = s.shape.value_heads, dv = s.shape.value_dim;
  const DType t = dy.dtype(), acc = accumulate_dtype(t);
  const auto like = [&](const char* name, const Tensor& x) { return arena.make(name, t, {x.rows(), x.dim(1)}); };
  const Tensor dx = arena.make("delta.dx", t, {dy.rows(), c.hidden_size});
  dy = all_gather(exec, s.by_tensor, "delta.dy", dy);
  Tensor dnormed = like("delta.dnormed", saved.normed);
  linear_dw(stream, grads.out, dy, saved.normed);
  linear_dx(stream, dnormed, dy, w.out, false);
  if (!s.whole()) {
    const Tensor heads = like("delta.dnormed", saved.o);
    rows_to_heads(exec, s.by_context, {{heads, dnormed, s.of_values}});
    dnormed = heads;
  }
  Tensor do_ = like("delta.do", saved.o), dz = like("delta.dz", saved.z);
  gated_rms_norm_backward(stream, do_.reshape({rows * vh, dv}), dz.reshape({rows * vh, dv}), grads.norm,
                          dnormed.reshape({rows * vh, dv}), saved.o.reshape({rows * vh, dv}),
                          saved.z.reshape({rows * vh, dv}), w.norm, saved.o_r);
  Tensor dmixed = like("delta.dmixed", saved.mixed);
  Tensor dg = arena.make("delta.dg", acc, {rows, vh}), dbeta = arena.make("delta.dbeta", acc, {rows, vh});
  delta_rule_backward(stream, dmixed, dg, dbeta, {}, do_, {}, saved.mixed, saved.g, saved.beta, batch.segments,
                      saved.rule, s.shape);
  Tensor da = like("delta.da", saved.a), db = like("delta.db", saved.b);
  delta_gates_backward(stream, da, db, of_mixer(grads.A_log, s), of_mixer(grads.dt_bias, s), dg, dbeta, saved.g,
                       saved.beta, saved.a, of_mixer(w.A_log, s), of_mixer(w.dt_bias, s));
  Tensor dqkv = like("delta.dqkv", saved.qkv);
  conv_backward(exec, w, s, dqkv, dmixed, saved.qkv, batch, grads.conv);
  if (!s.whole()) {
    const auto columns = [&](int64_t n) { return arena.make("delta.rows", t, {s.rows_here, n}); };
    const Tensor qkv = columns(s.channels), z = columns(s.values), a = columns(s.heads), b = columns(s.heads);
    heads_to_rows(exec, s.by_context,
                  {{qkv, dqkv, s.of_channels}, {z, dz, s.of_values}, {a, da, s.of_heads}, {b, db, s.of_heads}});
    dqkv = qkv;
    dz = z;
    da = a;
    db = b;
  }
  linear_dw(stream, grads.qkv, dqkv, saved.x);
  linear_dw(stream, grads.z, dz, saved.x);
  linear_dw(stream, grads.a, da, saved.x);
  linear_dw(stream, grads.b, db, saved.x);
  const bool alone = s.by_tensor.group.size() == 1;
  const Tensor partial = alone ? dx : like("delta.dx", saved.x);
  linear_dx(stream, partial, dqkv, w.qkv, false);
  linear_dx(stream, partial, dz, w.z, true);
  linear_dx(stream, partial, da, w.a, true);
  linear_dx(stream, partial, db, w.b, true);
  if (!alone) reduce_scatter(exec, s.by_tensor, dx, partial);
  return dx;
}

}  // namespace furlong
