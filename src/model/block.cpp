#include "model/block.h"

#include "ops/norm.h"

namespace furlong {

void layer_forward(Exec& exec, const ModelConfig& c, const LayerWeights& w, Tensor out, Tensor x, const Batch& batch,
                   const LayerMemory& memory, bool keep, Routed routed, LayerSaved& saved, bool normed,
                   const NormAfter* after) {
  auto& [stream, arena, mesh] = exec;
  const int64_t rows = x.rows();
  const DType t = x.dtype(), acc = accumulate_dtype(t);
  saved.input = x;
  if (!normed) {
    saved.normed = arena.make("layer.normed", t, {rows, c.hidden_size});
    saved.r = arena.make("layer.r", acc, {rows});
    rms_norm(stream, saved.normed, saved.r, x, w.input_norm, c.rms_norm_eps);
  }
  saved.mid = w.full_attention
                  ? attention_forward(exec, c, w.attention, saved.normed, batch, memory.pages, saved.attention)
                  : delta_net_forward(exec, c, w.delta, saved.normed, batch, memory.slots, keep, saved.delta);
  saved.mid_normed = arena.make("layer.mid_normed", t, {rows, c.hidden_size});
  saved.mid_r = arena.make("layer.mid_r", acc, {rows});
  add_rms_norm(stream, saved.mid_normed, saved.mid_r, saved.mid, x, w.post_norm, c.rms_norm_eps);
  if (c.dense()) {
    mlp_forward(exec, c, w.mlp, out, saved.mid_normed, saved.mid, batch, saved.mlp, after);
  } else {
    moe_forward(exec, c, w.moe, out, saved.mid_normed, saved.mid, batch, routed, saved.moe, after);
  }
}

void layer_backward(Exec& exec, const ModelConfig& c, const LayerWeights& w, const LayerSaved& saved, Tensor d,
                    const Batch& batch, LayerWeights& grads) {
  auto& [stream, arena, mesh] = exec;
  {
    const Arena::Scope scope(arena);
    const Tensor dnormed = c.dense() ? mlp_backward(exec, c, w.mlp, saved.mlp, d, batch, grads.mlp)
                                     : moe_backward(exec, c, w.moe, saved.moe, d, grads.moe);
    rms_norm_backward(stream, d, grads.post_norm, dnormed, saved.mid, w.post_norm, saved.mid_r);
  }
  const Arena::Scope scope(arena);
  const Tensor dnormed = w.full_attention
                             ? attention_backward(exec, c, w.attention, saved.attention, d, batch, grads.attention)
                             : delta_net_backward(exec, c, w.delta, saved.delta, d, batch, grads.delta);
  rms_norm_backward(stream, d, grads.input_norm, dnormed, saved.input, w.input_norm, saved.r);
}

}  // namespace furlong
