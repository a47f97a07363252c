#include "model/mtp.h"

#include "model/embedding.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/reduce.h"

namespace furlong {

Tensor mtp_forward(Exec& exec, const ModelConfig& c, const Weights& w, Tensor hidden, Tensor next_tokens,
                   const Batch& given, const KvPages& pages, MtpSaved* kept) {
  CHECK(!w.mtp.empty(), "this model has no MTP head");
  auto& [stream, arena, mesh] = exec;
  const Batch batch = with_expert_rows(exec, given);
  const MtpWeights& m = w.mtp.front();
  const int64_t rows = hidden.rows(), h = c.hidden_size;
  const DType t = w.dtype(), acc = accumulate_dtype(t);
  MtpSaved unkept;
  MtpSaved& saved = kept != nullptr ? *kept : unkept;
  Tensor out = arena.make("mtp.out", t, {rows, h});
  saved.hidden = hidden;
  saved.embedded = arena.make("mtp.embedded", t, {rows, h});
  embed_here(exec, c, w.embed, saved.embedded, next_tokens);
  saved.joined = arena.make("mtp.joined", t, {rows, 2 * h});
  saved.embedded_r = arena.make("mtp.embedded_r", acc, {rows});
  saved.hidden_r = arena.make("mtp.hidden_r", acc, {rows});
  rms_norm(stream, saved.joined.columns(0, h), saved.embedded_r, saved.embedded, m.norm_embedding, c.rms_norm_eps);
  rms_norm(stream, saved.joined.columns(h, 2 * h), saved.hidden_r, hidden, m.norm_hidden, c.rms_norm_eps);
  saved.x = arena.make("mtp.x", t, {rows, h});
  linear(stream, saved.x, saved.joined, m.fc);
  if (!c.dense()) saved.layer.moe.routing = make_routing(exec, c, rows, t);
  saved.last = arena.make("mtp.last", t, {rows, h});
  layer_forward(exec, c, m.layer, saved.last, saved.x, batch, {.pages = pages, .slots = {}}, kept != nullptr,
                Routed::here, saved.layer);
  saved.last_r = arena.make("mtp.last_r", acc, {rows});
  rms_norm(stream, out, saved.last_r, saved.last, m.norm, c.rms_norm_eps);
  return out;
}

void mtp_backward(Exec& exec, const ModelConfig& c, const Weights& w, const MtpSaved& saved, Tensor dm,
                  const Batch& batch, Weights& grads) {
  auto& [stream, arena, mesh] = exec;
  const Arena::Scope scope(arena);
  const MtpWeights& m = w.mtp.front();
  MtpWeights& dw = grads.mtp.front();
  const int64_t rows = dm.rows(), h = c.hidden_size;
  Tensor d = arena.make("mtp.d", w.dtype(), {rows, h});
  set_zero(stream, d);
  rms_norm_backward(stream, d, dw.norm, dm, saved.last, m.norm, saved.last_r);
  layer_backward(exec, c, m.layer, saved.layer, d, batch, dw.layer);
  linear_dw(stream, dw.fc, d, saved.joined);
  Tensor djoined = arena.make("mtp.djoined", w.dtype(), {rows, 2 * h});
  linear_dx(stream, djoined, d, m.fc, false);
  // The inputs are constants; their gradients are formed only because the norm's weight gradient comes with them.
  Tensor unused = arena.make("mtp.unused", w.dtype(), {rows, h});
  set_zero(stream, unused);
  rms_norm_backward(stream, unused, dw.norm_embedding, djoined.columns(0, h), saved.embedded, m.norm_embedding,
                    saved.embedded_r);
  rms_norm_backward(stream, unused, dw.norm_hidden, djoined.columns(h, 2 * h), saved.hidden, m.norm_hidden,
                    saved.hidden_r);
}

}  // namespace furlong
