// The bodies of the ops: one table per CPU instruction set and one for CUDA. A front door checks its arguments and
// calls through the table of its tensors' device and dtype.
#pragma once
#include "ops/adamw.h"
#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/delta_rule.h"
#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/loss.h"
#include "ops/moe.h"
#include "ops/norm.h"
#include "ops/packs.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/rope.h"
#include "ops/sample.h"
#include "ops/swiglu.h"

namespace furlong {

struct OpTable {
  const char* isa;  // "portable", "avx2", "avx512", "avx512bf16" or "cuda"
  decltype(&furlong::rms_norm) rms_norm;
  decltype(&furlong::add_rms_norm) add_rms_norm;
  decltype(&furlong::rms_norm_backward) rms_norm_backward;
  decltype(&furlong::gated_rms_norm) gated_rms_norm;
  decltype(&furlong::gated_rms_norm_backward) gated_rms_norm_backward;
  decltype(&furlong::linear) linear;
  decltype(&furlong::linear_many) linear_many;
  decltype(&furlong::linear_swiglu) linear_swiglu;
  decltype(&furlong::linear_dx) linear_dx;
  decltype(&furlong::linear_dw) linear_dw;
  decltype(&furlong::grouped_linear) grouped_linear;
  decltype(&furlong::grouped_swiglu) grouped_swiglu;
  decltype(&furlong::grouped_mlp) grouped_mlp;
  decltype(&furlong::grouped_linear_dx) grouped_linear_dx;
  decltype(&furlong::grouped_linear_dw) grouped_linear_dw;
  decltype(&furlong::packed_bytes) packed_bytes;  // of CPUs only
  decltype(&furlong::pack_weight) pack_weight;    //
  decltype(&furlong::norm_rope) norm_rope;
  decltype(&furlong::norm_rope_both) norm_rope_both;
  decltype(&furlong::norm_rope_backward) norm_rope_backward;
  decltype(&furlong::attention) attention;
  decltype(&furlong::attention_backward) attention_backward;
  decltype(&furlong::attention_gate) attention_gate;
  decltype(&furlong::attention_gate_backward) attention_gate_backward;
  decltype(&furlong::conv_silu) conv_silu;
  decltype(&furlong::conv_silu_backward) conv_silu_backward;
  decltype(&furlong::delta_gates) delta_gates;
  decltype(&furlong::delta_gates_backward) delta_gates_backward;
  decltype(&furlong::delta_rule) delta_rule;
  decltype(&furlong::delta_core) delta_core;
  decltype(&furlong::delta_rule_backward) delta_rule_backward;
  decltype(&furlong::delta_commit) delta_commit;
  decltype(&furlong::route) route;
  decltype(&furlong::sort_by_expert) sort_by_expert;
  decltype(&furlong::route_rows) route_rows;
  decltype(&furlong::route_backward) route_backward;
  decltype(&furlong::gather_rows) gather_rows;
  decltype(&furlong::gather_rows_backward) gather_rows_backward;
  decltype(&furlong::combine) combine;
  decltype(&furlong::combine_norm) combine_norm;
  decltype(&furlong::combine_backward) combine_backward;
  decltype(&furlong::routing_weight_gradient) routing_weight_gradient;
  decltype(&furlong::scale_rows) scale_rows;
  decltype(&furlong::route_to_ranks) route_to_ranks;
  decltype(&furlong::swiglu) swiglu;
  decltype(&furlong::swiglu_backward) swiglu_backward;
  decltype(&furlong::embed) embed;
  decltype(&furlong::embed_backward) embed_backward;
  decltype(&furlong::scatter_rows) scatter_rows;
  decltype(&furlong::log_prob) log_prob;
  decltype(&furlong::log_prob_backward) log_prob_backward;
  decltype(&furlong::add) add;
  decltype(&furlong::convert) convert;
  decltype(&furlong::sum_of_squares) sum_of_squares;
  decltype(&furlong::all_finite) all_finite;
  decltype(&furlong::scale) scale;
  decltype(&furlong::set_zero) set_zero;
  decltype(&furlong::adamw) adamw;
  decltype(&furlong::sample) sample;
  decltype(&furlong::random_normal) random_normal;
};

namespace cpu {
// The table for tensors of this dtype: the best set this machine runs; float64 (gradient checks) has one of its own.
const OpTable& ops(DType dtype);
// Every table this machine can run, best first, for parity tests.
const std::vector<const OpTable*>& all_ops();
}  // namespace cpu

namespace cuda {
// The table for tensors on a CUDA device (f32 and bf16). Throws Error(Exit::resources) in a build without CUDA.
const OpTable& ops();
}  // namespace cuda

// The table for a tensor.
inline const OpTable& body_of(Device device, DType dtype) {
  return device == Device::cuda ? cuda::ops() : cpu::ops(dtype);
}

}  // namespace furlong
