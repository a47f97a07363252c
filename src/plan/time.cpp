#include "plan/time.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "ops/delta_rule.h"

namespace furlong {
namespace {

constexpr double acceptance[] = {0.85, 0.75, 0.65, 0.6};
// Bytes that AdamW moves for a parameter: gradient, master and two moments in fp32, three of them written again, and
// the weight.
constexpr double adam_bytes = 30;

// Experts of a layer that n tokens touch, when routing is even and independent.
double touched(const ModelConfig& c, double tokens) {
  if (c.dense()) return 0;
  const double part = static_cast<double>(c.experts_per_token) / static_cast<double>(c.num_experts);
  return static_cast<double>(c.num_experts) * (1 - std::pow(1 - part, tokens));
}

// Ranks of the expert-parallel group, other than its own, that a token's experts lie on.
double remote_ranks(const ModelConfig& c, const PlanLayout& l) {
  if (l.expert <= 1) return 0;
  double untouched = 1;  // C(E - E/n, k) / C(E, k)
  const double e = static_cast<double>(c.num_experts), n = static_cast<double>(l.expert);
  for (int64_t i = 0; i < c.experts_per_token; i++) {
    untouched *= (e - e / n - static_cast<double>(i)) / (e - static_cast<double>(i));
  }
  return (n - 1) * (1 - untouched);
}

// Of a token, forward and backward without a head.
double trunk_flops(const TimeInputs& in, const ModelCost& m, double length) {
  const double core = m.attention_flops * length / 2, layers = m.linear_flops + m.delta_flops;
  return 3 * layers + 3.5 * core + (in.recompute ? layers + core : 0);
}

double train_flops(const TimeInputs& in, const ModelCost& m, double length) {
  double flops = trunk_flops(in, m, length) + 3 * m.head_flops;
  if (in.mtp) {
    // The MTP layer forward and backward; its head gives no gradient to the head's weights.
    const double k = static_cast<double>(in.model.experts_per_token);
    flops += 3 * 2 * (m.mtp_dense + k * m.mtp_expert) + 2 * m.head_flops;
  }
  return flops;
}

}  // namespace

Machine machine_h100() { return {.name = "H100", .memory = 3.0e12, .flops = 798e12, .nominal = 989.4e12}; }
Machine machine_h200() { return {.name = "H200", .memory = 4.3e12, .flops = 790e12, .nominal = 989.4e12}; }
Machine machine_cpu(DType dtype, int64_t cores) {
  const double pairs = static_cast<double>(cores) / 2;
  return {.name = fmt::format("{} CPU core{} (Zen 4)", cores, cores == 1 ? "" : "s"),
          .memory = pairs * 43e9,
          .flops = pairs * (dtype == DType::bf16 ? 456e9 : 229e9),
          .host_memory = pairs * 43e9};
}

ModelCost model_cost(const ModelConfig& c, DType dtype) {
  ModelCost m;
  const auto d = [](int64_t x) { return static_cast<double>(x); };
  const double h = d(c.hidden_size), queries = d(c.num_heads * c.head_dim), keys = d(c.num_kv_heads * c.head_dim);
  const double attention = h * queries * 2 + 2 * h * keys + queries * h;
  const double delta = h * d(c.conv_dim()) + 2 * h * d(c.value_dim()) + 2 * h * d(c.linear_num_value_heads);
  // A dense network stands where the shared expert does.
  const double shared = 3 * h * d(c.dense() ? c.intermediate_size : c.shared_intermediate_size) + (c.dense() ? 0 : h);
  const double router = d(c.num_experts) * h;
  const double one_expert = 3 * h * d(c.moe_intermediate_size);
  const double na = d(c.num_attention_layers()), nd = d(c.num_delta_layers()), n = d(c.num_layers);
  m.dense = na * attention + nd * (delta + d(c.conv_dim() * c.conv_kernel)) + n * (shared + router + 2 * h);
  m.expert = n * one_expert;
  m.head = d(c.vocab_size) * h;
  if (c.mtp_num_layers > 0) {
    m.mtp_dense = attention + shared + router + 5 * h + 2 * h * h;
    m.mtp_expert = one_expert;
  }
  m.linear_flops = 2 * (na * attention + nd * delta + n * (shared + router + d(c.experts_per_token) * one_expert));
  const double dk = d(c.linear_key_head_dim), dv = d(c.linear_value_head_dim), chunk = delta_chunk;
  m.delta_flops = nd * d(c.linear_num_value_heads) * (6 * dk * dv + 5 * chunk * (dk + dv) + 2 * chunk * chunk);
  m.attention_flops = na * 4 * queries;
  m.head_flops = 2 * m.head;
  const double bytes = d(static_cast<int64_t>(size_of(dtype)));
  m.kv_bytes = na * 2 * keys * bytes;
  m.state_bytes = nd * d(c.linear_num_value_heads) * dk * dv * 4;
  m.window_bytes = nd * d(c.conv_dim() * (c.conv_kernel - 1)) * bytes;
  return m;
}

SequenceFlops sequence_flops(const ModelConfig& c, const ModelCost& m, int64_t tokens, int64_t response, bool mtp) {
  const double n = static_cast<double>(tokens), rows = static_cast<double>(response);
  SequenceFlops flops;
  flops.forward = n * (m.linear_flops + m.delta_flops) + n * n * m.attention_flops / 2 + rows * m.head_flops;
  flops.training = 3 * flops.forward;
  if (mtp) {
    // One layer with attention and its head, whose weights get no gradient from it.
    const double layer = 2 * (m.mtp_dense + static_cast<double>(c.experts_per_token) * m.mtp_expert);
    const double core = m.attention_flops / static_cast<double>(std::max<int64_t>(1, c.num_attention_layers()));
    flops.training += 3 * (n * layer + n * n * core / 2) + 2 * rows * m.head_flops;
  }
  return flops;
}

double accept_length(int64_t drafts) {
  double length = 1, all = 1;
  for (int64_t i = 0; i < drafts; i++) {
    all *= acceptance[std::min<int64_t>(i, std::ssize(acceptance) - 1)];
    length += all;
  }
  return length;
}

double decode_step_seconds(const TimeInputs& in, double batch, double context) {
  const ModelCost m = model_cost(in.model, in.dtype);
  const double weight = static_cast<double>(size_of(in.dtype)), tensor = static_cast<double>(in.layout.tensor);
  const double expert_ranks = static_cast<double>(in.layout.expert * in.layout.expert_tensor);
  const double rows = 1 + static_cast<double>(in.drafts), drafts = static_cast<double>(in.drafts);
  // The experts of one rank serve the tokens of all ranks of its group.
  const auto experts = [&](double tokens) {
    return touched(in.model, tokens * static_cast<double>(in.layout.expert)) / expert_ranks;
  };
  double bytes = weight * ((m.dense + m.head) / tensor + m.expert * experts(batch * rows));
  bytes += batch * (context * m.kv_bytes / tensor + 2 * (m.state_bytes + m.window_bytes) / tensor + rows * m.kv_bytes);
  const double mtp_cache = static_cast<double>(2 * in.model.num_kv_heads * in.model.head_dim) * weight;
  bytes += drafts *
           (weight * ((m.mtp_dense + m.head) / tensor + m.mtp_expert * experts(batch)) + batch * context * mtp_cache);
  const double flops = batch * rows * (m.forward(0) + m.attention_flops * context) / tensor;
  return std::max(bytes / in.machine.memory, flops / in.machine.flops);
}

std::vector<PhaseTime> step_times(const TimeInputs& in) {
  std::vector<PhaseTime> out;
  const ModelCost m = model_cost(in.model, in.dtype);
  const double gpus = static_cast<double>(in.layout.gpus), length = static_cast<double>(in.prompt + in.response);
  const double weight = static_cast<double>(size_of(in.dtype));
  if (in.rolls && in.response > 0 && in.sequences > 0) {
    const double each = std::ceil(static_cast<double>(in.sequences) / static_cast<double>(in.layout.data()));
    const double running = std::clamp(static_cast<double>(in.running), 1.0, each);
    const double context = static_cast<double>(in.prompt) + static_cast<double>(in.response) / 2;
    const double steps = static_cast<double>(in.response) / (in.accept > 0 ? in.accept : accept_length(in.drafts));
    const double read = static_cast<double>(in.prompts * in.prompt) * m.forward(static_cast<double>(in.prompt));
    out.push_back({"rollout: prompts", read / gpus / in.machine.flops});
    out.push_back({"rollout: decode", steps * std::ceil(each / running) * decode_step_seconds(in, running, context)});
  }
  const double tokens = static_cast<double>(in.sequences) * length;
  const double exchange = tokens / gpus * static_cast<double>(in.model.num_layers) * remote_ranks(in.model, in.layout) *
                          static_cast<double>(in.model.hidden_size) * weight / in.machine.device_link;
  for (int64_t pass = 0; pass < in.passes; pass++) {
    out.push_back({"log-prob pass", tokens * m.forward(length) / gpus / in.machine.flops + 2 * exchange});
  }
  if (!in.trains) return out;
  // A critic's head has one output.
  const double values = tokens * (m.forward(length) - m.head_flops) / gpus / in.machine.flops;
  if (in.critic) out.push_back({"critic: values", values + 2 * exchange});
  const RankSize rank = size_of_rank(in.model, in.layout, in.dtype);
  const double numbers = static_cast<double>(rank.dense + rank.experts);
  const double packs = std::ceil(tokens / gpus / static_cast<double>(std::max<int64_t>(1, in.micro_tokens)));
  // Every micro-batch reads the weights in each pass and adds to the gradients in fp32.
  const double moved = packs * numbers * ((in.recompute ? 3 : 2) * weight + 8);
  const double flops = tokens * train_flops(in, m, length) / gpus;
  if (in.critic) {
    const double own = tokens * trunk_flops(in, m, length) / gpus;
    out.push_back({"critic: forward and backward",
                   std::max(own / in.machine.flops, moved / in.machine.memory) + (in.recompute ? 6 : 4) * exchange});
  }
  out.push_back({"training: forward and backward", std::max(flops / in.machine.flops, moved / in.machine.memory)});
  if (exchange > 0) out.push_back({"training: expert exchange", (in.recompute ? 6 : 4) * exchange});
  // Optimizer state is spread over the ranks that hold the same weights.
  const double state = static_cast<double>(rank.dense) / static_cast<double>(in.layout.data() * in.layout.context) +
                       static_cast<double>(rank.experts) / static_cast<double>(in.layout.expert_data());
  double update = state * adam_bytes / in.machine.memory;
  if (in.offload) {
    const double on_a_host = std::min(gpus, 8.0);
    update = std::max(state * 4 / in.machine.host_link, on_a_host * state * adam_bytes / in.machine.host_memory);
  }
  if (in.critic) out.push_back({"critic: AdamW", static_cast<double>(in.steps) * update});
  out.push_back({in.offload ? "AdamW on the host" : "AdamW", static_cast<double>(in.steps) * update});
  return out;
}

}  // namespace furlong
