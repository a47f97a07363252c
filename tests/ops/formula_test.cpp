// The float64 bodies against the formulas, written out plainly. The other tests lean on these bodies.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "support.h"
#include "tolerance.h"

namespace furlong::test {
namespace {

class Formula : public ::testing::Test {
 protected:
  ThreadPool threads_{2};
  Stream stream_{threads_};
  Random random_{81};

  Array array(const Shape& shape, double scale = 1) {
    return Array(DType::f64, shape, random_.normal(count(shape), scale));
  }
  static Array zeros(const Shape& shape) { return Array(DType::f64, shape); }

  // Every entry equals f(row, column).
  template <class F>
  void expect(const Array& got, F&& f, const char* what) {
    const Values values = got.values();
    const int64_t columns = got.view().row_size();
    for (int64_t i = 0; i < static_cast<int64_t>(values.size()); i++) {
      const double wanted = f(i / columns, i % columns);
      ASSERT_NEAR(values[static_cast<size_t>(i)], wanted,
                  tolerance(DType::f64, DType::f64, 1000, wanted, std::max(1.0, std::abs(wanted))))
          << what << " row " << i / columns << " column " << i % columns;
    }
  }
};

// Entry (row, column) of a contiguous array.
double at(const Array& a, int64_t row, int64_t column = 0) {
  return a.view().as<double>()[row * a.view().row_size() + column];
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double inverse_rms(const Array& x, int64_t row, int64_t first, int64_t n, double eps) {
  double sum = 0;
  for (int64_t i = first; i < first + n; i++) sum += at(x, row, i) * at(x, row, i);
  return 1 / std::sqrt(sum / static_cast<double>(n) + eps);
}

TEST_F(Formula, Norms) {
  const int64_t rows = 5, n = 19;
  const Array x = array({rows, n}), z = array({rows, n}, 3), w = array({n}), y = zeros({rows, n}), r = zeros({rows});
  rms_norm(stream_, y, r, x, w, 0.1);
  expect(
      r, [&](int64_t t, int64_t) { return inverse_rms(x, t, 0, n, 0.1); }, "1/rms");
  expect(
      y, [&](int64_t t, int64_t c) { return at(x, t, c) * at(r, t) * (1 + at(w, c)); }, "rms_norm");
  gated_rms_norm(stream_, y, r, x, z, w, 0.1);
  expect(
      y, [&](int64_t t, int64_t c) { return at(x, t, c) * at(r, t) * at(w, c) * at(z, t, c) * sigmoid(at(z, t, c)); },
      "gated_rms_norm");
}

TEST_F(Formula, NormRope) {
  const int64_t heads = 3, n = 10, stride = 20, rotary = 6;
  const std::vector<int32_t> positions{0, 1, 70000, 5};
  const auto rows = static_cast<int64_t>(positions.size());
  const Array x = array({rows, heads * stride}), w = array({n}), y = zeros({rows, heads * n}), r = zeros({rows, heads});
  norm_rope(stream_, y, r, x, w, Array::indices(positions), {heads, n, stride, rotary, 1e7, 1e-6});
  const auto wanted = [&](int64_t t, int64_t column) {
    const int64_t h = column / n, c = column % n, half = rotary / 2;
    const auto normed = [&](int64_t i) {
      return at(x, t, h * stride + i) * inverse_rms(x, t, h * stride, n, 1e-6) * (1 + at(w, i));
    };
    if (c >= rotary) return normed(c);
    const int64_t j = c % half;
    const float frequency = 1.0f / std::pow(1e7f, static_cast<float>(2 * j) / static_cast<float>(rotary));
    const double angle = static_cast<double>(static_cast<float>(positions[static_cast<size_t>(t)]) * frequency);
    return c < half ? normed(j) * std::cos(angle) - normed(j + half) * std::sin(angle)
                    : normed(j + half) * std::cos(angle) + normed(j) * std::sin(angle);
  };
  expect(y, wanted, "norm_rope");
}

TEST_F(Formula, SwigluAndEmbedding) {
  const int64_t rows = 4, n = 7;
  const Array in = array({rows, 2 * n}, 3), y = zeros({rows, n}), table = array({5, n});
  swiglu(stream_, y, in);
  const auto gated = [&](int64_t t, int64_t c) { return at(in, t, c) * sigmoid(at(in, t, c)) * at(in, t, n + c); };
  expect(y, gated, "swiglu");
  const std::vector<int32_t> tokens{4, 0, 4, 2};
  embed(stream_, y, Array::indices(tokens), table);
  expect(
      y, [&](int64_t t, int64_t c) { return at(table, tokens[static_cast<size_t>(t)], c); }, "embed");
  const Array all = array({9, n}), before(DType::f64, {9, n}, all.values());
  const std::vector<int32_t> places{8, 1, 0, 3};
  scatter_rows(stream_, all, y, Array::indices(places));
  const auto scattered = [&](int64_t t, int64_t c) {
    const auto found = std::find(places.begin(), places.end(), t);
    return found == places.end() ? at(before, t, c) : at(y, found - places.begin(), c);
  };
  expect(all, scattered, "scatter_rows");
}

TEST_F(Formula, LogProb) {
  const int64_t rows = 3, n = 9000;
  const double temperature = 0.7;
  const std::vector<int32_t> targets{0, 8999, 17};
  const Array l = array({rows, n}, 2), lp = zeros({rows}), lse = zeros({rows}), h = zeros({rows});
  log_prob(stream_, lp, lse, h, l, Array::indices(targets), temperature);
  const auto normaliser = [&](int64_t t) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += std::exp(at(l, t, i) / temperature);
    return std::log(sum);
  };
  const Values norms{normaliser(0), normaliser(1), normaliser(2)};
  expect(
      lse, [&](int64_t t, int64_t) { return norms[static_cast<size_t>(t)]; }, "lse");
  const auto wanted = [&](int64_t t, int64_t) {
    return at(l, t, targets[static_cast<size_t>(t)]) / temperature - norms[static_cast<size_t>(t)];
  };
  expect(lp, wanted, "log_prob");
  const auto entropy = [&](int64_t t, int64_t) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
      const double log_p = at(l, t, i) / temperature - norms[static_cast<size_t>(t)];
      sum -= std::exp(log_p) * log_p;
    }
    return sum;
  };
  expect(h, entropy, "entropy");
}

TEST_F(Formula, Linear) {
  const int64_t rows = 6, k = 21, n = 5;
  const Array x = array({rows, k}), w = array({n, k}), y = zeros({rows, n});
  linear(stream_, y, x, w);
  const auto product = [&](const Array& weights, int64_t first, int64_t t, int64_t c) {
    double sum = 0;
    for (int64_t i = 0; i < k; i++) sum += at(x, t, i) * weights.view().as<double>()[(first + c) * k + i];
    return sum;
  };
  expect(
      y, [&](int64_t t, int64_t c) { return product(w, 0, t, c); }, "linear");
  const Array experts = array({3, n, k});
  grouped_linear(stream_, y, x, experts, Array::indices({0, 4, 4, 6}));
  expect(
      y, [&](int64_t t, int64_t c) { return product(experts, t < 4 ? 0 : 2 * n, t, c); }, "grouped_linear");
}

TEST_F(Formula, Experts) {
  const int64_t rows = 200, experts = 40, k = 5, n = 6;
  // Few different logits, so that ties are everywhere.
  Values l;
  for (const int32_t v : random_.integers(rows * experts, 7)) l.push_back(0.5 * v);
  const Array logits(DType::f64, {rows, experts}, l), weights = zeros({rows, k}), ids(DType::i32, {rows, k});
  const Array offsets(DType::i32, {experts + 1}), row_of(DType::i32, {rows, k}), token_of(DType::i32, {rows * k});
  const Routing routing{ids, weights, offsets, row_of, token_of};
  route(stream_, routing, logits);
  sort_by_expert(stream_, routing);
  for (int64_t t = 0; t < rows; t++) {
    std::vector<int32_t> order(experts);
    for (int32_t e = 0; e < experts; e++) order[static_cast<size_t>(e)] = e;
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return at(logits, t, a) > at(logits, t, b); });
    double all = 0;
    for (int64_t c = 0; c < k; c++) all += std::exp(at(logits, t, order[static_cast<size_t>(c)]));
    for (int64_t c = 0; c < k; c++) {
      ASSERT_EQ(ids.view().as<int32_t>()[t * k + c], order[static_cast<size_t>(c)]) << "token " << t << " choice " << c;
      ASSERT_NEAR(at(weights, t, c), std::exp(at(logits, t, order[static_cast<size_t>(c)])) / all, 1e-14);
    }
  }
  // Rows by expert, then token; every row has one choice.
  const int32_t *id = ids.view().as<int32_t>(), *place = row_of.view().as<int32_t>();
  const int32_t *first = offsets.view().as<int32_t>(), *token = token_of.view().as<int32_t>();
  EXPECT_EQ(first[0], 0);
  EXPECT_EQ(first[experts], rows * k);
  for (int64_t i = 0; i < rows * k; i++) {
    ASSERT_EQ(token[place[i]], i / k);
    ASSERT_TRUE(first[id[i]] <= place[i] && place[i] < first[id[i] + 1]);
  }
  for (int64_t e = 0; e < experts; e++) ASSERT_TRUE(std::is_sorted(token + first[e], token + first[e + 1]));
  ASSERT_EQ(std::set<int32_t>(place, place + rows * k).size(), static_cast<size_t>(rows * k));

  const Array out = array({rows * k, n}), shared = array({rows, n}), logit = array({rows, 1}, 2), y = zeros({rows, n});
  combine(stream_, y, out, shared, logit, {}, routing);
  const auto combined = [&](int64_t t, int64_t c) {
    double sum = sigmoid(at(logit, t)) * at(shared, t, c);
    for (int64_t j = 0; j < k; j++) sum += at(weights, t, j) * at(out, place[t * k + j], c);
    return sum;
  };
  expect(y, combined, "combine");
  const Array rows_of = zeros({rows * k, n});
  gather_rows(stream_, rows_of, shared, routing);
  expect(
      rows_of, [&](int64_t r, int64_t c) { return at(shared, token[r], c); }, "gather_rows");
}

TEST_F(Formula, Attention) {
  const AttentionShape shape{6, 2, 5};
  const Packed packed({4, 1, 40});
  const int64_t rows = packed.rows, d = shape.head_dim, group = shape.heads / shape.kv_heads;
  const Array q = array({rows, shape.heads * d}), k = array({rows, shape.kv_heads * d}),
              v = array({rows, shape.kv_heads * d});
  const Array o = zeros({rows, shape.heads * d}), lse = zeros({rows, shape.heads});
  attention(stream_, o, lse, q, k, v, packed, {}, shape);
  const auto score = [&](int64_t t, int64_t h, int64_t s) {
    double sum = 0;
    for (int64_t i = 0; i < d; i++) sum += at(q, t, h * d + i) * at(k, s, h / group * d + i);
    return sum / std::sqrt(static_cast<double>(d));
  };
  const auto begin = [&](int64_t t) { return t - packed.positions.view().as<int32_t>()[t]; };
  const auto normaliser = [&](int64_t t, int64_t h) {
    double sum = 0;
    for (int64_t s = begin(t); s <= t; s++) sum += std::exp(score(t, h, s));
    return std::log(sum);
  };
  expect(lse, normaliser, "lse");
  const auto wanted = [&](int64_t t, int64_t column) {
    const int64_t h = column / d;
    double sum = 0;
    for (int64_t s = begin(t); s <= t; s++) {
      sum += std::exp(score(t, h, s) - at(lse, t, h)) * at(v, s, h / group * d + column % d);
    }
    return sum;
  };
  expect(o, wanted, "attention");
  const Array x = array({rows, 2 * shape.heads * d}, 3), a = zeros({rows, shape.heads * d});
  attention_gate(stream_, a, o, x, shape);
  const auto gated = [&](int64_t t, int64_t c) {
    return at(o, t, c) * sigmoid(at(x, t, (2 * (c / d) + 1) * d + c % d));
  };
  expect(a, gated, "attention_gate");
}

TEST_F(Formula, ConvAndGates) {
  const Packed packed({3, 1, 20});
  const int64_t rows = packed.rows, n = 9, taps = 4;
  const Array x = array({rows, n}), w = array({n, 1, taps}), y = zeros({rows, n});
  conv_silu(stream_, y, x, w, packed, {});
  const auto conv = [&](int64_t t, int64_t c) {
    double sum = 0;
    for (int64_t i = 0; i < taps; i++) {
      const int64_t back = taps - 1 - i;
      if (packed.positions.view().as<int32_t>()[t] >= back) sum += at(w, c, i) * at(x, t - back, c);
    }
    return sum * sigmoid(sum);
  };
  expect(y, conv, "conv_silu");
  const Array a = array({rows, n}, 10), b = array({rows, n}), A_log = array({n}), bias = array({n});
  const Array g = zeros({rows, n}), beta = zeros({rows, n});
  delta_gates(stream_, g, beta, a, b, A_log, bias);
  const auto decay = [&](int64_t t, int64_t h) {
    return -std::exp(at(A_log, h)) * std::log1p(std::exp(at(a, t, h) + at(bias, h)));
  };
  const Values values = g.values();
  for (int64_t i = 0; i < rows * n; i++) {
    // Above 20 the softplus is taken as its argument, which is off by e^-20 of it.
    EXPECT_NEAR(values[static_cast<size_t>(i)], decay(i / n, i % n), std::exp(-20.0) * std::exp(at(A_log, i % n)));
  }
  expect(
      beta, [&](int64_t t, int64_t h) { return sigmoid(at(b, t, h)); }, "beta");
}

TEST_F(Formula, AdamW) {
  const int64_t n = 50;
  const AdamParams p{0.01, 0.9, 0.98, 1e-3, 0.1, 0.5, 3};
  const Array w = array({n}), m = array({n}), v(DType::f64, {n}, random_.uniform(n, 0, 1)), g = array({n});
  const Array w0(DType::f64, {n}, w.values()), m0(DType::f64, {n}, m.values()), v0(DType::f64, {n}, v.values());
  const Array weight = zeros({n});
  adamw(stream_, weight, w, m, v, g, p);
  const auto m1 = [&](int64_t i, int64_t) { return 0.9 * at(m0, i) + 0.1 * 0.5 * at(g, i); };
  const auto v1 = [&](int64_t i, int64_t) { return 0.98 * at(v0, i) + 0.02 * 0.25 * at(g, i) * at(g, i); };
  const auto w1 = [&](int64_t i, int64_t) {
    const double mean = m1(i, 0) / (1 - 0.9 * 0.9 * 0.9), square = v1(i, 0) / (1 - 0.98 * 0.98 * 0.98);
    return at(w0, i) * (1 - 0.01 * 0.1) - 0.01 * mean / (std::sqrt(square) + 1e-3);
  };
  expect(m, m1, "m");
  expect(v, v1, "v");
  expect(w, w1, "master");
  expect(weight, w1, "weight");
}

TEST_F(Formula, ElementwiseAndRounding) {
  const Array x(DType::f32, {4}, {1, 1.00390625, 1.01171875, -3}), y(DType::bf16, {4}, {0, 0, 0, 256});
  add(stream_, y, x);
  // bf16 has 8 significant bits: halfway cases go to the even neighbour.
  EXPECT_EQ(y.values(), (Values{1, 1, 1.015625, 253}));
  convert(stream_, y, x);
  EXPECT_EQ(y.values(), (Values{1, 1, 1.015625, -3}));
  convert(stream_, x, y);
  EXPECT_EQ(x.values(), y.values());
}

}  // namespace
}  // namespace furlong::test
