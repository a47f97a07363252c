// The whole model in float64: its backward against central differences, its norms against their definition.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "support.h"

namespace furlong::test {
namespace {

std::vector<std::string> routes(const Pass& pass) {
  std::vector<std::string> ids;
  for (const auto& layer : pass.saved().layers) ids.push_back(bytes_of(layer.moe.routing.ids));
  return ids;
}

double norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

class WholeModel : public ::testing::Test {
 protected:
  WholeModel() : config_(odd_config()), weights_(config_, DType::f64) {
    fill_random(weights_, 11);
    sequences_ = disjoint_sequences({63, 1, 65, 2, 7}, config_.vocab_size, 12);
  }

  // d loss / d x along `direction` of one tensor by the five-point rule.
  double slope(const Tensor& t, const std::vector<double>& direction, bool mtp) {
    constexpr double h = 1e-4;
    const std::vector<double> centre = values_of(t);
    const auto loss_at = [&](double step) {
      for (size_t i = 0; i < centre.size(); i++) t.as<double>()[i] = centre[i] + step * direction[i];
      const Pass pass(config_, weights_, sequences_, options(mtp, false));
      return mtp ? pass.mtp_loss() : pass.loss();
    };
    const double result = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
    loss_at(0);
    return result;
  }

  static PassOptions options(bool mtp, bool backward) {
    return {.backward = backward, .mtp = mtp, .trunk = !mtp, .temperature = 0.8, .entropy = 0.3};
  }

  void check(bool mtp) {
    const Pass pass(config_, weights_, sequences_, options(mtp, true));
    std::mt19937 engine(13);
    std::normal_distribution<double> normal;
    for_each_tensor(
        [&](const TensorSpec& spec, const Tensor& weight, const Tensor& grad) {
          if (spec.mtp != mtp) return;
          const std::vector<double> analytic = values_of(grad);
          const double size = norm(analytic);
          EXPECT_GT(size, 1e-6) << spec.name << " does not matter";
          // Along the gradient itself, which shows its length, and along random directions, which show the rest.
          for (int kind = 0; kind < 3; kind++) {
            std::vector<double> direction = analytic;
            if (kind > 0) {
              for (auto& x : direction) x = normal(engine);
            }
            const double length = norm(direction);
            double expected = 0;
            for (size_t i = 0; i < direction.size(); i++) {
              direction[i] /= length;
              expected += direction[i] * analytic[i];
            }
            EXPECT_NEAR(slope(weight, direction, mtp), expected, 1e-6 * size + 1e-10)
                << spec.name << ", direction " << kind;
          }
        },
        weights_, pass.grads());
  }

  ModelConfig config_;
  Weights weights_;
  Sequences sequences_;
};

TEST_F(WholeModel, GradientOfTheTrunk) { check(false); }
TEST_F(WholeModel, GradientOfTheMtpHead) { check(true); }

// Every kind of part occurs, and every expert gets tokens: otherwise the checks above would show nothing of it.
TEST_F(WholeModel, UsesEveryExpert) {
  const Pass pass(config_, weights_, sequences_, options(false, true));
  ASSERT_EQ(routes(pass).size(), 3u);
  for (const auto& layer : pass.saved().layers) {
    const int32_t* offsets = layer.moe.routing.offsets.as<int32_t>();
    for (int64_t e = 0; e < config_.num_experts; e++) EXPECT_LT(offsets[e], offsets[e + 1]) << "expert " << e;
  }
}

// With an eps that shows. Zero-centred weights: y = x / sqrt(mean x² + eps) (1 + w).
TEST(Norms, TakeTheirEpsAndWeight) {
  ModelConfig config = odd_config();
  config.rms_norm_eps = 0.3;
  Weights weights(config, DType::f64);
  fill_random(weights, 14);
  const Pass pass(config, weights, disjoint_sequences({9, 70}, config.vocab_size, 15), {});
  const auto expect_norm = [&](const Tensor& y, const Tensor& x, const Tensor& w, const std::string& what) {
    for (int64_t r = 0; r < x.rows(); r++) {
      const double *in = x.as<double>() + r * x.row_stride(), *out = y.as<double>() + r * y.row_stride();
      double squares = 0;
      for (int64_t i = 0; i < w.numel(); i++) squares += in[i] * in[i] / static_cast<double>(w.numel());
      for (int64_t i = 0; i < w.numel(); i++) {
        ASSERT_NEAR(out[i], in[i] / std::sqrt(squares + 0.3) * (1 + w.as<double>()[i]), 1e-12) << what << " row " << r;
      }
    }
  };
  const auto expect_layer = [&](const LayerSaved& layer, const LayerWeights& w, const std::string& what) {
    expect_norm(layer.normed, layer.input, w.input_norm, what + " input");
    expect_norm(layer.mid_normed, layer.mid, w.post_norm, what + " middle");
  };
  for (size_t l = 0; l < weights.layers.size(); l++) {
    expect_layer(pass.saved().layers[l], weights.layers[l], fmt::format("layer {}", l));
  }
  expect_norm(pass.hidden(), pass.saved().last, weights.final_norm, "final");
  const MtpSaved& mtp = pass.mtp_saved();
  const MtpWeights& w = weights.mtp.front();
  const int64_t h = config.hidden_size;
  expect_norm(mtp.joined.columns(0, h), mtp.embedded, w.norm_embedding, "MTP embedding");
  expect_norm(mtp.joined.columns(h, 2 * h), mtp.hidden, w.norm_hidden, "MTP hidden");
  expect_layer(mtp.layer, w.layer, "MTP layer");
  expect_norm(pass.mtp_hidden(), mtp.last, w.norm, "MTP final");
}

}  // namespace
}  // namespace furlong::test
