// Every backward against central differences of its forward, in float64 and through the front doors.
#include <gtest/gtest.h>

#include "support.h"

namespace furlong::test {
namespace {

using Arrays = std::vector<Array>;

struct Input {
  std::string name;
  Shape shape;
  Values values;
  bool accumulates = false;  // its gradient is added to what is there
};

// out = forward(in); din = backward(in, dout), called after forward on the same arrays.
struct Gradient {
  std::string name;
  std::vector<Input> inputs;
  std::vector<Shape> outputs;
  std::function<void(Stream&, const Arrays& in, const Arrays& out)> forward;
  std::function<void(Stream&, const Arrays& in, const Arrays& dout, const Arrays& din)> backward;
};

Array zeros(const Shape& shape) { return Array(DType::f64, shape); }

void check(const Gradient& c) {
  ThreadPool threads(1);
  Stream stream(threads);
  Random random(31);
  Arrays in, out, dout, din;
  std::vector<Values> weights, before;
  for (const auto& i : c.inputs) in.emplace_back(DType::f64, i.shape, i.values);
  for (const auto& shape : c.outputs) {
    out.push_back(zeros(shape));
    weights.push_back(random.normal(count(shape)));
    dout.emplace_back(DType::f64, shape, weights.back());
  }
  for (const auto& i : c.inputs) {
    before.push_back(i.accumulates ? random.normal(count(i.shape)) : Values(static_cast<size_t>(count(i.shape)), 0.0));
    din.emplace_back(DType::f64, i.shape, before.back());
  }
  const auto loss = [&] {
    c.forward(stream, in, out);
    double sum = 0;
    for (size_t o = 0; o < out.size(); o++) sum += inner(weights[o], out[o].values());
    return sum;
  };
  loss();
  c.backward(stream, in, dout, din);
  for (size_t i = 0; i < in.size(); i++) {
    Values analytic = din[i].values();
    for (size_t j = 0; j < analytic.size(); j++) analytic[j] -= before[i][j];
    const Values numeric = numeric_gradient(c.inputs[i].values, [&](const Values& moved) {
      in[i].set(moved);
      return loss();
    });
    in[i].set(c.inputs[i].values);
    expect_gradient(c.name + ", d" + c.inputs[i].name, analytic, numeric);
  }
}

TEST(Gradient, RmsNorm) {
  Random random(1);
  for (const auto& [rows, n] : {std::pair{1, 1}, std::pair{4, 7}, std::pair{3, 65}}) {
    const auto r = std::make_shared<Array>(zeros({rows}));
    check({"rms_norm",
           {{"x", {rows, n}, random.normal(rows * n), true}, {"w", {n}, random.normal(n), true}},
           {{rows, n}},
           [=](Stream& s, const Arrays& in, const Arrays& out) { rms_norm(s, out[0], *r, in[0], in[1], 1e-2); },
           [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
             rms_norm_backward(s, din[0], din[1], dout[0], in[0], in[1], *r);
           }});
  }
}

TEST(Gradient, GatedRmsNorm) {
  Random random(2);
  for (const auto& [rows, n] : {std::pair{1, 1}, std::pair{4, 7}, std::pair{3, 33}}) {
    const auto r = std::make_shared<Array>(zeros({rows}));
    check({"gated_rms_norm",
           {{"o", {rows, n}, random.normal(rows * n)},
            {"z", {rows, n}, random.normal(rows * n, 3)},
            {"w", {n}, random.normal(n), true}},
           {{rows, n}},
           [=](Stream& s, const Arrays& in, const Arrays& out) {
             gated_rms_norm(s, out[0], *r, in[0], in[1], in[2], 1e-2);
           },
           [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
             gated_rms_norm_backward(s, din[0], din[1], din[2], dout[0], in[0], in[1], in[2], *r);
           }});
  }
}

TEST(Gradient, NormRope) {
  Random random(3);
  for (const int64_t stride : {6, 12}) {
    for (const int64_t rotary : {0, 4, 6}) {
      const RopeShape shape{2, 6, stride, rotary, 100, 1e-2};
      const auto r = std::make_shared<Array>(zeros({3, 2}));
      const auto positions = std::make_shared<Array>(Array::indices({0, 1, 17}));
      check({fmt::format("norm_rope, stride {}, rotary {}", stride, rotary),
             {{"x", {3, 2 * stride}, random.normal(3 * 2 * stride)}, {"w", {6}, random.normal(6), true}},
             {{3, 12}},
             [=](Stream& s, const Arrays& in, const Arrays& out) {
               norm_rope(s, out[0], *r, in[0], in[1], *positions, shape);
             },
             [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
               norm_rope_backward(s, din[0], din[1], dout[0], in[0], in[1], *r, *positions, shape);
             }});
    }
  }
}

TEST(Gradient, Swiglu) {
  Random random(4);
  check({"swiglu",
         {{"gate_up", {3, 10}, random.normal(30, 3)}},
         {{3, 5}},
         [](Stream& s, const Arrays& in, const Arrays& out) { swiglu(s, out[0], in[0]); },
         [](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
           swiglu_backward(s, din[0], dout[0], in[0]);
         }});
}

TEST(Gradient, Embed) {
  Random random(5);
  const auto tokens = std::make_shared<Array>(Array::indices({3, 1, 3, 3, 0}));
  check({"embed",
         {{"table", {5, 4}, random.normal(20), true}},
         {{5, 4}},
         [=](Stream& s, const Arrays& in, const Arrays& out) { embed(s, out[0], *tokens, in[0]); },
         [=](Stream& s, const Arrays&, const Arrays& dout, const Arrays& din) {
           embed_backward(s, din[0], dout[0], *tokens);
         }});
}

TEST(Gradient, LogProbAndEntropy) {
  Random random(6);
  for (const bool with_entropy : {false, true}) {
    for (const double temperature : {1.0, 0.6}) {
      const auto lse = std::make_shared<Array>(zeros({3})), h = std::make_shared<Array>(zeros({3}));
      const auto targets = std::make_shared<Array>(Array::indices({4, 0, 8}));
      std::vector<Shape> outputs{{3}};
      if (with_entropy) outputs.push_back({3});
      check({"log_prob",
             {{"logits", {3, 9}, random.normal(27, 2)}},
             outputs,
             [=](Stream& s, const Arrays& in, const Arrays& out) {
               log_prob(s, out[0], *lse, with_entropy ? out[1].view() : Tensor(), in[0], *targets, temperature);
               if (with_entropy) h->set(out[1].values());
             },
             [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
               convert(s, din[0], in[0]);
               log_prob_backward(s, din[0], dout[0], with_entropy ? dout[1].view() : Tensor(), *lse,
                                 with_entropy ? h->view() : Tensor(), *targets, temperature);
             }});
    }
  }
}

TEST(Gradient, Linear) {
  Random random(7);
  check({"linear",
         {{"x", {5, 4}, random.normal(20), true}, {"w", {3, 4}, random.normal(12), true}},
         {{5, 3}},
         [](Stream& s, const Arrays& in, const Arrays& out) { linear(s, out[0], in[0], in[1]); },
         [](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
           linear_dx(s, din[0], dout[0], in[1], true);
           linear_dw(s, din[1], dout[0], in[0]);
         }});
  const auto offsets = std::make_shared<Array>(Array::indices({0, 2, 2, 5}));
  check({"grouped_linear",
         {{"x", {5, 4}, random.normal(20)}, {"w", {3, 3, 4}, random.normal(36), true}},
         {{5, 3}},
         [=](Stream& s, const Arrays& in, const Arrays& out) { grouped_linear(s, out[0], in[0], in[1], *offsets); },
         [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
           grouped_linear_dx(s, din[0], dout[0], in[1], *offsets);
           grouped_linear_dw(s, din[1], dout[0], in[0], *offsets);
         }});
}

// A routing with its memory.
struct RoutingArrays {
  Array ids, weights, offsets, row_of, token_of;
  RoutingArrays(int64_t tokens, int64_t k, int64_t experts)
      : ids(DType::i32, {tokens, k}),
        weights(DType::f64, {tokens, k}),
        offsets(DType::i32, {experts + 1}),
        row_of(DType::i32, {tokens, k}),
        token_of(DType::i32, {tokens * k}) {}
  operator Routing() const { return {ids, weights, offsets, row_of, token_of}; }
};

TEST(Gradient, Route) {
  Random random(8);
  const auto routing = std::make_shared<RoutingArrays>(4, 3, 7);
  check({"route",
         {{"logits", {4, 7}, random.normal(28)}},
         {{4, 3}},
         [=](Stream& s, const Arrays& in, const Arrays& out) {
           Routing r = *routing;
           r.weights = out[0];
           route(s, r, in[0]);
           routing->weights.set(out[0].values());
         },
         [=](Stream& s, const Arrays&, const Arrays& dout, const Arrays& din) {
           route_backward(s, din[0], dout[0], *routing);
         }});
}

TEST(Gradient, GatherRows) {
  Random random(9);
  const auto routing = std::make_shared<RoutingArrays>(4, 2, 3);
  routing->ids.set({2, 0, 2, 1, 0, 2, 2, 1});
  check({"gather_rows",
         {{"x", {4, 5}, random.normal(20), true}},
         {{8, 5}},
         [=](Stream& s, const Arrays& in, const Arrays& out) {
           sort_by_expert(s, *routing);
           gather_rows(s, out[0], in[0], *routing);
         },
         [=](Stream& s, const Arrays&, const Arrays& dout, const Arrays& din) {
           gather_rows_backward(s, din[0], dout[0], *routing);
         }});
}

TEST(Gradient, Combine) {
  Random random(10);
  const auto routing = std::make_shared<RoutingArrays>(4, 2, 3);
  routing->ids.set({2, 0, 2, 1, 0, 2, 2, 1});
  check({"combine",
         {{"rows", {8, 5}, random.normal(40)},
          {"shared", {4, 5}, random.normal(20)},
          {"shared_logit", {4, 1}, random.normal(4)},
          {"weights", {4, 2}, random.uniform(8, 0.1, 1)}},
         {{4, 5}},
         [=](Stream& s, const Arrays& in, const Arrays& out) {
           routing->weights.set(in[3].values());
           sort_by_expert(s, *routing);
           combine(s, out[0], in[0], in[1], in[2], {}, *routing);
         },
         [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
           combine_backward(s, din[1], din[2], dout[0], in[1], in[2]);
           gather_rows(s, din[0], dout[0], *routing);
           routing_weight_gradient(s, din[3], din[0], in[0], *routing);
           scale_rows(s, din[0], *routing);
         }});
}

TEST(Gradient, Conv) {
  Random random(11);
  for (const int64_t taps : {1, 3, 4}) {
    const auto packed = std::make_shared<Packed>(std::vector<int32_t>{5, 1, 3});
    check({fmt::format("conv_silu, {} taps", taps),
           {{"x", {9, 3}, random.normal(27)}, {"w", {3, 1, taps}, random.normal(3 * taps), true}},
           {{9, 3}},
           [=](Stream& s, const Arrays& in, const Arrays& out) { conv_silu(s, out[0], in[0], in[1], *packed, {}); },
           [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
             conv_silu_backward(s, din[0], din[1], dout[0], in[0], in[1], *packed);
           }});
  }
}

TEST(Gradient, Attention) {
  Random random(12);
  for (const AttentionShape shape : {AttentionShape{4, 2, 3}, AttentionShape{1, 1, 1}}) {
    const auto packed = std::make_shared<Packed>(std::vector<int32_t>{4, 1, 6});
    const int64_t q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
    const auto lse = std::make_shared<Array>(zeros({11, shape.heads})), o = std::make_shared<Array>(zeros({11, q}));
    check({"attention",
           {{"q", {11, q}, random.normal(11 * q)},
            {"k", {11, kv}, random.normal(11 * kv)},
            {"v", {11, kv}, random.normal(11 * kv)}},
           {{11, q}},
           [=](Stream& s, const Arrays& in, const Arrays& out) {
             attention(s, out[0], *lse, in[0], in[1], in[2], *packed, {}, shape);
             o->set(out[0].values());
           },
           [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
             attention_backward(s, din[0], din[1], din[2], dout[0], in[0], in[1], in[2], *o, *lse, *packed, shape);
           }});
  }
}

// A sequence longer than a tile of queries.
TEST(Gradient, AttentionOverTiles) {
  Random random(13);
  const AttentionShape shape{1, 1, 2};
  const auto packed = std::make_shared<Packed>(std::vector<int32_t>{70});
  const auto lse = std::make_shared<Array>(zeros({70, 1})), o = std::make_shared<Array>(zeros({70, 2}));
  check({"attention",
         {{"q", {70, 2}, random.normal(140)}, {"k", {70, 2}, random.normal(140)}, {"v", {70, 2}, random.normal(140)}},
         {{70, 2}},
         [=](Stream& s, const Arrays& in, const Arrays& out) {
           attention(s, out[0], *lse, in[0], in[1], in[2], *packed, {}, shape);
           o->set(out[0].values());
         },
         [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
           attention_backward(s, din[0], din[1], din[2], dout[0], in[0], in[1], in[2], *o, *lse, *packed, shape);
         }});
}

TEST(Gradient, AttentionGate) {
  Random random(14);
  const AttentionShape shape{2, 1, 3};
  check({"attention_gate",
         {{"o", {4, 6}, random.normal(24)}, {"x", {4, 12}, random.normal(48, 3)}},
         {{4, 6}},
         [=](Stream& s, const Arrays& in, const Arrays& out) { attention_gate(s, out[0], in[0], in[1], shape); },
         [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
           attention_gate_backward(s, din[0], din[1], dout[0], in[0], in[1], shape);
         }});
}

TEST(Gradient, DeltaGates) {
  Random random(15);
  const auto g = std::make_shared<Array>(zeros({5, 3})), beta = std::make_shared<Array>(zeros({5, 3}));
  check({"delta_gates",
         {{"a", {5, 3}, random.normal(15, 4)},
          {"b", {5, 3}, random.normal(15, 4)},
          {"A_log", {3}, random.uniform(3, -3, 1), true},
          {"dt_bias", {3}, random.normal(3), true}},
         {{5, 3}, {5, 3}},
         [=](Stream& s, const Arrays& in, const Arrays& out) {
           delta_gates(s, out[0], out[1], in[0], in[1], in[2], in[3]);
           g->set(out[0].values());
           beta->set(out[1].values());
         },
         [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
           delta_gates_backward(s, din[0], din[1], din[2], din[3], dout[0], dout[1], *g, *beta, in[0], in[2], in[3]);
         }});
}

struct DeltaMemory {
  Array q, k, q_r, k_r, u, gamma, states;
  DeltaMemory(int64_t rows, int64_t chunks, const DeltaShape& d)
      : q(DType::f64, {rows, d.key_heads, d.key_dim}),
        k(DType::f64, {rows, d.key_heads, d.key_dim}),
        q_r(DType::f64, {rows, d.key_heads}),
        k_r(DType::f64, {rows, d.key_heads}),
        u(DType::f64, {rows, d.value_heads, d.value_dim}),
        gamma(DType::f64, {rows, d.value_heads}),
        states(DType::f64, {chunks, d.value_heads, d.key_dim, d.value_dim}) {}
  operator DeltaSaved() const { return {q, k, q_r, k_r, u, gamma, states}; }
};

void check_delta(const std::vector<int32_t>& lengths, const DeltaShape& d, uint32_t seed) {
  Random random(seed);
  const auto packed = std::make_shared<Packed>(lengths);
  const int64_t rows = packed->rows, in_width = 2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim;
  const auto memory = std::make_shared<DeltaMemory>(rows, delta_chunks(*packed), d);
  // Decays from hardly any to all, evenly over the orders of magnitude; beta close to 0, close to 1 and between.
  Values g = random.uniform(rows * d.value_heads, std::log(1e-4), std::log(30)),
         beta = random.uniform(rows * d.value_heads, 0, 1);
  for (auto& v : g) v = -std::exp(v);
  for (size_t i = 0; i < beta.size(); i++)
    beta[i] = i % 3 == 0 ? beta[i] : i % 3 == 1 ? 1e-6 * beta[i] : 1 - 1e-6 * beta[i];
  // Keys and queries away from zero, where the derivatives of their norms grow without bound.
  Values x = random.uniform(rows * in_width, -1, 1);
  for (auto& v : x) v += v < 0 ? -0.5 : 0.5;
  const Shape state{static_cast<int64_t>(lengths.size()), d.value_heads, d.key_dim, d.value_dim};
  check({"delta_rule",
         {{"x", {rows, in_width}, x},
          {"g", {rows, d.value_heads}, g},
          {"beta", {rows, d.value_heads}, beta},
          {"state0", state, random.normal(count(state))}},
         {{rows, d.value_heads * d.value_dim}, state},
         [=](Stream& s, const Arrays& in, const Arrays& out) {
           delta_rule(s, out[0], in[0], in[1], in[2], in[3], out[1], *packed, {}, *memory, d);
         },
         [=](Stream& s, const Arrays& in, const Arrays& dout, const Arrays& din) {
           delta_rule_backward(s, din[0], din[1], din[2], din[3], dout[0], dout[1], in[0], in[1], in[2], *packed,
                               *memory, d);
         }});
}

TEST(Gradient, DeltaRule) {
  check_delta({5, 1, 3}, {2, 4, 3, 2}, 41);
  check_delta({4}, {1, 3, 2, 5}, 42);
  check_delta({1}, {1, 1, 1, 1}, 43);
  check_delta({66, 2}, {1, 2, 2, 3}, 44);
}

}  // namespace
}  // namespace furlong::test
