#include "model/model.h"

#include "ops/embed.h"
#include "ops/norm.h"
#include "ops/reduce.h"

namespace furlong {
namespace {

LayerMemory memory_of(const Batch& batch, bool full_attention, size_t& attention, size_t& delta) {
  if (batch.memory == nullptr) return {};
  if (full_attention) return {.pages = batch.memory->attention[attention++], .slots = {}};
  return {.pages = {}, .slots = batch.memory->delta[delta++]};
}

}  // namespace

Tensor model_forward(Exec& exec, const ModelConfig& c, const Weights& w, const Batch& batch, ModelSaved* saved) {
  auto& [stream, arena] = exec;
  const int64_t rows = batch.rows();
  const DType t = w.dtype();
  Tensor hidden = arena.make("model.hidden", t, {rows, c.hidden_size});
  Tensor x = arena.make("model.x", t, {rows, c.hidden_size});
  Tensor other = saved == nullptr ? arena.make("model.x", t, {rows, c.hidden_size}) : Tensor();
  embed(stream, x, batch.tokens, w.embed);
  const bool keep_layers = saved != nullptr && saved->recompute == Recompute::none;
  if (saved != nullptr) saved->layers.resize(w.layers.size());
  // Where nothing is kept, each layer leaves its output normed for the next.
  const bool ahead = saved == nullptr && !w.layers.empty();
  LayerSaved unkept;
  if (ahead) {
    unkept.normed = arena.make("layer.normed", t, {rows, c.hidden_size});
    unkept.r = arena.make("layer.r", accumulate_dtype(t), {rows});
    rms_norm(stream, unkept.normed, unkept.r, x, w.layers[0].input_norm, c.rms_norm_eps);
  }
  size_t attention = 0, delta = 0;
  for (size_t i = 0; i < w.layers.size(); i++) {
    const LayerMemory memory = memory_of(batch, w.layers[i].full_attention, attention, delta);
    LayerSaved& layer = saved != nullptr ? saved->layers[i] : unkept;
    if (keep_layers) {
      layer.moe.routing = make_routing(exec, c, rows, t);
      Tensor out = arena.make("model.x", t, {rows, c.hidden_size});
      layer_forward(exec, c, w.layers[i], out, x, batch, memory, true, false, layer);
      x = out;
    } else if (saved != nullptr) {
      layer.moe.routing = make_routing(exec, c, rows, t);
      Tensor out = arena.make("model.x", t, {rows, c.hidden_size});
      const Arena::Scope scope(arena);
      layer_forward(exec, c, w.layers[i], out, x, batch, memory, false, false, layer);
      x = out;
    } else {
      const Arena::Scope scope(arena);
      layer.moe.routing = make_routing(exec, c, rows, t);
      const bool last = i + 1 == w.layers.size();
      const NormAfter after{last ? hidden : layer.normed, layer.r, last ? w.final_norm : w.layers[i + 1].input_norm,
                            c.rms_norm_eps};
      layer_forward(exec, c, w.layers[i], other, x, batch, memory, false, false, layer, true, &after);
      std::swap(x, other);
    }
  }
  if (ahead) return hidden;
  Tensor r = arena.make("model.last_r", accumulate_dtype(t), {rows});
  rms_norm(stream, hidden, r, x, w.final_norm, c.rms_norm_eps);
  if (saved != nullptr) {
    saved->last = x;
    saved->last_r = r;
  }
  return hidden;
}

void model_backward(Exec& exec, const ModelConfig& c, const Weights& w, ModelSaved& saved, Tensor dhidden,
                    const Batch& batch, Weights& grads, const PartDone& done) {
  auto& [stream, arena] = exec;
  const Arena::Scope whole(arena);
  Tensor d = arena.make("model.d", w.dtype(), {dhidden.rows(), dhidden.dim(1)});
  set_zero(stream, d);
  rms_norm_backward(stream, d, grads.final_norm, dhidden, saved.last, w.final_norm, saved.last_r);
  if (done) done(norm_part(c));
  for (size_t i = w.layers.size(); i-- > 0;) {
    const Arena::Scope scope(arena);
    LayerSaved& layer = saved.layers[i];
    if (saved.recompute == Recompute::full) {
      Tensor out = arena.make("model.x", w.dtype(), {d.rows(), d.dim(1)});
      layer_forward(exec, c, w.layers[i], out, layer.input, batch, {}, true, true, layer);
    }
    layer_backward(exec, c, w.layers[i], layer, d, batch, grads.layers[i]);
    if (done) done(layer_part(i));
  }
  embed_backward(stream, grads.embed, d, batch.tokens);
  if (done) done(embed_part);
}

}  // namespace furlong
