#include "ops/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support.h"

namespace furlong::test {
namespace {

// The draw as sample.h states it, over all tokens and without shortcuts.
int64_t plain_draw(const std::vector<float>& logits, const SampleRow& row) {
  const auto n = static_cast<int64_t>(logits.size());
  std::vector<int64_t> order(logits.size());
  for (int64_t i = 0; i < n; i++) order[static_cast<size_t>(i)] = i;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  const SampleParams& p = row.params;
  if (p.temperature == 0) return order[0];
  if (p.top_k > 0 && p.top_k < n) order.resize(static_cast<size_t>(p.top_k));
  const auto weight = [&](int64_t i) {
    return std::exp((static_cast<double>(logits[static_cast<size_t>(i)]) -
                     static_cast<double>(logits[static_cast<size_t>(order[0])])) /
                    p.temperature);
  };
  double total = 0, sum = 0;
  for (const int64_t i : order) total += weight(i);
  size_t kept = 0;
  while (kept < order.size() && (kept == 0 || sum < p.top_p * total || p.top_p >= 1)) sum += weight(order[kept++]);
  order.resize(kept);
  std::sort(order.begin(), order.end());
  int64_t best = -1;
  float value = -INFINITY;
  for (const int64_t i : order) {
    const float noisy = logits[static_cast<size_t>(i)] / static_cast<float>(p.temperature) +
                        gumbel(random_word(row.key, static_cast<uint32_t>(i)));
    if (best < 0 || noisy > value) {
      best = i;
      value = noisy;
    }
  }
  return best;
}

RngKey key_of(uint32_t position) { return {12345, 3, 1, position}; }

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
};

Drawn draw(const OpTable& ops, int threads, const Tensor& logits, const std::vector<SampleRow>& rows) {
  ThreadPool pool(threads);
  Stream stream(pool);
  Drawn out;
  out.tokens.resize(rows.size());
  out.log_probs.resize(rows.size());
  const auto n = static_cast<int64_t>(rows.size());
  ops.sample(stream, Tensor(out.tokens.data(), DType::i32, {n}), Tensor(out.log_probs.data(), DType::f32, {n}), logits,
             rows);
  return out;
}

TEST(Sample, ShortcutsDoNotChangeTheDraw) {
  Random random(71);
  for (const int64_t vocabulary : {1, 3, 64, 127, 130, 1000, 40000}) {
    const int64_t rows = vocabulary > 10000 ? 24 : 200;
    for (const double spread : {0.1, 3.0, 12.0}) {
      std::vector<SampleRow> how;
      for (int64_t r = 0; r < rows; r++) {
        const SampleParams all[] = {{1, 0, 1}, {0.7, 5, 1},  {1.5, 0, 0.8}, {1, 20, 0.5},
                                    {0, 0, 1}, {0.05, 0, 1}, {1, 1, 1},     {1, 0, 0}};
        how.push_back({key_of(static_cast<uint32_t>(r)), all[r % 8]});
      }
      const Array logits(DType::f32, {rows, vocabulary}, random.normal(rows * vocabulary, spread), 3);
      for (const auto* ops : cpu::all_ops()) {
        const Drawn drawn = draw(*ops, 2, logits, how);
        for (int64_t r = 0; r < rows; r++) {
          const float* row = logits.view().as<float>() + r * logits.view().row_stride();
          ASSERT_EQ(drawn.tokens[static_cast<size_t>(r)],
                    plain_draw(std::vector<float>(row, row + vocabulary), how[static_cast<size_t>(r)]))
              << ops->isa << ", vocabulary " << vocabulary << ", spread " << spread << ", row " << r;
        }
        // Alone, and with threads to share: the same.
        for (int64_t r = 0; r < std::min<int64_t>(rows, 16); r++) {
          const Drawn alone = draw(*ops, 3, logits.view().rows(r, r + 1), {how[static_cast<size_t>(r)]});
          EXPECT_EQ(alone.tokens[0], drawn.tokens[static_cast<size_t>(r)]);
          EXPECT_EQ(alone.log_probs[0], drawn.log_probs[static_cast<size_t>(r)]);
        }
      }
    }
  }
}

// Σ (observed - expected)² / expected has mean `freedom` and variance 2·freedom; five deviations are never reached by
// luck.
double chi_square_limit(int freedom) { return freedom + 5 * std::sqrt(2.0 * freedom); }

TEST(Sample, FollowsTheDistribution) {
  const Values logits{2, -1, 0.5, 0.5, 1.2, -3, 0, 1.9};
  const int64_t n = static_cast<int64_t>(logits.size()), draws = 40000;
  Values repeated;
  for (int64_t i = 0; i < draws; i++) repeated.insert(repeated.end(), logits.begin(), logits.end());
  const Array many(DType::f32, {draws, n}, repeated);
  for (const SampleParams params : {SampleParams{1, 0, 1}, SampleParams{0.5, 0, 1}, SampleParams{2, 3, 1},
                                    SampleParams{1, 0, 0.7}, SampleParams{1.3, 6, 0.9}, SampleParams{1, 4, 0.01}}) {
    // The kept tokens and their renormalised probabilities.
    std::vector<size_t> order{0, 7, 4, 2, 3, 6, 1, 5};
    Values p(logits.size(), 0.0);
    double total = 0, sum = 0;
    if (params.top_k > 0) order.resize(static_cast<size_t>(params.top_k));
    for (const size_t i : order) total += std::exp(logits[i] / params.temperature);
    int kept = 0;
    for (const size_t i : order) {
      if (kept > 0 && sum >= params.top_p * total) break;
      sum += p[i] = std::exp(logits[i] / params.temperature);
      kept++;
    }
    std::vector<SampleRow> rows;
    for (int64_t i = 0; i < draws; i++) rows.push_back({key_of(static_cast<uint32_t>(i)), params});
    Values observed(logits.size(), 0.0);
    for (const int32_t token : draw(*cpu::all_ops().front(), 2, many, rows).tokens)
      observed[static_cast<size_t>(token)] += 1;
    double chi_square = 0;
    for (size_t i = 0; i < logits.size(); i++) {
      const double expected = static_cast<double>(draws) * p[i] / sum;
      if (p[i] == 0) {
        EXPECT_EQ(observed[i], 0) << "token " << i << " is not kept";
      } else {
        chi_square += (observed[i] - expected) * (observed[i] - expected) / expected;
      }
    }
    EXPECT_LE(chi_square, chi_square_limit(kept - 1))
        << "T " << params.temperature << ", k " << params.top_k << ", p " << params.top_p;
  }
}

TEST(Sample, TemperatureZeroTakesTheFirstOfTheLikeliest) {
  const Array logits(DType::f32, {2, 5}, {1, 3, 2, 3, 3, -1, -HUGE_VAL, -1, -2, -HUGE_VAL});
  const SampleParams greedy{0, 2, 0.1};
  for (const auto* ops : cpu::all_ops()) {
    const Drawn drawn = draw(*ops, 1, logits, {{key_of(0), greedy}, {key_of(1), greedy}});
    EXPECT_EQ(drawn.tokens, (std::vector<int32_t>{1, 0}));
    EXPECT_NEAR(drawn.log_probs[0], -std::log(3 + std::exp(-2.0) + std::exp(-1.0)), 1e-6);
    EXPECT_NEAR(drawn.log_probs[1], -std::log(2 + std::exp(-1.0)), 1e-6);
  }
}

// Of equal likelihood, the lower ids are kept.
TEST(Sample, TiesAtTheEdgeOfTheKept) {
  const int64_t draws = 300;
  Values equal(static_cast<size_t>(draws * 6), 0.5);
  const Array logits(DType::f32, {draws, 6}, equal);
  for (const SampleParams params : {SampleParams{1, 2, 1}, SampleParams{1, 0, 0.3}}) {
    std::vector<SampleRow> rows;
    for (int64_t i = 0; i < draws; i++) rows.push_back({key_of(static_cast<uint32_t>(i)), params});
    int seen[6] = {};
    for (const int32_t token : draw(*cpu::all_ops().front(), 1, logits, rows).tokens) seen[token]++;
    EXPECT_GT(seen[0], 100);
    EXPECT_GT(seen[1], 100);
    EXPECT_EQ(seen[0] + seen[1], draws);
  }
}

TEST(Sample, RecordedLogProbIsThatOfTheLoss) {
  Random random(72);
  for (const int64_t vocabulary : {1, 9, 513, 20000}) {
    for (const double temperature : {0.0, 1.0, 0.37}) {
      const int64_t rows = 5;
      const Array logits(DType::f32, {rows, vocabulary}, random.normal(rows * vocabulary, 4), 1);
      std::vector<SampleRow> how;
      for (int64_t r = 0; r < rows; r++) how.push_back({key_of(static_cast<uint32_t>(r)), {temperature, 7, 0.9}});
      for (const auto* ops : cpu::all_ops()) {
        const Drawn drawn = draw(*ops, 2, logits, how);
        ThreadPool threads(3);
        Stream stream(threads);
        const Array targets = Array::indices(drawn.tokens), lp(DType::f32, {rows}), lse(DType::f32, {rows}),
                    h(DType::f32, {rows});
        ops->log_prob(stream, lp, lse, h, logits, targets, temperature == 0 ? 1 : temperature);
        for (int64_t r = 0; r < rows; r++) EXPECT_EQ(lp.view().as<float>()[r], drawn.log_probs[static_cast<size_t>(r)]);
      }
    }
  }
}

// A masked token has probability zero, adds nothing to the entropy, and gets no gradient.
TEST(Loss, MaskedLogits) {
  const Values l{1, -HUGE_VAL, 2, -HUGE_VAL, 0};
  const double z = std::exp(1) + std::exp(2) + 1, lse = std::log(z),
               entropy = lse - (std::exp(1) + 2 * std::exp(2)) / z;
  for (const auto* ops : cpu::all_ops()) {
    ThreadPool threads(1);
    Stream stream(threads);
    const Array logits(DType::f32, {1, 5}, l), lp(DType::f32, {1}), norm(DType::f32, {1}), h(DType::f32, {1});
    const Array one(DType::f32, {1}, {1.0}), target = Array::indices({0});
    ops->log_prob(stream, lp, norm, h, logits, target, 1);
    EXPECT_NEAR(lp.values()[0], 1 - lse, 1e-6);
    EXPECT_NEAR(h.values()[0], entropy, 1e-6);
    ops->log_prob_backward(stream, logits, one, one, norm, h, target, 1);
    const Values gradient = logits.values();
    EXPECT_EQ(gradient[1], 0);
    EXPECT_EQ(gradient[3], 0);
    const double p2 = std::exp(2) / z;
    EXPECT_NEAR(gradient[2], -p2 - p2 * (2 - lse + entropy), 1e-6);
  }
}

}  // namespace
}  // namespace furlong::test
