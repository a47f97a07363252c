// Drawn sequences follow the model's own distribution whatever the drafts: a chi-square test through the engine.
#include <cmath>
#include <numeric>

#include "model/model.h"
#include "rl/loss_head.h"
#include "rollout/fixture.h"

namespace furlong {
namespace {

constexpr int64_t vocab = 8, new_tokens = 4, cells = vocab * vocab * vocab * vocab;
constexpr int64_t samples = 34000;  // three verified draws each: more than 1e5
const std::vector<int32_t> prompt = {2, 5};

std::vector<int32_t> digits(int64_t cell) {
  std::vector<int32_t> out(new_tokens);
  for (int64_t i = new_tokens - 1; i >= 0; i--, cell /= vocab)
    out[static_cast<size_t>(i)] = static_cast<int32_t>(cell % vocab);
  return out;
}

// The log-probs of every sequence of four tokens behind the prompt: (cells x new_tokens).
std::vector<double> all_log_probs(const TestModel& m, double temperature) {
  ThreadPool threads(1);
  BatchBuilder builder;
  std::vector<HeadRow> rows;
  for (int64_t cell = 0; cell < cells; cell++) {
    std::vector<int32_t> tokens = prompt;
    const auto next = digits(cell);
    tokens.insert(tokens.end(), next.begin(), next.end());
    for (size_t t = prompt.size(); t < tokens.size(); t++) {
      rows.push_back({static_cast<int32_t>(builder.rows() + static_cast<int64_t>(t)) - 1, tokens[t]});
    }
    builder.add(tokens.data(), static_cast<int64_t>(tokens.size()));
  }
  std::vector<double> log_probs(rows.size());
  const Batch batch = builder.batch();
  const auto body = [&](Exec exec) {
    const Tensor hidden = model_forward(exec, m.config, m.weights, batch, nullptr);
    score_rows(exec, m.weights, hidden, rows, {.temperature = temperature}, log_probs, {});
  };
  Arena measure = Arena::measuring();
  Stream dry = Stream::dry(threads), stream(threads);
  body({dry, measure});
  Arena arena(measure.high_mark());
  body({stream, arena});
  return log_probs;
}

// P(X >= x) of a chi-square variable with many degrees of freedom (Wilson and Hilferty, 1931).
double chi_square_tail(double x, double freedom) {
  const double v = 2 / (9 * freedom);
  const double z = (std::cbrt(x / freedom) - (1 - v)) / std::sqrt(v);
  return 0.5 * std::erfc(z / std::sqrt(2.0));
}

// p of the observed counts; cells expected fewer than 5 times are pooled.
double p_value(const std::vector<double>& expected, const std::vector<int64_t>& observed) {
  double statistic = 0, pooled_expected = 0;
  int64_t kept = 0, pooled_observed = 0;
  for (size_t i = 0; i < expected.size(); i++) {
    if (expected[i] < 5) {
      pooled_expected += expected[i];
      pooled_observed += observed[i];
      continue;
    }
    const double d = static_cast<double>(observed[i]) - expected[i];
    statistic += d * d / expected[i];
    kept++;
  }
  if (pooled_expected >= 5) {
    const double d = static_cast<double>(pooled_observed) - pooled_expected;
    statistic += d * d / pooled_expected;
    kept++;
  }
  return chi_square_tail(statistic, static_cast<double>(kept - 1));
}

// Token 0 is the least likely everywhere, and the MTP head's logits are all equal, so that greedy drafts are always 0
// and coupled drafts follow the noise alone.
TestModel adversarial_model() {
  TestModel m = toy_model(vocab);
  // Every residual stream keeps the same large entry in dimension 0.
  for (int64_t i = 0; i < vocab; i++) m.weights.embed.at(i).as<float>()[0] = 20;
  for (int64_t i = 0; i < vocab; i++) {
    float* row = m.weights.lm_head.at(i).as<float>();
    for (int64_t j = 0; j < m.config.hidden_size; j++) row[j] *= i == 0 ? 0 : 0.6f;
    row[0] = i == 0 ? -0.8f : 0;
  }
  for (auto& layer : m.weights.layers) {
    fill((layer.full_attention ? layer.attention.o : layer.delta.out).rows(0, 1), 0);
    fill(layer.moe.shared_down.rows(0, 1), 0);
    for (int64_t e = 0; e < m.config.num_experts; e++) fill(layer.moe.down.at(e).rows(0, 1), 0);
  }
  silence(m.weights.mtp.front().layer);
  fill(m.weights.mtp.front().fc, 0);
  return m;
}

struct Drafting {
  int64_t drafts;
  bool greedy;
};

class Distribution : public testing::TestWithParam<Drafting> {};

TEST_P(Distribution, IsTheModelsOwn) {
  const TestModel m = adversarial_model();
  const auto log_probs = all_log_probs(m, 1);
  std::vector<double> expected(cells);
  for (int64_t cell = 0; cell < cells; cell++) {
    const auto first = log_probs.begin() + cell * new_tokens;
    expected[static_cast<size_t>(cell)] = samples * std::exp(std::accumulate(first, first + new_tokens, 0.0));
    // Token 0 is the least likely one here (the last token of cells that differ in nothing else).
    if (cell % vocab != 0) {
      EXPECT_LT(log_probs[static_cast<size_t>(cell / vocab * vocab * new_tokens + 3)], first[3]);
    }
  }
  EXPECT_NEAR(std::accumulate(expected.begin(), expected.end(), 0.0), samples, 1e-3 * samples);

  const Request r{
      .prompt = prompt, .samples = samples, .params = {.temperature = 1}, .max_new_tokens = new_tokens, .seed = 9};
  const EngineOptions options{.max_running = 512,
                              .drafts = GetParam().drafts,
                              .page = 8,
                              .max_tokens = 8,
                              .prefill_budget = 64,
                              .greedy_drafts = GetParam().greedy};
  std::vector<int64_t> observed(cells, 0);
  int64_t accepted = 0, drafted = 0;
  for (const auto& c : generate(m, options, {r})) {
    int64_t cell = 0;
    for (const int32_t token : c.tokens) cell = cell * vocab + token;
    observed[static_cast<size_t>(cell)]++;
    accepted += c.accepted;
    drafted += c.drafted;
  }
  EXPECT_GT(p_value(expected, observed), 1e-3);
  if (GetParam().drafts == 0) return;
  // The drafts were made, verified, and as bad as meant.
  EXPECT_GT(drafted, 3 * samples);
  const double rate = static_cast<double>(accepted) / static_cast<double>(drafted);
  if (GetParam().greedy) {
    EXPECT_LT(rate, 0.1);
  }
  EXPECT_GT(accepted, 0);
}

INSTANTIATE_TEST_SUITE_P(Drafts, Distribution,
                         testing::Values(Drafting{0, false}, Drafting{3, true}, Drafting{3, false}),
                         [](const auto& info) {
                           if (info.param.drafts == 0) return "None";
                           return info.param.greedy ? "LeastLikely" : "NoiseAlone";
                         });

TEST(ChiSquare, TellsAWrongDistribution) {
  std::vector<double> expected(64, 500);
  std::vector<int64_t> fair(64), biased(64);
  for (size_t i = 0; i < 64; i++) {
    fair[i] = 500 + (i % 2 == 0 ? 20 : -20);
    biased[i] = 500 + (i % 2 == 0 ? 40 : -40);
  }
  EXPECT_GT(p_value(expected, fair), 0.5);
  EXPECT_LT(p_value(expected, biased), 1e-6);
  // Known quantile: P(X > 124.342) = 0.05 with 100 degrees of freedom.
  EXPECT_NEAR(chi_square_tail(124.342, 100), 0.05, 1e-3);
}

}  // namespace
}  // namespace furlong
