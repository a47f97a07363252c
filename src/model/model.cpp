#include "model/model.h"

#include "model/embedding.h"
#include "ops/norm.h"
#include "ops/reduce.h"

namespace furlong {
namespace {

LayerMemory memory_of(const Batch& batch, bool full_attention, size_t& attention, size_t& delta) {
  if (batch.memory == nullptr) return {};
  if (full_attention) return {.pages = batch.memory->attention[attention++], .slots = {}};
  return {.pages = {}, .slots = batch.memory->delta[delta++]};
}

bool is_first(const Mesh& mesh) { return mesh.place().stage == 0; }
bool is_last(const Mesh& mesh) { return mesh.place().stage + 1 == mesh.place().sizes.pipeline; }

// Moves rows from one stage to its neighbour; `to` and `from` undefined: none.
void pass_on(Exec& exec, int64_t source, Tensor to, int64_t target, Tensor from) {
  Group& stages = exec.mesh.pipeline();
  std::vector<Tensor> arriving(static_cast<size_t>(stages.size())), leaving(arriving);
  if (to.defined()) arriving[static_cast<size_t>(source)] = to;
  if (from.defined()) leaving[static_cast<size_t>(target)] = from;
  if (!exec.stream.is_dry()) stages.exchange(exec.stream, arriving, leaving);
}

// Memory for a layer's routing, and where its choices come from.
Routed set_routing(Exec& exec, const ModelConfig& c, const BatchRoutes& routes, size_t layer, int64_t rows, DType t,
                   MoeSaved& saved) {
  if (c.dense()) return Routed::here;
  saved.routing = make_routing(exec, c, rows, t, !routes.ids.defined());
  saved.own_ids = {};
  if (!routes.ids.defined()) return Routed::here;
  const auto begin = static_cast<int64_t>(layer) * rows, end = begin + rows;
  CHECK(routes.ids.rows() == c.num_layers * rows, "routes {} of {} rows", routes.ids.describe(), rows);
  saved.routing.ids = routes.ids.rows(begin, end);
  saved.routing.weights = routes.weights.rows(begin, end);
  if (routes.own.defined()) saved.own_ids = routes.own.rows(begin, end);
  return routes.given ? Routed::given : Routed::here;
}

}  // namespace

Tensor stage_forward(Exec& exec, const ModelConfig& c, const Weights& w, const Batch& given, Tensor x,
                     ModelSaved* saved) {
  auto& [stream, arena, mesh] = exec;
  const int64_t rows = rows_here(mesh, given.rows()).size();
  const Batch batch = with_expert_rows(exec, given);
  const DType t = w.dtype();
  const bool first = is_first(mesh), last = is_last(mesh);
  CHECK(first != x.defined(), "stage {} is given {}", mesh.place().stage, x.describe());
  const auto stream_rows = [&] { return arena.make("model.x", t, {rows, c.hidden_size}); };
  const Tensor hidden = last ? arena.make("model.hidden", t, {rows, c.hidden_size}) : Tensor();
  if (first) {
    x = stream_rows();
    embed_here(exec, c, w.embed, x, batch.tokens);
  }
  Tensor other = saved == nullptr ? stream_rows() : Tensor();
  const bool keep_layers = saved != nullptr && saved->recompute == Recompute::none;
  if (saved != nullptr) saved->layers.resize(w.layers.size());
  const Range mine = stage_layers(c, mesh.place());
  // Where nothing is kept, each layer leaves its output normed for the next.
  const bool ahead = saved == nullptr && mine.size() > 0;
  LayerSaved unkept;
  if (ahead) {
    unkept.normed = arena.make("layer.normed", t, {rows, c.hidden_size});
    unkept.r = arena.make("layer.r", accumulate_dtype(t), {rows});
    rms_norm(stream, unkept.normed, unkept.r, x, w.layers[static_cast<size_t>(mine.begin)].input_norm, c.rms_norm_eps);
  }
  size_t attention = 0, delta = 0;
  for (auto i = static_cast<size_t>(mine.begin); i < static_cast<size_t>(mine.end); i++) {
    const LayerMemory memory = memory_of(batch, w.layers[i].full_attention, attention, delta);
    LayerSaved& layer = saved != nullptr ? saved->layers[i] : unkept;
    if (keep_layers) {
      const Routed routed = set_routing(exec, c, batch.routes, i, rows, t, layer.moe);
      Tensor out = stream_rows();
      layer_forward(exec, c, w.layers[i], out, x, batch, memory, true, routed, layer);
      x = out;
    } else if (saved != nullptr) {
      const Routed routed = set_routing(exec, c, batch.routes, i, rows, t, layer.moe);
      Tensor out = stream_rows();
      const Arena::Scope scope(arena);
      layer_forward(exec, c, w.layers[i], out, x, batch, memory, false, routed, layer);
      x = out;
    } else {
      const Arena::Scope scope(arena);
      const Routed routed = set_routing(exec, c, batch.routes, i, rows, t, layer.moe);
      const bool ends = static_cast<int64_t>(i) + 1 == mine.end;
      const NormAfter after{ends ? hidden : layer.normed, layer.r, ends ? w.final_norm : w.layers[i + 1].input_norm,
                            c.rms_norm_eps};
      // What leaves a stage that is not the last is normed by the next one.
      layer_forward(exec, c, w.layers[i], other, x, batch, memory, false, routed, layer, true,
                    ends && !last ? nullptr : &after);
      std::swap(x, other);
    }
  }
  if (!last) return x;
  if (ahead) return hidden;
  Tensor r = arena.make("model.last_r", accumulate_dtype(t), {rows});
  rms_norm(stream, hidden, r, x, w.final_norm, c.rms_norm_eps);
  if (saved != nullptr) {
    saved->last = x;
    saved->last_r = r;
  }
  return hidden;
}

Tensor stage_backward(Exec& exec, const ModelConfig& c, const Weights& w, ModelSaved& saved, Tensor d,
                      const Batch& batch, Weights& grads, const PartDone& done) {
  auto& [stream, arena, mesh] = exec;
  if (is_last(mesh)) {
    const Tensor dhidden = d;
    d = arena.make("model.d", w.dtype(), {dhidden.rows(), dhidden.dim(1)});
    set_zero(stream, d);
    rms_norm_backward(stream, d, grads.final_norm, dhidden, saved.last, w.final_norm, saved.last_r);
    if (done) done(norm_part(c));
  }
  const Range mine = stage_layers(c, mesh.place());
  for (auto i = static_cast<size_t>(mine.end); i-- > static_cast<size_t>(mine.begin);) {
    const Arena::Scope scope(arena);
    LayerSaved& layer = saved.layers[i];
    if (saved.recompute == Recompute::full) {
      Tensor out = arena.make("model.x", w.dtype(), {d.rows(), d.dim(1)});
      layer_forward(exec, c, w.layers[i], out, layer.input, batch, {}, true, Routed::kept, layer);
    }
    layer_backward(exec, c, w.layers[i], layer, d, batch, grads.layers[i]);
    if (done) done(layer_part(i));
  }
  if (!is_first(mesh)) return d;
  embed_here_backward(exec, c, grads.embed, d, batch.tokens);
  if (done) done(embed_part);
  return {};
}

Tensor model_forward(Exec& exec, const ModelConfig& c, const Weights& w, const Batch& batch, ModelSaved* saved) {
  const Mesh& mesh = exec.mesh;
  const int64_t stage = mesh.place().stage;
  Tensor x;
  if (!is_first(mesh)) {
    x = exec.arena.make("model.x", w.dtype(), {rows_here(mesh, batch.rows()).size(), c.hidden_size});
    pass_on(exec, stage - 1, x, 0, {});
  }
  x = stage_forward(exec, c, w, batch, x, saved);
  if (is_last(mesh)) return x;
  pass_on(exec, 0, {}, stage + 1, x);
  return {};
}

void model_backward(Exec& exec, const ModelConfig& c, const Weights& w, ModelSaved& saved, Tensor dhidden,
                    const Batch& batch, Weights& grads, const PartDone& done) {
  const Arena::Scope whole(exec.arena);
  const Mesh& mesh = exec.mesh;
  const int64_t stage = mesh.place().stage;
  Tensor d = dhidden;
  if (!is_last(mesh)) {
    d = exec.arena.make("model.d", w.dtype(), {rows_here(mesh, batch.rows()).size(), c.hidden_size});
    pass_on(exec, stage + 1, d, 0, {});
  }
  d = stage_backward(exec, c, w, saved, d, batch, grads, done);
  if (!is_first(mesh)) pass_on(exec, 0, {}, stage - 1, d);
}

}  // namespace furlong
