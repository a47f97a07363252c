#include <array>

#include "cases.h"

namespace furlong::test {
namespace {

using Run = decltype(OpCase::run);

Fused fused(OpCase c, Run together, Run apart) {
  c.run = std::move(together);
  return {std::move(c), std::move(apart)};
}

Fused add_norm(int64_t rows, int64_t columns, int64_t pad) {
  Random random(31);
  const int64_t n = rows * columns;
  OpCase c{fmt::format("add_rms_norm {}x{}", rows, columns)};
  const int d = c.in("d", {rows, columns}, random.normal(n)), w = c.in("w", {columns}, random.normal(columns, 0.3));
  const int x = c.inout("x", {rows, columns}, random.normal(n, 2), 1);
  const int y = c.out("y", {rows, columns}, columns), r = c.out("r", {rows}, columns, Kind::sum);
  for (const int i : {d, x, y}) c.operands[static_cast<size_t>(i)].pad = pad;
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.add_rms_norm(stream, t[y], t[r], t[x], t[d], t[w], 1e-6);
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.add(stream, t[x], t[d]);
        ops.rms_norm(stream, t[y], t[r], t[x], t[w], 1e-6);
      });
}

Fused products(int64_t rows, int64_t k, const std::vector<int64_t>& widths) {
  Random random(32);
  OpCase c{fmt::format("linear_many {} by {} to {}", rows, k, fmt::join(widths, ", "))};
  const int x = c.in("x", {rows, k}, random.normal(rows * k));
  std::vector<int> w, y;
  for (const int64_t n : widths) {
    w.push_back(c.in("w", {n, k}, random.normal(n * k, 0.3)));
    y.push_back(c.out("y", {rows, n}, k, y.size() % 2 == 0 ? Kind::sum : Kind::model));
  }
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        const auto part = [&](size_t i) {
          return LinearOf{t[static_cast<size_t>(y[i])], t[static_cast<size_t>(w[i])]};
        };
        ops.linear_many(stream, t[x], {part(0), part(1), part(2), part(3)});
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        for (size_t i = 0; i < w.size(); i++) {
          ops.linear(stream, t[static_cast<size_t>(y[i])], t[x], t[static_cast<size_t>(w[i])]);
        }
      });
}

Fused products_swiglu(int64_t rows, int64_t k, int64_t f, int64_t other) {
  Random random(33);
  OpCase c{fmt::format("linear_swiglu {} by {} to {} beside {}", rows, k, f, other)};
  const int x = c.in("x", {rows, k}, random.normal(rows * k));
  const int gate = c.in("w gate", {f, k}, random.normal(f * k, 0.3)),
            up = c.in("w up", {f, k}, random.normal(f * k, 0.3));
  const int w = c.in("w", {other, k}, random.normal(other * k, 0.3)), w1 = c.in("w1", {1, k}, random.normal(k, 0.3));
  const int both = c.out("gate_up", {rows, 2 * f}, k), act = c.out("y", {rows, f}, k);
  const int y = c.out("other", {rows, other}, k, Kind::sum), y1 = c.out("one", {rows, 1}, k, Kind::sum);
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.linear_swiglu(stream, t[act], t[both], t[x], t[gate], t[up], {{t[y], t[w]}, {t[y1], t[w1]}});
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.linear(stream, t[both].columns(0, f), t[x], t[gate]);
        ops.linear(stream, t[both].columns(f, 2 * f), t[x], t[up]);
        ops.swiglu(stream, t[act], t[both]);
        ops.linear(stream, t[y], t[x], t[w]);
        ops.linear(stream, t[y1], t[x], t[w1]);
      });
}

Fused experts_swiglu(const std::vector<int32_t>& rows_of, int64_t k, int64_t f) {
  Random random(34);
  const Packed packed(rows_of);
  const int64_t experts = static_cast<int64_t>(rows_of.size()), rows = packed.rows;
  OpCase c{fmt::format("grouped_swiglu {} rows, {} experts, {} to {}", rows, experts, k, f)};
  const int offsets = c.in("offsets", {experts + 1}, packed.starts.values(), Kind::index);
  const int x = c.in("x", {rows, k}, random.normal(rows * k));
  const int w = c.in("w", {experts, 2 * f, k}, random.normal(experts * 2 * f * k, 0.3));
  const int both = c.out("gate_up", {rows, 2 * f}, k), y = c.out("y", {rows, f}, k);
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.grouped_swiglu(stream, t[y], t[both], t[x], t[w], t[offsets]);
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.grouped_linear(stream, t[both], t[x], t[w], t[offsets]);
        ops.swiglu(stream, t[y], t[both]);
      });
}

// Experts beside a product of `tokens` rows.
Fused experts_mlp(const std::vector<int32_t>& rows_of, int64_t k, int64_t f, int64_t tokens) {
  Random random(38);
  const Packed packed(rows_of);
  const int64_t experts = static_cast<int64_t>(rows_of.size()), rows = packed.rows;
  OpCase c{fmt::format("grouped_mlp {} rows, {} experts, {} by {}, beside {}", rows, experts, k, f, tokens)};
  const int offsets = c.in("offsets", {experts + 1}, packed.starts.values(), Kind::index);
  const int x = c.in("x", {rows, k}, random.normal(rows * k));
  const int up = c.in("w gate_up", {experts, 2 * f, k}, random.normal(experts * 2 * f * k, 0.3));
  const int down = c.in("w down", {experts, k, f}, random.normal(experts * k * f, 0.3));
  const int x1 = c.in("x beside", {tokens, f}, random.normal(tokens * f));
  const int w1 = c.in("w beside", {k, f}, random.normal(k * f, 0.3));
  const int both = c.out("gate_up", {rows, 2 * f}, k), act = c.out("act", {rows, f}, k), y = c.out("y", {rows, k}, f);
  const int y1 = c.out("y beside", {tokens, k}, f);
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.grouped_mlp(stream, {t[y], t[act], t[both], t[x], t[up], t[down], t[offsets]}, t[y1], t[x1], t[w1]);
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.linear(stream, t[y1], t[x1], t[w1]);
        ops.grouped_swiglu(stream, t[act], t[both], t[x], t[up], t[offsets]);
        ops.grouped_linear(stream, t[y], t[act], t[down], t[offsets]);
      });
}

Fused routed(int64_t rows, int64_t experts, int64_t k, int64_t columns) {
  Random random(35);
  OpCase c{fmt::format("route_rows {} tokens, {} of {}, {} wide", rows, k, experts, columns)};
  Values l = random.normal(rows * experts, 2);
  for (size_t i = 0; i + 1 < l.size(); i += 5) l[i + 1] = l[i];  // ties
  const int logits = c.in("logits", {rows, experts}, l, Kind::sum);
  const int x = c.in("x", {rows, columns}, random.normal(rows * columns));
  const int ids = c.out("ids", {rows, k}, 0, Kind::index), weights = c.out("weights", {rows, k}, k, Kind::sum);
  const int offsets = c.out("offsets", {experts + 1}, 0, Kind::index),
            row_of = c.out("row_of", {rows, k}, 0, Kind::index);
  const int token_of = c.out("token_of", {rows * k}, 0, Kind::index), to = c.out("rows", {rows * k, columns}, 1);
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.route_rows(stream, {t[ids], t[weights], t[offsets], t[row_of], t[token_of]}, t[to], t[x], t[logits]);
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        const Routing routing{t[ids], t[weights], t[offsets], t[row_of], t[token_of]};
        ops.route(stream, routing, t[logits]);
        ops.sort_by_expert(stream, routing, 0, experts);
        ops.gather_rows(stream, t[to], t[x], routing);
      });
}

Fused combined(int64_t rows, int64_t experts, int64_t k, int64_t columns) {
  Random random(36);
  OpCase c{fmt::format("combine with residual {} tokens, {} of {}, {} wide", rows, k, experts, columns)};
  const int logits = c.in("logits", {rows, experts}, random.normal(rows * experts, 2), Kind::sum);
  const int a = c.in("a", {rows * k, columns}, random.normal(rows * k * columns));
  const int shared = c.in("shared", {rows, columns}, random.normal(rows * columns));
  const int residual = c.in("residual", {rows, columns}, random.normal(rows * columns));
  const int logit = c.in("shared_logit", {rows, 1}, random.normal(rows, 2), Kind::sum);
  const int ids = c.out("ids", {rows, k}, 0, Kind::index), weights = c.out("weights", {rows, k}, k, Kind::sum);
  const int offsets = c.out("offsets", {experts + 1}, 0, Kind::index),
            row_of = c.out("row_of", {rows, k}, 0, Kind::index);
  const int token_of = c.out("token_of", {rows * k}, 0, Kind::index), y = c.out("y", {rows, columns}, k + 2);
  const auto run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t, bool together) {
    const Routing routing{t[ids], t[weights], t[offsets], t[row_of], t[token_of]};
    ops.route(stream, routing, t[logits]);
    ops.sort_by_expert(stream, routing, 0, experts);
    ops.combine(stream, t[y], t[a], t[shared], t[logit], together ? t[residual] : Tensor(), routing);
    if (!together) ops.add(stream, t[y], t[residual]);
  };
  return fused(
      c, [=](const OpTable& o, Stream& s, const std::vector<Tensor>& t) { run(o, s, t, true); },
      [=](const OpTable& o, Stream& s, const std::vector<Tensor>& t) { run(o, s, t, false); });
}

// Segments of these lengths from these positions, each in a slot of its own, every other one of drafts.
Fused delta_layer(const std::vector<int32_t>& lengths, const std::vector<int32_t>& first, const DeltaShape& d) {
  Random random(37);
  const Packed packed(lengths, first);
  const auto segments = static_cast<int64_t>(lengths.size());
  const int64_t rows = packed.rows, heads = d.value_heads, slots = segments + 1, ring = delta_chunk + 3, entries = 6;
  const int64_t values = heads * d.value_dim, keys = d.key_heads * d.key_dim, channels = 2 * keys + values;
  OpCase c{fmt::format("delta_core {} from {}, {}/{} heads of {}", fmt::join(lengths, "+"), fmt::join(first, ", "),
                       d.key_heads, heads, d.key_dim)};
  const auto normal = [&](const char* name, const Shape& shape, double scale, Kind kind = Kind::model) {
    return c.in(name, shape, random.normal(count(shape), scale), kind);
  };
  const auto kept = [&](const char* name, const Shape& shape, double scale, Kind kind) {
    return c.inout(name, shape, random.normal(count(shape), scale), 1, kind);
  };
  const int starts = c.in("starts", {segments + 1}, packed.starts.values(), Kind::index);
  const int positions = c.in("positions", {rows}, packed.positions.values(), Kind::index);
  std::vector<int32_t> slot_of, drafts;
  for (int32_t s = 0; s < segments; s++) slot_of.push_back(static_cast<int32_t>(segments) - s), drafts.push_back(s % 2);
  const int slot = c.index("slots", {segments}, slot_of), speculative = c.index("speculative", {segments}, drafts);
  const int qkv = normal("qkv", {rows, channels}, 1), z = normal("z", {rows, values}, 1);
  const int a = normal("a", {rows, heads}, 2), b = normal("b", {rows, heads}, 2);
  const int conv = normal("conv", {channels, 1, 4}, 0.5), norm = normal("norm", {d.value_dim}, 1);
  const int A_log = normal("A_log", {heads}, 1, Kind::sum), bias = normal("dt_bias", {heads}, 1);
  const int mixed = normal("mixed", {rows, channels}, 1), o = normal("o", {rows, values}, 1);
  const int g = normal("g", {rows, heads}, 1, Kind::sum), beta = normal("beta", {rows, heads}, 1, Kind::sum);
  const int o_r = normal("o_r", {rows * heads}, 1, Kind::sum);
  const int q = normal("q", {rows, d.key_heads, d.key_dim}, 1, Kind::sum);
  const int k = normal("k", {rows, d.key_heads, d.key_dim}, 1, Kind::sum);
  const int q_r = normal("q_r", {rows, d.key_heads}, 1, Kind::sum);
  const int k_r = normal("k_r", {rows, d.key_heads}, 1, Kind::sum);
  const int u = normal("u", {rows, heads, d.value_dim}, 1, Kind::sum);
  const int gamma = normal("gamma", {rows, heads}, 1, Kind::exact);
  const int state = kept("state", {slots, heads, d.key_dim, d.value_dim}, 0.3, Kind::sum);
  // Rings in either dtype: delta_rings says which of them is used.
  int rings[2][2];
  for (const int sum : {0, 1}) {
    const Kind kind = sum == 1 ? Kind::sum : Kind::model;
    rings[sum][0] = kept("ring_k", {slots, ring, d.key_heads, d.key_dim}, 0.1, kind);
    rings[sum][1] = kept("ring_u", {slots, ring, heads, d.value_dim}, 1, kind);
  }
  const int ring_g =
      c.inout("ring_g", {slots, ring, heads}, random.uniform(slots * ring * heads, -1, 0), 1, Kind::exact);
  const int ring_beta = kept("ring_beta", {slots, ring, heads}, 0.3, Kind::sum);
  const int window = kept("window", {slots, entries, channels}, 1, Kind::model);
  const int y = c.out("y", {rows, values}, d.key_dim);
  const auto run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t, bool together) {
    const auto at = [&](int i) { return t[static_cast<size_t>(i)]; };
    const Segments seg{at(starts), at(positions)};
    const bool sums = delta_rings(at(y).device(), at(y).dtype(), d) == DType::f32;
    const DeltaSlots memory{at(state),  at(rings[sums][0]), at(rings[sums][1]), at(ring_g),
                            at(window), at(slot),           at(speculative),    at(ring_beta)};
    const DeltaSaved saved{at(q), at(k), at(q_r), at(k_r), at(u), at(gamma), {}};
    if (together) {
      ops.delta_core(stream, at(y),
                     {at(qkv), at(z), at(a), at(b), at(conv), at(A_log), at(bias), at(norm), 1e-6, at(mixed), at(g),
                      at(beta), at(o), at(o_r)},
                     seg, memory, saved, d);
      return;
    }
    const auto by_head = [&](int i) { return at(i).reshape({rows * heads, d.value_dim}); };
    ops.conv_silu(stream, at(mixed), at(qkv), at(conv), seg, memory);
    ops.delta_gates(stream, at(g), at(beta), at(a), at(b), at(A_log), at(bias));
    ops.delta_rule(stream, at(o), at(mixed), at(g), at(beta), {}, {}, seg, memory, saved, d);
    ops.gated_rms_norm(stream, by_head(y), at(o_r), by_head(o), by_head(z), at(norm), 1e-6);
  };
  return fused(
      c, [=](const OpTable& o, Stream& s, const std::vector<Tensor>& t) { run(o, s, t, true); },
      [=](const OpTable& o, Stream& s, const std::vector<Tensor>& t) { run(o, s, t, false); });
}

Fused ropes(int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t rotary) {
  Random random(40);
  OpCase c{fmt::format("norm_rope_both {} rows, {} and {} heads of {}", rows, heads, kv_heads, head_dim)};
  const RopeShape queries{heads, head_dim, 2 * head_dim, rotary}, keys{kv_heads, head_dim, head_dim, rotary};
  std::vector<int32_t> at;
  for (int32_t i = 0; i < rows; i++) at.push_back(37 * i + 5);
  const int positions = c.index("positions", {rows}, at);
  const auto add = [&](const RopeShape& s) {
    const int64_t in = s.heads * s.head_stride;
    const int x = c.in("x", {rows, in}, random.normal(rows * in));
    const int w = c.in("w", {head_dim}, random.normal(head_dim, 0.3));
    const int y = c.out("y", {rows, s.heads * head_dim}, head_dim);
    return std::array{y, c.out("r", {rows, s.heads}, head_dim, Kind::sum), x, w};
  };
  const auto q = add(queries), k = add(keys);
  const auto of = [](const std::vector<Tensor>& t, const std::array<int, 4>& i, const RopeShape& s) {
    return RopeOf{t[static_cast<size_t>(i[0])], t[static_cast<size_t>(i[1])], t[static_cast<size_t>(i[2])],
                  t[static_cast<size_t>(i[3])], s};
  };
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.norm_rope_both(stream, of(t, q, queries), of(t, k, keys), t[positions]);
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        for (const RopeOf& p : {of(t, q, queries), of(t, k, keys)}) {
          ops.norm_rope(stream, p.y, p.r, p.x, p.w, t[positions], p.shape);
        }
      });
}

Fused combined_norm(int64_t rows, int64_t experts, int64_t k, int64_t columns) {
  Random random(39);
  OpCase c{fmt::format("combine_norm {} tokens, {} of {}, {} wide", rows, k, experts, columns)};
  const int logits = c.in("logits", {rows, experts}, random.normal(rows * experts, 2), Kind::sum);
  const int a = c.in("a", {rows * k, columns}, random.normal(rows * k * columns));
  const int shared = c.in("shared", {rows, columns}, random.normal(rows * columns));
  const int residual = c.in("residual", {rows, columns}, random.normal(rows * columns));
  const int logit = c.in("shared_logit", {rows, 1}, random.normal(rows, 2), Kind::sum);
  const int w = c.in("w", {columns}, random.normal(columns, 0.3));
  const int ids = c.out("ids", {rows, k}, 0, Kind::index), weights = c.out("weights", {rows, k}, k, Kind::sum);
  const int offsets = c.out("offsets", {experts + 1}, 0, Kind::index),
            row_of = c.out("row_of", {rows, k}, 0, Kind::index);
  const int token_of = c.out("token_of", {rows * k}, 0, Kind::index), y = c.out("y", {rows, columns}, k + 2);
  const int normed = c.out("normed", {rows, columns}, columns), r = c.out("r", {rows}, columns, Kind::sum);
  const auto run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t, bool together) {
    const Routing routing{t[ids], t[weights], t[offsets], t[row_of], t[token_of]};
    ops.route(stream, routing, t[logits]);
    ops.sort_by_expert(stream, routing, 0, experts);
    if (together) {
      ops.combine_norm(stream, t[y], t[a], t[shared], t[logit], t[residual], routing, {t[normed], t[r], t[w], 1e-6});
    } else {
      ops.combine(stream, t[y], t[a], t[shared], t[logit], t[residual], routing);
      ops.rms_norm(stream, t[normed], t[r], t[y], t[w], 1e-6);
    }
  };
  return fused(
      c, [=](const OpTable& o, Stream& s, const std::vector<Tensor>& t) { run(o, s, t, true); },
      [=](const OpTable& o, Stream& s, const std::vector<Tensor>& t) { run(o, s, t, false); });
}

}  // namespace

std::vector<Fused> fused_cases() {
  std::vector<Fused> cases;
  for (const int64_t rows : {1, 5, 67}) {
    cases.push_back(add_norm(rows, 33, 0));
    cases.push_back(add_norm(rows, 128, 8));
    cases.push_back(add_norm(rows, 600, 3));
    cases.push_back(add_norm(rows, 2048, 0));
    cases.push_back(products(rows, 320, {130, 1, 33, 16}));
    cases.push_back(products(rows, 17, {3, 1, 7, 20}));
    cases.push_back(products_swiglu(rows, 320, 72, 130));
    cases.push_back(products_swiglu(rows, 64, 1, 9));
    cases.push_back(products_swiglu(rows, 19, 8, 5));
  }
  // As many as the strips of a device of many multiprocessors, and more.
  cases.push_back(products(1, 128, {5000, 1, 2600, 32}));
  cases.push_back(products_swiglu(3, 128, 2500, 256));
  cases.push_back(experts_swiglu({1, 0, 8, 17, 33, 0, 129, 2, 64, 0}, 320, 96));
  cases.push_back(experts_swiglu({0, 1, 1, 0, 1, 2}, 64, 512));
  cases.push_back(experts_swiglu({5, 0, 40, 7}, 33, 19));
  cases.push_back(experts_swiglu({300, 0, 70}, 128, 64));
  cases.push_back(experts_mlp({0, 1, 1, 0, 1, 2}, 320, 128, 1));
  cases.push_back(experts_mlp({16, 0}, 64, 64, 2));
  cases.push_back(experts_mlp({1, 0, 8, 17, 33, 0, 129, 2, 64, 0}, 128, 64, 40));
  cases.push_back(experts_mlp({300, 0, 70}, 128, 64, 90));
  cases.push_back(experts_mlp({5, 0, 7}, 33, 19, 3));
  cases.push_back(routed(1, 256, 8, 64));
  cases.push_back(routed(8, 256, 8, 128));
  cases.push_back(routed(5, 300, 8, 64));
  cases.push_back(routed(3, 5, 5, 17));
  cases.push_back(routed(40, 64, 4, 64));
  // Steps of decoding, at the start, within and across a chunk; more rows than the convolution takes at once.
  for (const DeltaShape& d : {DeltaShape{2, 4, 128, 128}, DeltaShape{1, 2, 8, 12}}) {
    cases.push_back(delta_layer({1}, {0}, d));
    cases.push_back(delta_layer({1, 3, 3, 1}, {2, 40, 127, 63}, d));
    cases.push_back(delta_layer({9, 0, 1, 2}, {58, 7, 1, 62}, d));
    cases.push_back(delta_layer({70, 5}, {3, 200}, d));
  }
  cases.push_back(ropes(1, 16, 2, 256, 64));
  cases.push_back(ropes(9, 3, 1, 64, 32));
  cases.push_back(ropes(70, 4, 2, 17, 6));
  cases.push_back(combined_norm(1, 256, 8, 2048));
  cases.push_back(combined_norm(7, 64, 10, 512));
  cases.push_back(combined_norm(70, 20, 3, 264));
  cases.push_back(combined_norm(5, 20, 3, 33));
  cases.push_back(combined(1, 256, 8, 64));
  cases.push_back(combined(37, 20, 3, 19));
  cases.push_back(combined(5, 64, 8, 600));
  return cases;
}

}  // namespace furlong::test
