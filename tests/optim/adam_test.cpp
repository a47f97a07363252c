// AdamW against a double reference, and what a step may not touch.
#include "optim/adam.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

namespace furlong::test {
namespace {

ModelConfig small_config() {
  ModelConfig c;
  c.vocab_size = 13;
  c.hidden_size = 12;
  c.num_layers = 2;
  c.full_attention = {false, true};
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.head_dim = 6;
  c.rotary_dim = 4;
  c.linear_num_key_heads = 1;
  c.linear_num_value_heads = 3;
  c.linear_key_head_dim = 4;
  c.linear_value_head_dim = 5;
  c.num_experts = 3;
  c.experts_per_token = 2;
  c.moe_intermediate_size = 7;
  c.shared_intermediate_size = 9;
  c.mtp_num_layers = 1;
  return c;
}

double get(const Tensor& t, int64_t i) {
  switch (t.dtype()) {
    case DType::f32: return static_cast<double>(t.as<float>()[i]);
    case DType::bf16: return static_cast<double>(static_cast<float>(t.as<bf16>()[i]));
    default: return t.as<double>()[i];
  }
}

void put(const Tensor& t, int64_t i, double x) {
  switch (t.dtype()) {
    case DType::f32: t.as<float>()[i] = static_cast<float>(x); break;
    case DType::bf16: t.as<bf16>()[i] = bf16(static_cast<float>(x)); break;
    default: t.as<double>()[i] = x;
  }
}

using Numbers = std::vector<std::vector<double>>;

Numbers numbers(const Weights& w) {
  Numbers out;
  for (const Tensor& t : w.tensors()) {
    auto& v = out.emplace_back(static_cast<size_t>(t.numel()));
    for (size_t i = 0; i < v.size(); i++) v[i] = get(t, static_cast<int64_t>(i));
  }
  return out;
}

std::string bytes(const Weights& w) {
  std::string out;
  for (const Tensor& t : w.tensors()) {
    if (t.defined()) out.append(static_cast<const char*>(t.data()), t.bytes());
  }
  return out;
}

class Adam : public ::testing::TestWithParam<DType> {
 protected:
  Adam()
      : config_(small_config()),
        weights_(config_, GetParam()),
        grads_(config_, GetParam() == DType::f64 ? DType::f64 : DType::f32) {
    fill(weights_, 1);
  }

  void fill(const Weights& w, double scale) {
    for (const Tensor& t : w.tensors()) {
      for (int64_t i = 0; i < t.numel(); i++) put(t, i, scale * normal_(engine_));
    }
  }

  std::string state(Optimizer& o) {
    return bytes(weights_) + bytes(o.masters()) + bytes(o.exp_avg()) + bytes(o.exp_avg_sq()) +
           std::to_string(o.steps());
  }

  ModelConfig config_;
  Weights weights_, grads_;
  ThreadPool threads_{1};
  Stream stream_{threads_};
  std::mt19937 engine_{5};
  std::normal_distribution<double> normal_;
};

// The update as Loshchilov and Hutter write it, in double.
struct Reference {
  Numbers w, m, v;
  explicit Reference(Numbers start) : w(std::move(start)), m(w), v(w) {
    for (auto* x : {&m, &v}) {
      for (auto& tensor : *x) std::fill(tensor.begin(), tensor.end(), 0.0);
    }
  }
  void step(const Weights& grads, const OptimOptions& o, double lr, int t, double scale) {
    const Numbers g = numbers(grads);
    for (size_t k = 0; k < w.size(); k++) {
      const TensorSpec& spec = grads.specs()[k];
      if (spec.mtp && !o.train_mtp) continue;
      for (size_t i = 0; i < w[k].size(); i++) {
        const double x = scale * g[k][i];
        m[k][i] = o.beta1 * m[k][i] + (1 - o.beta1) * x;
        v[k][i] = o.beta2 * v[k][i] + (1 - o.beta2) * x * x;
        const double mean = m[k][i] / (1 - std::pow(o.beta1, t)), square = v[k][i] / (1 - std::pow(o.beta2, t));
        const double decay = spec.shape.size() >= 2 ? o.weight_decay : 0;
        w[k][i] -= lr * decay * w[k][i] + lr * mean / (std::sqrt(square) + o.eps);
      }
    }
  }
};

TEST_P(Adam, FollowsTheReference) {
  for (const double clip : {0.0, 0.5, 1e9}) {
    const OptimOptions options{.lr = 0.02,
                               .schedule = {.warmup_steps = 3, .warmup_init = 0.005},
                               .beta1 = 0.8,
                               .beta2 = 0.97,
                               .eps = 1e-6,
                               .weight_decay = 0.3,
                               .clip_grad = clip};
    fill(weights_, 1);
    Optimizer optimizer(config_, weights_, options);
    EXPECT_EQ(optimizer.has_masters(), GetParam() == DType::bf16);
    EXPECT_EQ(numbers(optimizer.masters()), numbers(weights_));
    Reference reference(numbers(weights_));
    for (int t = 1; t <= 6; t++) {
      fill(grads_, std::pow(10.0, t % 3 - 1));
      double squares = 0;
      for (const auto& tensor : numbers(grads_)) {
        for (const double g : tensor) squares += g * g;
      }
      const double norm = std::sqrt(squares), scale = clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1;
      const double lr = t > 3 ? 0.02 : 0.005 + 0.005 * (t - 1);
      const StepResult result = optimizer.step(stream_, grads_);
      EXPECT_FALSE(result.skipped);
      EXPECT_NEAR(result.grad_norm, norm, 1e-9 * norm);
      EXPECT_NEAR(result.lr, lr, 1e-15);
      reference.step(grads_, options, lr, t, scale);
    }
    EXPECT_EQ(optimizer.steps(), 6);
    // float32 rounds each of the few operations of a step at the size of the numbers on the way, for which a fraction
    // of the largest one stands in.
    const auto compare = [&](const Weights& got, const Numbers& want, const char* what) {
      const Numbers have = numbers(got);
      double largest = 0;
      for (const auto& tensor : want) {
        for (const double x : tensor) largest = std::max(largest, std::abs(x));
      }
      const double tolerance = GetParam() == DType::f64 ? 1e-13 : 2e-6;
      for (size_t k = 0; k < want.size(); k++) {
        for (size_t i = 0; i < want[k].size(); i++) {
          ASSERT_NEAR(have[k][i], want[k][i], tolerance * (std::abs(want[k][i]) + largest / 20))
              << what << " " << got.specs()[k].name << " clip " << clip;
        }
      }
    };
    compare(optimizer.masters(), reference.w, "weights");
    compare(optimizer.exp_avg(), reference.m, "first moments");
    compare(optimizer.exp_avg_sq(), reference.v, "second moments");
    for_each_tensor(
        [](const TensorSpec& spec, const Tensor& weight, const Tensor& master) {
          for (int64_t i = 0; i < weight.numel(); i++) {
            const double m = get(master, i);
            const double want = weight.dtype() == DType::bf16
                                    ? static_cast<double>(static_cast<float>(bf16(static_cast<float>(m))))
                                    : m;
            ASSERT_EQ(get(weight, i), want) << spec.name;
          }
        },
        weights_, optimizer.masters());
  }
}

TEST_P(Adam, DecaysMatricesOnly) {
  Optimizer optimizer(config_, weights_, {.lr = 0.1, .weight_decay = 0.5});
  const Numbers before = numbers(optimizer.masters());
  grads_.zero(stream_);
  EXPECT_EQ(optimizer.step(stream_, grads_).grad_norm, 0);
  const Numbers after = numbers(optimizer.masters());
  size_t vectors = 0;
  for (size_t k = 0; k < before.size(); k++) {
    const bool matrix = weights_.specs()[k].shape.size() >= 2;
    vectors += !matrix;
    for (size_t i = 0; i < before[k].size(); i++) {
      if (matrix) {
        EXPECT_NEAR(after[k][i], 0.95 * before[k][i], 1e-6 * std::abs(before[k][i])) << weights_.specs()[k].name;
      } else {
        EXPECT_EQ(after[k][i], before[k][i]) << weights_.specs()[k].name;
      }
    }
  }
  EXPECT_GT(vectors, 10u);
}

TEST_P(Adam, AGradientThatIsNotFiniteChangesNothing) {
  Optimizer optimizer(config_, weights_, {.lr = 0.1});
  fill(grads_, 1);
  ASSERT_FALSE(optimizer.step(stream_, grads_).skipped);
  const std::string before = state(optimizer);
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity()}) {
    // In the first tensor and in the last one, when the others could have been written already.
    for (const Tensor& t : {grads_.tensors().front(), grads_.tensors().back()}) {
      fill(grads_, 1);
      put(t, t.numel() - 1, bad);
      const StepResult result = optimizer.step(stream_, grads_);
      EXPECT_TRUE(result.skipped);
      EXPECT_FALSE(std::isfinite(result.grad_norm));
      EXPECT_TRUE(state(optimizer) == before);
    }
  }
  fill(grads_, 1);
  EXPECT_FALSE(optimizer.step(stream_, grads_).skipped);
  EXPECT_EQ(optimizer.steps(), 2);
}

// A norm beyond float32 is still a norm: clipped, not skipped.
TEST_P(Adam, LargeGradientsAreClipped) {
  Optimizer optimizer(config_, weights_, {.lr = 0.1, .clip_grad = 1});
  fill(grads_, 1e25);
  const StepResult result = optimizer.step(stream_, grads_);
  EXPECT_FALSE(result.skipped);
  EXPECT_GT(result.grad_norm, 1e25);
  for (const auto& tensor : numbers(optimizer.masters())) {
    for (const double x : tensor) ASSERT_TRUE(std::isfinite(x));
  }
}

TEST_P(Adam, WithoutMtpTrainingItsBytesStay) {
  Optimizer optimizer(config_, weights_, {.lr = 0.1, .weight_decay = 0.5, .train_mtp = false});
  Weights trunk(config_, grads_.dtype(), Device::cpu, false);  // gradients without the MTP part
  const Numbers before = numbers(weights_), masters_before = numbers(optimizer.masters());
  double squares = 0;
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& t) {
        EXPECT_EQ(t.defined(), !spec.mtp);
        for (int64_t i = 0; i < t.numel(); i++) {
          put(t, i, normal_(engine_));
          squares += get(t, i) * get(t, i);
        }
      },
      trunk);
  for (int t = 0; t < 3; t++) EXPECT_NEAR(optimizer.step(stream_, trunk).grad_norm, std::sqrt(squares), 1e-6);
  const Numbers after = numbers(weights_), masters_after = numbers(optimizer.masters());
  for (size_t k = 0; k < before.size(); k++) {
    const TensorSpec& spec = weights_.specs()[k];
    EXPECT_EQ(after[k] == before[k], spec.mtp) << spec.name;
    EXPECT_EQ(masters_after[k] == masters_before[k], spec.mtp) << spec.name;
  }
  // Gradients that do cover the MTP part are not looked at there.
  fill(grads_, 1);
  put(grads_.tensors().back(), 0, std::numeric_limits<double>::quiet_NaN());
  EXPECT_FALSE(optimizer.step(stream_, grads_).skipped);
}

TEST_P(Adam, ThreadsDoNotMatter) {
  fill(grads_, 1);
  const auto result = [&](int threads) {
    Weights weights(config_, GetParam());
    engine_.seed(9);
    normal_.reset();
    fill(weights, 1);
    Optimizer optimizer(config_, weights, {.lr = 0.1});
    ThreadPool pool(threads);
    Stream stream(pool);
    const double norm = optimizer.step(stream, grads_).grad_norm;
    return bytes(weights) + bytes(optimizer.exp_avg_sq()) + std::to_string(norm);
  };
  const std::string one = result(1);
  EXPECT_TRUE(result(2) == one);
  EXPECT_TRUE(result(3) == one);
}

TEST_P(Adam, MastersComeBackIntoTheWeights) {
  Optimizer optimizer(config_, weights_, {});
  if (!optimizer.has_masters()) {
    const std::string before = bytes(weights_);
    optimizer.weights_from_masters(stream_);
    EXPECT_TRUE(bytes(weights_) == before);
    EXPECT_EQ(&optimizer.masters(), &weights_);
    return;
  }
  fill(optimizer.mutable_masters(), 2);
  optimizer.weights_from_masters(stream_);
  for_each_tensor(
      [](const TensorSpec& spec, const Tensor& weight, const Tensor& master) {
        for (int64_t i = 0; i < weight.numel(); i++) {
          const auto m = static_cast<float>(get(master, i));
          const float want = weight.dtype() == DType::bf16 ? static_cast<float>(bf16(m)) : m;
          ASSERT_EQ(get(weight, i), static_cast<double>(want)) << spec.name;
        }
      },
      weights_, optimizer.masters());
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Adam, ::testing::Values(DType::f32, DType::bf16, DType::f64),
                         [](const auto& info) { return std::string(name_of(info.param)); });

// State kept in bf16: each step is the fp32 step from the widened numbers, rounded to nearest even.
TEST(PrecisionAware, IsTheFp32StepRounded) {
  const ModelConfig config = small_config();
  ThreadPool threads(1);
  Stream stream(threads);
  std::mt19937 engine(7);
  std::normal_distribution<double> normal;
  for (int mask = 0; mask < 16; mask++) {
    const auto kept = [&](int bit) { return (mask >> bit & 1) != 0 ? DType::bf16 : DType::f32; };
    const auto rounded = [](float x, DType t) { return t == DType::bf16 ? static_cast<float>(bf16(x)) : x; };
    Weights weights(config, DType::bf16), grads(config, kept(3));
    for (const Tensor& t : weights.tensors()) {
      for (int64_t i = 0; i < t.numel(); i++) put(t, i, normal(engine));
    }
    const OptimOptions options{.lr = 0.02,
                               .weight_decay = 0.3,
                               .clip_grad = 0,
                               .main_params = kept(0),
                               .exp_avg = kept(1),
                               .exp_avg_sq = kept(2),
                               .main_grads = kept(3)};
    Optimizer optimizer(config, weights, options);
    EXPECT_EQ(optimizer.has_masters(), kept(0) == DType::f32);
    for (int step = 1; step <= 3; step++) {
      const Numbers w = numbers(optimizer.masters()), m = numbers(optimizer.exp_avg()),
                    v = numbers(optimizer.exp_avg_sq());
      for (const Tensor& t : grads.tensors()) {
        for (int64_t i = 0; i < t.numel(); i++) put(t, i, normal(engine));
      }
      ASSERT_FALSE(optimizer.step(stream, grads).skipped);
      const auto b1 = static_cast<float>(1 - options.beta1), b2 = static_cast<float>(1 - options.beta2);
      const auto rate = static_cast<float>(options.lr / (1 - std::pow(options.beta1, step)));
      const auto root2 = static_cast<float>(std::sqrt(1 - std::pow(options.beta2, step)));
      for (size_t k = 0; k < w.size(); k++) {
        const TensorSpec& spec = weights.specs()[k];
        const auto keep = static_cast<float>(1 - options.lr * (spec.decays() ? options.weight_decay : 0));
        const auto at = [&](int bit) { return spec.always_f32 ? DType::f32 : kept(bit); };
        for (size_t i = 0; i < w[k].size(); i++) {
          const auto g = static_cast<float>(get(grads.tensors()[k], static_cast<int64_t>(i)));
          const auto m0 = static_cast<float>(m[k][i]), v0 = static_cast<float>(v[k][i]);
          const float m1 = m0 + (g - m0) * b1, v1 = v0 * static_cast<float>(options.beta2) + b2 * g * g;
          const float w1 = static_cast<float>(w[k][i]) * keep -
                           rate * m1 / (std::sqrt(v1) / root2 + static_cast<float>(options.eps));
          const auto n = static_cast<int64_t>(i);
          ASSERT_EQ(get(optimizer.exp_avg().tensors()[k], n), static_cast<double>(rounded(m1, at(1)))) << spec.name;
          ASSERT_EQ(get(optimizer.exp_avg_sq().tensors()[k], n), static_cast<double>(rounded(v1, at(2)))) << spec.name;
          ASSERT_EQ(get(optimizer.masters().tensors()[k], n), static_cast<double>(rounded(w1, at(0)))) << spec.name;
          ASSERT_EQ(get(weights.tensors()[k], n),
                    static_cast<double>(rounded(w1, spec.always_f32 ? DType::f32 : DType::bf16)));
        }
      }
    }
  }
}

}  // namespace
}  // namespace furlong::test
