#include <algorithm>

#include "cases.h"

namespace furlong::test {
namespace {

std::string join(const std::vector<int32_t>& lengths) {
  std::string text;
  for (const int32_t n : lengths) text += fmt::format("{}{}", text.empty() ? "" : "+", n);
  return text;
}

struct Sequences {
  int starts, positions;
  int64_t rows;
  int64_t longest;
};

Sequences add_segments(OpCase& c, const std::vector<int32_t>& lengths) {
  const Packed packed(lengths);
  const int starts = c.in("starts", {packed.starts.view().rows()}, packed.starts.values(), Kind::index);
  const int positions = c.in("positions", {packed.rows}, packed.positions.values(), Kind::index);
  return {starts, positions, packed.rows, *std::max_element(lengths.begin(), lengths.end())};
}

OpCase attention_case(const std::vector<int32_t>& lengths, const AttentionShape& shape) {
  Random random(21);
  OpCase c{fmt::format("attention {}, {}/{} heads of {}", join(lengths), shape.heads, shape.kv_heads, shape.head_dim)};
  const auto s = add_segments(c, lengths);
  const int64_t wide = shape.heads * shape.head_dim, narrow = shape.kv_heads * shape.head_dim;
  const int q = c.in("q", {s.rows, wide}, random.normal(s.rows * wide));
  const int k = c.in("k", {s.rows, narrow}, random.normal(s.rows * narrow));
  const int v = c.in("v", {s.rows, narrow}, random.normal(s.rows * narrow));
  // The backward is compared as a function of its own inputs: `out` need not be the forward's, whose rounding would
  // show.
  const int out = c.in("out", {s.rows, wide}, random.normal(s.rows * wide));
  const int x = c.in("x", {s.rows, 2 * wide}, random.normal(2 * s.rows * wide, 3));
  const int dout = c.in("dout", {s.rows, wide}, random.normal(s.rows * wide));
  const int64_t terms = s.longest + shape.head_dim, group = shape.heads / shape.kv_heads;
  const int o = c.out("o", {s.rows, wide}, terms), lse = c.out("lse", {s.rows, shape.heads}, terms, Kind::sum);
  const int dq = c.out("dq", {s.rows, wide}, terms);
  const int dk = c.out("dk", {s.rows, narrow}, group * terms), dv = c.out("dv", {s.rows, narrow}, group * terms);
  const int gated = c.out("gated", {s.rows, wide}, 1), dvalue = c.out("dvalue", {s.rows, wide}, 1);
  const int dx = c.out("dx", {s.rows, 2 * wide}, 1);
  // Heads of 256 go to tensor cores: the weights are rounded, and so are the gradients of the scores formed from them.
  if (shape.head_dim == 256) c.inner_roundings = 2;
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    const Segments segments{t[static_cast<size_t>(s.starts)], t[static_cast<size_t>(s.positions)]};
    ops.attention(stream, t[o], t[lse], t[q], t[k], t[v], segments, {}, shape);
    ops.attention_backward(stream, t[dq], t[dk], t[dv], t[dout], t[q], t[k], t[v], t[out], t[lse], segments, shape);
    ops.attention_gate(stream, t[gated], t[out], t[x], shape);
    ops.attention_gate_backward(stream, t[dvalue], t[dx], t[dout], t[out], t[x], shape);
  };
  return c;
}

OpCase conv_case(const std::vector<int32_t>& lengths, int64_t channels, int64_t taps, int64_t pad) {
  Random random(22);
  OpCase c{fmt::format("conv_silu {}, {} channels, {} taps", join(lengths), channels, taps)};
  const auto s = add_segments(c, lengths);
  const int x = c.in("x", {s.rows, channels}, random.normal(s.rows * channels));
  const int w = c.in("w", {channels, 1, taps}, random.normal(channels * taps));
  const int dy = c.in("dy", {s.rows, channels}, random.normal(s.rows * channels));
  const int y = c.out("y", {s.rows, channels}, taps), dx = c.out("dx", {s.rows, channels}, taps * taps);
  const int dw = c.inout("dw", {channels, 1, taps}, random.normal(channels * taps), s.rows + taps, Kind::sum);
  for (const int i : {x, dy, y, dx}) c.operands[static_cast<size_t>(i)].pad = pad;
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    const Segments segments{t[static_cast<size_t>(s.starts)], t[static_cast<size_t>(s.positions)]};
    ops.conv_silu(stream, t[y], t[x], t[w], segments, {});
    ops.conv_silu_backward(stream, t[dx], t[dw], t[dy], t[x], t[w], segments);
  };
  return c;
}

OpCase gates_case(int64_t rows, int64_t heads) {
  Random random(23);
  OpCase c{fmt::format("delta_gates {}x{}", rows, heads)};
  const int a = c.in("a", {rows, heads}, random.normal(rows * heads, 8));
  const int b = c.in("b", {rows, heads}, random.normal(rows * heads, 5));
  const int A_log = c.in("A_log", {heads}, random.uniform(heads, -2, 2), Kind::sum);
  const int bias = c.in("dt_bias", {heads}, random.normal(heads));
  const int dg = c.in("dg", {rows, heads}, random.normal(rows * heads), Kind::sum);
  const int dbeta = c.in("dbeta", {rows, heads}, random.normal(rows * heads), Kind::sum);
  const int g = c.out("g", {rows, heads}, 1, Kind::sum), beta = c.out("beta", {rows, heads}, 1, Kind::sum);
  const int da = c.out("da", {rows, heads}, 1), db = c.out("db", {rows, heads}, 1);
  const int dA_log = c.inout("dA_log", {heads}, random.normal(heads), rows, Kind::sum);
  const int dbias = c.inout("ddt_bias", {heads}, random.normal(heads), rows, Kind::sum);
  for (const int i : {a, b, dg, dbeta, g, beta, da, db}) c.operands[static_cast<size_t>(i)].by_row = true;
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.delta_gates(stream, t[g], t[beta], t[a], t[b], t[A_log], t[bias]);
    ops.delta_gates_backward(stream, t[da], t[db], t[dA_log], t[dbias], t[dg], t[dbeta], t[g], t[beta], t[a], t[A_log],
                             t[bias]);
  };
  return c;
}

OpCase delta_case(const std::vector<int32_t>& lengths, const DeltaShape& d, double strongest) {
  Random random(24);
  OpCase c{fmt::format("delta_rule {}, {}/{} heads, {}x{}, decay to {}", join(lengths), d.key_heads, d.value_heads,
                       d.key_dim, d.value_dim, strongest)};
  const auto s = add_segments(c, lengths);
  const int64_t rows = s.rows, segments = static_cast<int64_t>(lengths.size());
  const int64_t keys = d.key_heads * d.key_dim, out = d.value_heads * d.value_dim, in = 2 * keys + out;
  const Shape state_shape{segments, d.value_heads, d.key_dim, d.value_dim};
  const int64_t chunks = [&] {
    int64_t n = 0;
    for (const int32_t l : lengths) n += (l + delta_chunk - 1) / delta_chunk;
    return n;
  }();
  const int x = c.in("x", {rows, in}, random.normal(rows * in));
  const int g = c.in("g", {rows, d.value_heads}, random.uniform(rows * d.value_heads, strongest, -1e-4), Kind::sum);
  const int beta = c.in("beta", {rows, d.value_heads}, random.uniform(rows * d.value_heads, 0, 1), Kind::sum);
  const int state0 = c.in("state0", state_shape, random.normal(count(state_shape)), Kind::sum);
  const int dout = c.in("do", {rows, out}, random.normal(rows * out));
  const int dstate1 = c.in("dstate1", state_shape, random.normal(count(state_shape)), Kind::sum);
  // On tensor cores: keys and queries, the inverse of the chunk's system, what it is applied to, and the state.
  if (d.key_dim == 128 && d.value_dim == 128) c.inner_roundings = 4;
  const int64_t terms = s.longest + d.key_dim;
  const int o = c.out("o", {rows, out}, terms), state1 = c.out("state1", state_shape, terms, Kind::sum);
  const int dx = c.out("dx", {rows, in}, terms),
            dg = c.out("dg", {rows, d.value_heads}, terms * d.value_dim, Kind::sum);
  const int dbeta = c.out("dbeta", {rows, d.value_heads}, terms, Kind::sum);
  const int dstate0 = c.out("dstate0", state_shape, terms, Kind::sum);
  // The inputs are of size one, and so are the terms of the state and of the gradients, whatever is left of them.
  for (const int i : {state1, dg, dbeta, dstate0}) c.operands[static_cast<size_t>(i)].summands = 1;
  const int q = c.out("q", {rows, d.key_heads, d.key_dim}, d.key_dim, Kind::sum);
  const int k = c.out("k", {rows, d.key_heads, d.key_dim}, d.key_dim, Kind::sum);
  const int q_r = c.out("q_r", {rows, d.key_heads}, d.key_dim, Kind::sum);
  const int k_r = c.out("k_r", {rows, d.key_heads}, d.key_dim, Kind::sum);
  const int u = c.out("u", {rows, d.value_heads, d.value_dim}, terms, Kind::sum);
  const int gamma = c.out("gamma", {rows, d.value_heads}, delta_chunk, Kind::exact);
  const int states = c.out("states", {chunks, d.value_heads, d.key_dim, d.value_dim}, terms, Kind::sum);
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    const Segments seg{t[static_cast<size_t>(s.starts)], t[static_cast<size_t>(s.positions)]};
    const DeltaSaved saved{t[q], t[k], t[q_r], t[k_r], t[u], t[gamma], t[states]};
    ops.delta_rule(stream, t[o], t[x], t[g], t[beta], t[state0], t[state1], seg, {}, saved, d);
    ops.delta_rule_backward(stream, t[dx], t[dg], t[dbeta], t[dstate0], t[dout], t[dstate1], t[x], t[g], t[beta], seg,
                            saved, d);
  };
  return c;
}

}  // namespace

std::vector<OpCase> sequence_cases() {
  std::vector<OpCase> cases;
  cases.push_back(attention_case({1}, {1, 1, 1}));
  cases.push_back(attention_case({5, 1, 33}, {4, 2, 17}));
  cases.push_back(attention_case({63, 64, 65}, {2, 1, 16}));
  cases.push_back(attention_case({130}, {8, 2, 64}));
  cases.push_back(attention_case({1}, {8, 1, 256}));
  cases.push_back(attention_case({63, 65, 200}, {16, 2, 256}));
  cases.push_back(attention_case({140, 3}, {3, 1, 256}));
  cases.push_back(conv_case({1}, 1, 4, 0));
  cases.push_back(conv_case({3, 1, 7, 2}, 17, 4, 0));
  cases.push_back(conv_case({5, 30}, 300, 4, 5));
  cases.push_back(conv_case({9, 2}, 33, 3, 0));
  cases.push_back(conv_case({130, 65}, 600, 4, 0));
  cases.push_back(gates_case(1, 1));
  cases.push_back(gates_case(67, 6));
  cases.push_back(delta_case({1}, {1, 1, 1, 1}, -1));
  cases.push_back(delta_case({5, 1, 33}, {2, 4, 17, 9}, -0.5));
  cases.push_back(delta_case({63, 64, 65}, {1, 3, 8, 16}, -0.05));
  cases.push_back(delta_case({130, 20}, {2, 2, 32, 32}, -0.02));
  cases.push_back(delta_case({70, 130}, {1, 2, 16, 24}, -30));
  // The heads of the released models, which a body may have tensor cores for.
  for (const double strongest : {-0.02, -5.0}) {
    cases.push_back(delta_case({1}, {2, 4, 128, 128}, strongest));
    cases.push_back(delta_case({63, 64, 65}, {2, 4, 128, 128}, strongest));
    cases.push_back(delta_case({200}, {2, 4, 128, 128}, strongest));
    cases.push_back(delta_case({63, 64, 65}, {2, 6, 128, 128}, strongest));
    cases.push_back(delta_case({200}, {2, 2, 128, 128}, strongest));
  }
  return cases;
}

}  // namespace furlong::test
