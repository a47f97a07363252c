#include "ops/delta_rule.h"

#include "ops/front.h"

namespace furlong {
namespace {

void check(const char* op, const Tensor& o, const Tensor& x, const Tensor& g, const Tensor& beta,
           const Segments& segments, const DeltaSaved& saved, const DeltaShape& s) {
  front::expect(x.rank() == 2 && x.dim(1) == 2 * s.key_heads * s.key_dim + s.value_heads * s.value_dim &&
                    o.rows() == x.rows() && o.row_size() == s.value_heads * s.value_dim && g.rows() == x.rows() &&
                    g.dim(1) == s.value_heads && beta.same_shape(g) && segments.positions.rows() == x.rows() &&
                    s.value_heads % s.key_heads == 0,
                op, "o (T, Vh·Dv), x (T, 2·Kh·Dk + Vh·Dv), g and beta (T, Vh) wanted", {o, x, g, beta});
  front::expect(saved.q.defined() && saved.k.defined() && saved.q_r.defined() && saved.k_r.defined() &&
                    saved.u.defined() && saved.gamma.defined() && saved.u.rows() == x.rows(),
                op, "the intermediates q, k, q_r, k_r, u, gamma wanted", {saved.q, saved.k, saved.u, saved.gamma});
}

}  // namespace

DType delta_rings(Device device, DType model, const DeltaShape& s) {
  const bool chunks = device == Device::cuda && model == DType::bf16 && s.key_dim == 128 && s.value_dim == 128;
  return chunks ? DType::bf16 : DType::f32;
}

int64_t delta_chunks(const Segments& segments) {
  if (segments.chunks >= 0) return segments.chunks;
  int64_t chunks = 0;
  const int32_t* starts = segments.starts.as<int32_t>();
  const int32_t* positions = segments.positions.as<int32_t>();
  for (int64_t s = 0; s < segments.count(); s++) {
    if (starts[s] == starts[s + 1]) continue;
    chunks += positions[starts[s + 1] - 1] / delta_chunk - positions[starts[s]] / delta_chunk + 1;
  }
  return chunks;
}

void delta_gates(Stream& stream, Tensor g, Tensor beta, Tensor a, Tensor b, Tensor A_log, Tensor dt_bias) {
  front::expect(g.same_shape(beta) && g.same_shape(a) && a.same_shape(b) && A_log.rows() == g.dim(1) &&
                    dt_bias.rows() == g.dim(1),
                "delta_gates", "g, beta, a, b (T,Vh), A_log and dt_bias (Vh) wanted", {g, beta, a, b, A_log, dt_bias});
  if (front::skip(stream, g)) return;
  front::body(a).delta_gates(stream, g, beta, a, b, A_log, dt_bias);
}

void delta_gates_backward(Stream& stream, Tensor da, Tensor db, Tensor dA_log, Tensor ddt_bias, Tensor dg, Tensor dbeta,
                          Tensor g, Tensor beta, Tensor a, Tensor A_log, Tensor dt_bias) {
  front::expect(da.same_shape(a) && db.same_shape(a) && dg.same_shape(g) && dbeta.same_shape(beta) &&
                    dA_log.same_shape(A_log) && ddt_bias.same_shape(dt_bias),
                "delta_gates_backward", "gradients shaped as their values wanted",
                {da, db, dg, dbeta, dA_log, ddt_bias});
  if (front::skip(stream, g)) return;
  front::body(a).delta_gates_backward(stream, da, db, dA_log, ddt_bias, dg, dbeta, g, beta, a, A_log, dt_bias);
}

void delta_rule(Stream& stream, Tensor o, Tensor x, Tensor g, Tensor beta, Tensor state0, Tensor state1,
                const Segments& segments, const DeltaSlots& slots, const DeltaSaved& saved, const DeltaShape& shape) {
  check("delta_rule", o, x, g, beta, segments, saved, shape);
  front::expect(!slots.defined() || slots.slots.rows() == segments.count(), "delta_rule", "a slot per segment wanted",
                {slots.state, slots.slots});
  if (front::skip(stream, o)) return;
  front::body(x).delta_rule(stream, o, x, g, beta, state0, state1, segments, slots, saved, shape);
}

void delta_core(Stream& stream, Tensor y, const DeltaCore& core, const Segments& segments, const DeltaSlots& slots,
                const DeltaSaved& saved, const DeltaShape& shape) {
  check("delta_core", core.o, core.mixed, core.g, core.beta, segments, saved, shape);
  front::expect(core.qkv.same_shape(core.mixed) && core.a.same_shape(core.g) && core.b.same_shape(core.g) &&
                    y.same_shape(core.o) && core.z.same_shape(core.o) && core.conv.rows() == core.qkv.dim(1) &&
                    core.A_log.rows() == shape.value_heads && core.dt_bias.rows() == shape.value_heads &&
                    core.norm.rows() == shape.value_dim && core.o_r.numel() == y.rows() * shape.value_heads,
                "delta_core", "qkv as mixed, a and b as g, y and z as o, and their weights wanted",
                {y, core.qkv, core.z, core.a, core.b, core.conv, core.norm});
  front::expect(!slots.defined() || (slots.slots.rows() == segments.count() && slots.window.rank() == 3 &&
                                     slots.window.dim(2) == core.qkv.dim(1) &&
                                     slots.window.dim(1) >= core.conv.dim(2) - 1 && slots.window.dtype() == y.dtype()),
                "delta_core", "a window (slots, at least taps - 1, C) and a slot per segment wanted",
                {slots.window, slots.slots});
  if (front::skip(stream, y)) return;
  front::body(y).delta_core(stream, y, core, segments, slots, saved, shape);
}

void delta_rule_backward(Stream& stream, Tensor dx, Tensor dg, Tensor dbeta, Tensor dstate0, Tensor do_, Tensor dstate1,
                         Tensor x, Tensor g, Tensor beta, const Segments& segments, const DeltaSaved& saved,
                         const DeltaShape& shape) {
  check("delta_rule_backward", do_, x, g, beta, segments, saved, shape);
  front::expect(dx.same_shape(x) && dg.same_shape(g) && dbeta.same_shape(beta) && saved.states.defined(),
                "delta_rule_backward", "gradients shaped as their values and the saved states wanted", {dx, dg, dbeta});
  if (front::skip(stream, dx)) return;
  front::body(x).delta_rule_backward(stream, dx, dg, dbeta, dstate0, do_, dstate1, x, g, beta, segments, saved, shape);
}

void delta_commit(Stream& stream, const std::vector<DeltaSlots>& layers, Tensor slots, Tensor before, Tensor after,
                  const DeltaShape& shape) {
  front::expect(before.same_shape(after) && before.same_shape(slots), "delta_commit",
                "slots, before and after (S) wanted", {slots, before, after});
  if (front::skip(stream, before) || layers.empty()) return;
  for (const DeltaSlots& layer : layers) {
    front::expect(layer.state.same_shape(layers.front().state) && layer.ring_k.same_shape(layers.front().ring_k),
                  "delta_commit", "layers of the same sizes wanted", {layer.state, layer.ring_k});
  }
  front::body(layers.front().state).delta_commit(stream, layers, slots, before, after, shape);
}

}  // namespace furlong
