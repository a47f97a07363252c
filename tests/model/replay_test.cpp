// The mixture with given routes, in float64: its backward against central differences of a mixture whose gate weights
// are the softmax of the router's logits over the given ids.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "support.h"

namespace furlong::test {
namespace {

class GivenRoutes : public ::testing::Test {
 protected:
  static constexpr int64_t rows = 9;

  GivenRoutes()
      : config_(odd_config()),
        weights_(config_, DType::f64),
        grads_(config_, DType::f64),
        threads_(1),
        arena_(size_t{16} << 20) {
    fill_random(weights_, 21);
    std::mt19937 engine(22);
    std::normal_distribution<double> normal;
    for (auto* numbers : {&x_, &residual_, &dy_}) {
      numbers->resize(static_cast<size_t>(rows * config_.hidden_size));
      for (double& v : *numbers) v = normal(engine);
    }
    for (int64_t r = 0; r < rows; r++) {
      std::vector<int32_t> all(static_cast<size_t>(config_.num_experts));
      for (size_t e = 0; e < all.size(); e++) all[e] = static_cast<int32_t>(e);
      std::shuffle(all.begin(), all.end(), engine);
      ids_.insert(ids_.end(), all.begin(), all.begin() + config_.experts_per_token);
    }
  }

  MoeWeights& moe() { return weights_.layers[0].moe; }
  Tensor matrix(std::vector<double>& numbers) {
    return Tensor(numbers.data(), DType::f64, {rows, config_.hidden_size});
  }

  // The softmax of each row's logits over its ids.
  std::vector<double> gate_weights() {
    std::vector<double> out;
    const int64_t h = config_.hidden_size, k = config_.experts_per_token;
    for (int64_t r = 0; r < rows; r++) {
      double sum = 0;
      for (int64_t j = 0; j < k; j++) {
        const double* w = moe().router.at(ids_[static_cast<size_t>(r * k + j)]).as<double>();
        double logit = 0;
        for (int64_t i = 0; i < h; i++) logit += w[i] * x_[static_cast<size_t>(r * h + i)];
        out.push_back(std::exp(logit));
        sum += out.back();
      }
      for (int64_t j = 0; j < k; j++) out[out.size() - 1 - static_cast<size_t>(j)] /= sum;
    }
    return out;
  }

  // y · dy, and with `backward` its gradients.
  double run(bool backward) {
    Stream stream(threads_);
    Exec exec{stream, arena_};
    const Arena::Scope scope(arena_);
    std::vector<double> gates = gate_weights();
    MoeSaved saved;
    saved.routing = make_routing(exec, config_, rows, DType::f64, false);
    saved.routing.ids = Tensor(ids_.data(), DType::i32, {rows, config_.experts_per_token});
    saved.routing.weights = Tensor(gates.data(), DType::f64, {rows, config_.experts_per_token});
    const Tensor y = arena_.make("y", DType::f64, {rows, config_.hidden_size});
    moe_forward(exec, config_, moe(), y, matrix(x_), matrix(residual_), {}, Routed::given, saved);
    double loss = 0;
    for (size_t i = 0; i < dy_.size(); i++) loss += y.as<double>()[i] * dy_[i];
    if (backward) {
      grads_.zero(stream);
      dx_ = values_of(moe_backward(exec, config_, moe(), saved, matrix(dy_), grads_.layers[0].moe));
    }
    return loss;
  }

  void expect_slope(double* numbers, const std::vector<double>& gradient, const char* what) {
    std::mt19937 engine(23);
    std::normal_distribution<double> normal;
    for (int kind = 0; kind < 3; kind++) {
      std::vector<double> direction(gradient.size());
      double want = 0, size = 0;
      for (size_t i = 0; i < direction.size(); i++) {
        direction[i] = normal(engine);
        want += direction[i] * gradient[i];
        size += gradient[i] * gradient[i];
      }
      EXPECT_GT(size, 1e-6) << what;
      const std::vector<double> centre(numbers, numbers + gradient.size());
      const auto at = [&](double step) {
        for (size_t i = 0; i < centre.size(); i++) numbers[i] = centre[i] + step * direction[i];
        return run(false);
      };
      constexpr double h = 1e-4;
      const double got = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
      at(0);
      EXPECT_NEAR(got, want, 1e-7 * std::sqrt(size) * std::sqrt(static_cast<double>(gradient.size()))) << what;
    }
  }

  ModelConfig config_;
  Weights weights_, grads_;
  ThreadPool threads_;
  Arena arena_;
  std::vector<double> x_, residual_, dy_, dx_;
  std::vector<int32_t> ids_;
};

TEST_F(GivenRoutes, GradientsAreThoseOfTheirSoftmax) {
  run(true);
  const MoeWeights& g = grads_.layers[0].moe;
  const std::vector<double> router = values_of(g.router), up = values_of(g.gate_up), down = values_of(g.down), dx = dx_;
  expect_slope(moe().router.as<double>(), router, "router");
  expect_slope(moe().gate_up.as<double>(), up, "gate_up");
  expect_slope(moe().down.as<double>(), down, "down");
  expect_slope(x_.data(), dx, "x");
}

TEST_F(GivenRoutes, TheRoutersOwnChoiceIsObservedAndChangesNothing) {
  Stream stream(threads_);
  Exec exec{stream, arena_};
  std::vector<double> gates = gate_weights();
  const int64_t k = config_.experts_per_token;
  std::vector<std::string> outputs;
  std::vector<int32_t> own(static_cast<size_t>(rows * k), -1);
  for (const bool observes : {false, true}) {
    MoeSaved saved;
    saved.routing = make_routing(exec, config_, rows, DType::f64, false);
    saved.routing.ids = Tensor(ids_.data(), DType::i32, {rows, k});
    saved.routing.weights = Tensor(gates.data(), DType::f64, {rows, k});
    if (observes) saved.own_ids = Tensor(own.data(), DType::i32, {rows, k});
    const Tensor y = arena_.make("y", DType::f64, {rows, config_.hidden_size});
    moe_forward(exec, config_, moe(), y, matrix(x_), matrix(residual_), {}, Routed::given, saved);
    outputs.push_back(bytes_of(y));
  }
  EXPECT_EQ(outputs[0], outputs[1]);
  MoeSaved saved;
  saved.routing = make_routing(exec, config_, rows, DType::f64);
  const Tensor y = arena_.make("y", DType::f64, {rows, config_.hidden_size});
  moe_forward(exec, config_, moe(), y, matrix(x_), matrix(residual_), {}, Routed::here, saved);
  EXPECT_EQ(bytes_of(saved.routing.ids), bytes_of(Tensor(own.data(), DType::i32, {rows, k})));
  EXPECT_NE(bytes_of(y), outputs[0]);
}

}  // namespace
}  // namespace furlong::test
