#include "ops/table.h"

#include "ops/cpu/bodies.h"

namespace furlong::cpu {
namespace FURLONG_ISA {

#if defined(__AVX512BF16__)
constexpr const char* isa = "avx512bf16";
#else
constexpr const char* isa = vector_bytes == 64 ? "avx512" : vector_bytes == 32 ? "avx2" : "portable";
#endif

extern const OpTable table;
const OpTable table = {
    .isa = isa,
    .rms_norm = rms_norm,
    .add_rms_norm = add_rms_norm,
    .rms_norm_backward = rms_norm_backward,
    .gated_rms_norm = gated_rms_norm,
    .gated_rms_norm_backward = gated_rms_norm_backward,
    .linear = linear,
    .linear_many = linear_many,
    .linear_swiglu = linear_swiglu,
    .linear_dx = linear_dx,
    .linear_dw = linear_dw,
    .grouped_linear = grouped_linear,
    .grouped_swiglu = grouped_swiglu,
    .grouped_mlp = grouped_mlp,
    .grouped_linear_dx = grouped_linear_dx,
    .grouped_linear_dw = grouped_linear_dw,
    .packed_bytes = packed_bytes,
    .pack_weight = pack_weight,
    .norm_rope = norm_rope,
    .norm_rope_both = norm_rope_both,
    .norm_rope_backward = norm_rope_backward,
    .attention = attention,
    .attention_backward = attention_backward,
    .attention_gate = attention_gate,
    .attention_gate_backward = attention_gate_backward,
    .conv_silu = conv_silu,
    .conv_silu_backward = conv_silu_backward,
    .delta_gates = delta_gates,
    .delta_gates_backward = delta_gates_backward,
    .delta_rule = delta_rule,
    .delta_core = delta_core,
    .delta_rule_backward = delta_rule_backward,
    .delta_commit = delta_commit,
    .route = route,
    .sort_by_expert = sort_by_expert,
    .route_rows = route_rows,
    .route_backward = route_backward,
    .gather_rows = gather_rows,
    .gather_rows_backward = gather_rows_backward,
    .combine = combine,
    .combine_norm = combine_norm,
    .combine_backward = combine_backward,
    .routing_weight_gradient = routing_weight_gradient,
    .scale_rows = scale_rows,
    .route_to_ranks = route_to_ranks,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
    .embed = embed,
    .embed_backward = embed_backward,
    .scatter_rows = scatter_rows,
    .log_prob = log_prob,
    .log_prob_backward = log_prob_backward,
    .add = add,
    .convert = convert,
    .sum_of_squares = sum_of_squares,
    .all_finite = all_finite,
    .scale = scale,
    .set_zero = set_zero,
    .adamw = adamw,
    .sample = sample,
    .random_normal = random_normal,
};

}  // namespace FURLONG_ISA
}  // namespace furlong::cpu
