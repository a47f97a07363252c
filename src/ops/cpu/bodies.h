// The CPU bodies of one instruction set, as declared to each other and to its table, and how they take a dtype.
#pragma once
#include "ops/cpu/simd.h"
#include "ops/table.h"

namespace furlong::cpu::FURLONG_ISA {

// Calls f.template operator()<T>() for the element type of a dtype.
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f.template operator()<bf16>();
  if constexpr (has_f64) {
    if (dtype == DType::f64) return f.template operator()<double>();
  }
  CHECK(dtype == DType::f32, "no {} body in this instruction set", name_of(dtype));
  return f.template operator()<float>();
}

// Work below which a second thread costs more than it brings, in multiply-adds.
constexpr int64_t serial_work = 30000;

void rms_norm(Stream&, Tensor y, Tensor r, Tensor x, Tensor w, double eps);
void add_rms_norm(Stream&, Tensor y, Tensor r, Tensor x, Tensor d, Tensor w, double eps);
void rms_norm_backward(Stream&, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r);
void gated_rms_norm(Stream&, Tensor y, Tensor r, Tensor o, Tensor z, Tensor w, double eps);
void gated_rms_norm_backward(Stream&, Tensor do_, Tensor dz, Tensor dw, Tensor dy, Tensor o, Tensor z, Tensor w,
                             Tensor r);
void linear(Stream&, Tensor y, Tensor x, Tensor w);
void linear_many(Stream&, Tensor x, std::initializer_list<LinearOf>);
void linear_swiglu(Stream&, Tensor y, Tensor gate_up, Tensor x, Tensor w_gate, Tensor w_up,
                   std::initializer_list<LinearOf> others);
void linear_dx(Stream&, Tensor dx, Tensor dy, Tensor w, bool accumulate);
void linear_dw(Stream&, Tensor dw, Tensor dy, Tensor x);
void grouped_linear(Stream&, Tensor y, Tensor x, Tensor w, Tensor offsets);
void grouped_swiglu(Stream&, Tensor y, Tensor gate_up, Tensor x, Tensor w, Tensor offsets);
void grouped_mlp(Stream&, const GroupedMlp&, Tensor y, Tensor x, Tensor w);
void grouped_linear_dx(Stream&, Tensor dx, Tensor dy, Tensor w, Tensor offsets);
void grouped_linear_dw(Stream&, Tensor dw, Tensor dy, Tensor x, Tensor offsets);
size_t packed_bytes(const Tensor& w);
void pack_weight(Stream&, void* to, Tensor w);
void norm_rope(Stream&, Tensor y, Tensor r, Tensor x, Tensor w, Tensor positions, const RopeShape&);
void norm_rope_both(Stream&, const RopeOf& queries, const RopeOf& keys, Tensor positions);
void norm_rope_backward(Stream&, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r, Tensor positions,
                        const RopeShape&);
void attention(Stream&, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, const Segments&, const KvPages&,
               const AttentionShape&);
void attention_backward(Stream&, Tensor dq, Tensor dk, Tensor dv, Tensor do_, Tensor q, Tensor k, Tensor v, Tensor o,
                        Tensor lse, const Segments&, const AttentionShape&);
void attention_gate(Stream&, Tensor a, Tensor o, Tensor x, const AttentionShape&);
void attention_gate_backward(Stream&, Tensor do_, Tensor dx, Tensor da, Tensor o, Tensor x, const AttentionShape&);
void conv_silu(Stream&, Tensor y, Tensor x, Tensor w, const Segments&, const DeltaSlots&);
void conv_silu_backward(Stream&, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, const Segments&);
void delta_gates(Stream&, Tensor g, Tensor beta, Tensor a, Tensor b, Tensor A_log, Tensor dt_bias);
void delta_gates_backward(Stream&, Tensor da, Tensor db, Tensor dA_log, Tensor ddt_bias, Tensor dg, Tensor dbeta,
                          Tensor g, Tensor beta, Tensor a, Tensor A_log, Tensor dt_bias);
void delta_rule(Stream&, Tensor o, Tensor x, Tensor g, Tensor beta, Tensor state0, Tensor state1, const Segments&,
                const DeltaSlots&, const DeltaSaved& saved, const DeltaShape&);
void delta_core(Stream&, Tensor y, const DeltaCore&, const Segments&, const DeltaSlots&, const DeltaSaved& saved,
                const DeltaShape&);
void delta_rule_backward(Stream&, Tensor dx, Tensor dg, Tensor dbeta, Tensor dstate0, Tensor do_, Tensor dstate1,
                         Tensor x, Tensor g, Tensor beta, const Segments&, const DeltaSaved&, const DeltaShape&);
void delta_commit(Stream&, const std::vector<DeltaSlots>&, Tensor slots, Tensor before, Tensor after,
                  const DeltaShape&);
void route(Stream&, const Routing&, Tensor logits);
void sort_by_expert(Stream&, const Routing&, int64_t first, int64_t experts);
void route_rows(Stream&, const Routing&, Tensor rows, Tensor x, Tensor logits);
void route_backward(Stream&, Tensor dlogits, Tensor dweights, const Routing&);
void gather_rows(Stream&, Tensor rows, Tensor x, const Routing&);
void gather_rows_backward(Stream&, Tensor dx, Tensor drows, const Routing&);
void combine(Stream&, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual, const Routing&);
void combine_norm(Stream&, Tensor y, Tensor rows, Tensor shared, Tensor shared_logit, Tensor residual, const Routing&,
                  const NormAfter&);
void combine_backward(Stream&, Tensor dshared, Tensor dshared_logit, Tensor dy, Tensor shared, Tensor shared_logit);
void routing_weight_gradient(Stream&, Tensor dweights, Tensor da, Tensor a, const Routing&);
void scale_rows(Stream&, Tensor rows, const Routing&);
void route_to_ranks(Stream&, Tensor row_of, Tensor weights);
void swiglu(Stream&, Tensor y, Tensor gate_up);
void swiglu_backward(Stream&, Tensor dgate_up, Tensor dy, Tensor gate_up);
void embed(Stream&, Tensor x, Tensor tokens, Tensor table, int64_t first, int64_t vocabulary);
void embed_backward(Stream&, Tensor dtable, Tensor dx, Tensor tokens, int64_t first, int64_t vocabulary);
void scatter_rows(Stream&, Tensor x, Tensor rows, Tensor index);
void log_prob(Stream&, Tensor log_prob, Tensor lse, Tensor entropy, Tensor logits, Tensor targets, double temperature);
void log_prob_backward(Stream&, Tensor logits, Tensor d_log_prob, Tensor d_entropy, Tensor lse, Tensor entropy,
                       Tensor targets, double temperature);
void add(Stream&, Tensor y, Tensor x);
void convert(Stream&, Tensor y, Tensor x);
double sum_of_squares(Stream&, Tensor x);
bool all_finite(Stream&, Tensor x);
void scale(Stream&, Tensor x, double factor);
void set_zero(Stream&, Tensor x);
void adamw(Stream&, Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamParams&);
void random_normal(Stream&, Tensor x, const RngKey& key, double scale, int64_t first, int64_t stride);
void sample(Stream&, Tensor tokens, Tensor log_probs, Tensor logits, const std::vector<SampleRow>& rows);

}  // namespace furlong::cpu::FURLONG_ISA
