// The reference checkpoint against reference outputs of its forward and backward.
#include <gtest/gtest.h>

#include <algorithm>

#include "golden.h"
#include "support.h"

namespace furlong::test {
namespace {

constexpr size_t sequences_in_golden = 7;

Sequences golden_sequences(const Golden& golden, size_t longer_than = 0) {
  Sequences out;
  for (size_t i = 0; i < sequences_in_golden; i++) {
    auto tokens = golden.integers(fmt::format("seq{}.input_ids", i));
    if (tokens.size() > longer_than) out.push_back(std::move(tokens));
  }
  return out;
}

template <class A, class B>
double largest_difference(const A& a, const B& b, size_t n) {
  EXPECT_LE(n, a.size());
  EXPECT_LE(n, b.size());
  double largest = 0;
  for (size_t i = 0; i < std::min({n, a.size(), b.size()}); i++) {
    const double d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    largest = d > largest || std::isnan(d) ? d : largest;
  }
  return largest;
}

std::vector<double> log_softmax_of(const std::vector<float>& logits, size_t vocab) {
  std::vector<double> out(logits.begin(), logits.end());
  for (size_t row = 0; row < out.size(); row += vocab) {
    double sum = 0;
    for (size_t i = row; i < row + vocab; i++) sum += std::exp(out[i]);
    for (size_t i = row; i < row + vocab; i++) out[i] -= std::log(sum);
  }
  return out;
}

class GoldenForward : public ::testing::Test {
 protected:
  GoldenForward()
      : golden_("golden_forward.safetensors"),
        config_(tiny_config()),
        weights_(tiny_weights(config_, DType::f32)),
        sequences_(golden_sequences(golden_)),
        pass_(config_, weights_, sequences_, {}) {}

  Tensor rows(const Tensor& t, size_t s) const { return t.rows(pass_.start(s), pass_.start(s + 1)); }

  Golden golden_;
  ModelConfig config_;
  Weights weights_;
  Sequences sequences_;
  Pass pass_;
};

TEST_F(GoldenForward, LogProbsOfEveryToken) {
  const auto vocab = static_cast<size_t>(config_.vocab_size);
  size_t scored = 0;
  for (size_t s = 0; s < sequences_.size(); s++) {
    const size_t n = sequences_[s].size();
    const auto want = log_softmax_of(golden_.floats(fmt::format("seq{}.logits", s)), vocab);
    EXPECT_LT(largest_difference(pass_.log_softmax(rows(pass_.hidden(), s)), want, n * vocab), 1e-4) << "sequence " << s;
    for (size_t t = 0; t + 1 < n; t++) {
      EXPECT_NEAR(pass_.log_probs()[scored++], want[t * vocab + static_cast<size_t>(sequences_[s][t + 1])], 1e-4);
    }
  }
  EXPECT_EQ(scored, pass_.log_probs().size());
}

TEST_F(GoldenForward, MtpLogProbsOfEveryToken) {
  const auto vocab = static_cast<size_t>(config_.vocab_size);
  size_t scored = 0;
  for (size_t s = 0; s < sequences_.size(); s++) {
    const size_t n = sequences_[s].size();
    if (n < 2) continue;  // no row has a next token
    const auto want = log_softmax_of(golden_.floats(fmt::format("seq{}.mtp_logits", s)), vocab);
    const auto got = pass_.log_softmax(rows(pass_.mtp_hidden(), s));
    EXPECT_LT(largest_difference(got, want, (n - 1) * vocab), 1e-4) << "sequence " << s;
    for (size_t t = 0; t + 2 < n; t++) {
      EXPECT_NEAR(pass_.mtp_log_probs()[scored++], want[t * vocab + static_cast<size_t>(sequences_[s][t + 2])], 1e-4);
    }
  }
  EXPECT_EQ(scored, pass_.mtp_log_probs().size());
}

TEST_F(GoldenForward, HiddenStatesOfEveryLayer) {
  const auto check = [&](const std::string& name, const Tensor& t, size_t s) {
    const auto want = golden_.floats(name);
    double largest = 0;
    for (const float x : want) largest = std::max(largest, std::abs(static_cast<double>(x)));
    EXPECT_LT(largest_difference(values_of(rows(t, s)), want, want.size()), 1e-4 * std::max(1.0, largest)) << name;
  };
  const auto& layers = pass_.saved().layers;
  size_t traced = 0;
  for (size_t s = 0; s < sequences_.size(); s++) {
    check(fmt::format("seq{}.final_hidden", s), pass_.hidden(), s);
    if (!golden_.has(fmt::format("seq{}.embed", s))) continue;
    traced++;
    check(fmt::format("seq{}.embed", s), layers[0].input, s);
    for (size_t l = 0; l < layers.size(); l++) {
      check(fmt::format("seq{}.layer{}", s, l), l + 1 < layers.size() ? layers[l + 1].input : pass_.saved().last, s);
    }
  }
  EXPECT_EQ(traced, 2u);
}

TEST_F(GoldenForward, RoutesOfEveryLayer) {
  for (const size_t s : {size_t{2}, size_t{4}}) {
    for (size_t l = 0; l < static_cast<size_t>(config_.num_layers); l++) {
      const Routing& routing = pass_.saved().layers[l].moe.routing;
      const std::string name = fmt::format("seq{}.route{}", s, l);
      const Tensor ids = rows(routing.ids, s);
      const std::vector<int32_t> got(ids.as<int32_t>(), ids.as<int32_t>() + ids.numel());
      EXPECT_EQ(got, golden_.integers(name + ".experts")) << name;
      const auto weights = golden_.floats(name + ".weights");
      EXPECT_LT(largest_difference(values_of(rows(routing.weights, s)), weights, weights.size()), 1e-5) << name;
    }
  }
}

class GoldenGradients : public ::testing::Test {
 protected:
  GoldenGradients()
      : golden_("golden_grads.safetensors"),
        config_(tiny_config()),
        weights_(tiny_weights(config_, DType::f32)),
        sequences_(golden_sequences(Golden("golden_forward.safetensors"), 2)) {}

  Golden golden_;
  ModelConfig config_;
  Weights weights_;
  Sequences sequences_;
};

TEST_F(GoldenGradients, OfTheNextTokenAndOfTheMtpLoss) {
  const Pass pass(config_, weights_, sequences_, {});
  EXPECT_NEAR(pass.loss(), golden_.number("sft.loss"), 1e-5 * pass.loss());
  EXPECT_NEAR(pass.mtp_loss(), golden_.number("mtp.loss"), 1e-5 * pass.mtp_loss());
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& grad) {
        const std::string name = (spec.mtp ? "mtp.grad." : "sft.grad.") + spec.name;
        EXPECT_LT(relative_error(values_of(grad), golden_.floats(name)), 1e-4) << spec.name;
      },
      pass.grads());
}

TEST_F(GoldenGradients, MtpTouchesNothingElse) {
  const Pass both(config_, weights_, sequences_, {}), trunk(config_, weights_, sequences_, {.mtp = false}),
      mtp(config_, weights_, sequences_, {.trunk = false});
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& of_both, const Tensor& of_trunk, const Tensor& of_mtp) {
        const Tensor& untouched = spec.mtp ? of_trunk : of_mtp;
        EXPECT_EQ(bytes_of(untouched), std::string(untouched.bytes(), '\0')) << spec.name;
        EXPECT_EQ(bytes_of(of_both), bytes_of(spec.mtp ? of_mtp : of_trunk)) << spec.name;
      },
      both.grads(), trunk.grads(), mtp.grads());
}

// Every intermediate is rounded to bfloat16 (relative error at most u = 2^-8), about `roundings` times per layer. Errors
// of independent roundings add up as squares, so that the hidden state's relative error grows as u sqrt(layers *
// roundings) as long as the same experts are chosen; a token whose route flips may be far off, so rows are judged by
// their median, and log-probs by their mean.
TEST(GoldenBf16, StaysNearFloat32AndRepeats) {
  const Golden golden("golden_forward.safetensors");
  const ModelConfig config = tiny_config();
  const Weights weights = tiny_weights(config, DType::bf16);
  const Sequences sequences = golden_sequences(golden);
  const Pass pass(config, weights, sequences, {.backward = false}), again(config, weights, sequences, {.backward = false});
  EXPECT_EQ(bytes_of(pass.hidden()), bytes_of(again.hidden()));
  EXPECT_EQ(bytes_of(pass.mtp_hidden()), bytes_of(again.mtp_hidden()));

  constexpr double u = 1.0 / 256, roundings = 12;
  const double bound = u * std::sqrt(static_cast<double>(config.num_layers) * roundings);
  std::vector<double> errors;
  double difference = 0, plain = 0;
  size_t scored = 0;
  for (size_t s = 0; s < sequences.size(); s++) {
    const auto h = static_cast<size_t>(config.hidden_size), vocab = static_cast<size_t>(config.vocab_size);
    const auto want = golden.floats(fmt::format("seq{}.final_hidden", s));
    const auto got = values_of(pass.hidden().rows(pass.start(s), pass.start(s + 1)));
    for (size_t row = 0; row < want.size(); row += h) {
      errors.push_back(relative_error(std::span(got).subspan(row, h), std::span(want).subspan(row, h)));
    }
    const auto log_probs = log_softmax_of(golden.floats(fmt::format("seq{}.logits", s)), vocab);
    for (size_t t = 0; t + 1 < sequences[s].size(); t++) {
      const double p = log_probs[t * vocab + static_cast<size_t>(sequences[s][t + 1])];
      plain += p;
      difference += pass.log_probs()[scored++] - p;
    }
  }
  std::nth_element(errors.begin(), errors.begin() + static_cast<int64_t>(errors.size() / 2), errors.end());
  const double median = errors[errors.size() / 2];
  EXPECT_LT(median, bound);
  EXPECT_GT(median, u / 8);  // it did run in bfloat16
  // The mean over n tokens of errors of random sign, each of the size of a row's error times the size of a log-prob.
  const auto n = static_cast<double>(scored);
  EXPECT_LT(std::abs(difference / n), 4 * bound * std::abs(plain / n) / std::sqrt(n));
}

}  // namespace
}  // namespace furlong::test
