// A whole step against the reference, and what must not depend on how it is cut into micro-batches.
#include "trainer/train_step.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "base/error.h"
#include "checkpoint/hf.h"
#include "golden.h"
#include "rl/golden_step.h"
#include "rl/loss_head.h"

namespace furlong::test {
namespace {

std::map<std::string, double> run(TrainStep& train, const Step& step) {
  std::map<std::string, double> out;
  for (const auto& [name, value] : train.run(step.pointers(), step.targets)) {
    if (!name.starts_with("perf/")) out[name] = value;  // times differ from run to run
  }
  return out;
}

class GoldenGrpo : public ::testing::Test {
 protected:
  GoldenGrpo()
      : golden_("golden_grpo.safetensors"),
        config_(read_model_config(data_path("tiny"))),
        weights_(load_hf(data_path("tiny"), config_, DType::f32)),
        step_(golden_step(golden_)) {}

  Golden golden_;
  ModelConfig config_;
  Weights weights_;
  Step step_;
  ThreadPool threads_{1};
};

TEST_F(GoldenGrpo, ScoresEveryToken) {
  TrainStep train(config_, weights_, threads_, golden_options());
  const auto scores = train.score(weights_, step_.pointers());
  ASSERT_EQ(scores.size(), 8u);
  for (size_t i = 0; i < scores.size(); i++) {
    const auto want = golden_.floats(fmt::format("sample{}.log_probs", i));
    ASSERT_EQ(scores[i].size(), want.size());
    for (size_t t = 0; t < want.size(); t++) {
      if (step_.trajectories[i].loss_mask[t] == 0) continue;
      EXPECT_NEAR(scores[i][t], want[t], 1e-4) << i << " " << t;
    }
  }
}

TEST_F(GoldenGrpo, Step) {
  TrainStep train(config_, weights_, threads_, golden_options());
  auto m = run(train, step_);
  const auto near = [&](const char* metric, const std::string& name) {
    const double want = golden_.number(name);
    EXPECT_NEAR(m.at(metric), want, 1e-4 * std::abs(want)) << metric;
  };
  near("train/loss", "loss");
  near("train/pg_loss", "pg_loss");
  near("train/kl_loss", "kl_loss");
  near("train/pg_clipfrac", "pg_clipfrac");
  near("train/grad_norm", "grad_norm");
  EXPECT_EQ(m.at("train/skipped_steps"), 0);
  EXPECT_EQ(m.at("train/lr-pg_0"), 1e-3);

  double entropy = 0;
  for (size_t i = 0; i < step_.trajectories.size(); i++) {
    const auto h = golden_.floats(fmt::format("sample{}.entropy", i));
    double sum = 0, tokens = 0;
    for (size_t t = 0; t < h.size(); t++) {
      sum += step_.trajectories[i].loss_mask[t] * static_cast<double>(h[t]);
      tokens += step_.trajectories[i].loss_mask[t];
    }
    entropy += sum / std::max(1.0, tokens) / static_cast<double>(step_.trajectories.size());
  }
  EXPECT_NEAR(m.at("train/entropy_loss"), entropy, 1e-4 * entropy);
}

// AdamW's first step is lr in the direction of the gradient's sign, so that an entry whose gradient is rounding error
// may go either way: 99.9 % must be within a hundredth of the step.
TEST_F(GoldenGrpo, WeightsAfterTheStep) {
  const Weights before = load_hf(data_path("tiny"), config_, DType::f32);
  TrainStep train(config_, weights_, threads_, golden_options());
  run(train, step_);
  size_t near = 0, all = 0;
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& weight, const Tensor& old) {
        if (spec.mtp) {
          EXPECT_EQ(std::memcmp(weight.data(), old.data(), weight.bytes()), 0) << spec.name;
          return;
        }
        const auto want = golden_.floats("adam." + spec.name);
        ASSERT_EQ(static_cast<int64_t>(want.size()), weight.numel()) << spec.name;
        size_t here = 0;
        for (size_t i = 0; i < want.size(); i++) here += std::abs(weight.as<float>()[i] - want[i]) <= 1e-5f;
        EXPECT_GE(static_cast<double>(here), 0.99 * static_cast<double>(want.size())) << spec.name;
        near += here;
        all += want.size();
      },
      weights_, before);
  EXPECT_GE(static_cast<double>(near), 0.999 * static_cast<double>(all));
}

struct StepResults {
  std::map<std::string, double> metrics;
  std::map<std::string, std::vector<float>> grads;
};

// Metrics and gradients of the first step.
StepResults first_step(const ModelConfig& config, ThreadPool& threads, const Step& step, TrainOptions options) {
  const std::string folder = ::testing::TempDir() + "furlong_train_step";
  std::filesystem::remove_all(folder);
  options.dump_grads = folder;
  Weights weights = load_hf(data_path("tiny"), config, DType::f32);
  TrainStep train(config, weights, threads, options);
  StepResults out{.metrics = run(train, step)};
  const SafetensorsFile file(folder + "/step_0000000.safetensors");
  for (const auto& e : file.entries()) out.grads[e.name] = floats_of(e);
  std::filesystem::remove_all(folder);
  return out;
}

TrainOptions with_mtp() {
  TrainOptions options = golden_options();
  options.mtp = options.optim.train_mtp = true;
  return options;
}

// The gradient and the losses are those of the step, however it is cut up or chunked.
TEST_F(GoldenGrpo, MicroBatchesDoNotMatter) {
  step_.trajectories[2].loss_mask.assign(step_.trajectories[2].loss_mask.size(), 0);  // a sample without any token
  for (const bool per_token : {false, true}) {
    TrainOptions options = with_mtp();
    options.per_token = per_token;
    options.loss.entropy_coef = 0.01;
    options.pack = {.micro_batch_size = 8};
    const StepResults whole = first_step(config_, threads_, step_, options);
    EXPECT_EQ(whole.grads.size(), weights_.specs().size());
    EXPECT_GT(whole.metrics.at("train/mtp_loss"), 0);
    const auto& m = whole.metrics;
    EXPECT_NEAR(m.at("train/loss"),
                m.at("train/pg_loss") + 0.05 * m.at("train/kl_loss") - 0.01 * m.at("train/entropy_loss"), 1e-12);
    const std::vector<PackOptions> cuts = {{.micro_batch_size = 1},
                                           {.micro_batch_size = 3},
                                           {.dynamic = true, .max_tokens = 70},
                                           {.dynamic = true, .max_tokens = 90, .balance = true}};
    options.head_chunk = 7;
    for (size_t c = 0; c < cuts.size(); c++) {
      options.pack = cuts[c];
      const StepResults cut = first_step(config_, threads_, step_, options);
      for (const auto& [name, value] : whole.metrics) {
        EXPECT_NEAR(cut.metrics.at(name), value, 1e-5 * std::abs(value) + 1e-12) << name << ", cut " << c;
      }
      for (const auto& [name, grad] : whole.grads) EXPECT_LT(relative_error(cut.grads.at(name), grad), 1e-5) << name;
    }
  }
}

TEST_F(GoldenGrpo, MtpFactorScalesTheHeadAlone) {
  TrainOptions options = with_mtp();
  const StepResults one = first_step(config_, threads_, step_, options);
  options.mtp_factor *= 2;
  options.recompute = Recompute::full;
  const StepResults two = first_step(config_, threads_, step_, options);
  EXPECT_EQ(one.metrics.at("train/mtp_loss"), two.metrics.at("train/mtp_loss"));
  for (const auto& [name, grad] : one.grads) {
    std::vector<float> want = grad;
    if (name.starts_with("mtp.")) {
      for (auto& x : want) x *= 2;
      EXPECT_LT(relative_error(two.grads.at(name), want), 1e-6) << name;
    } else {
      EXPECT_EQ(two.grads.at(name), want) << name;
    }
  }
}

// Nothing of a step stays behind in the gradients.
TEST_F(GoldenGrpo, AStepThatMovesNothingRepeats) {
  TrainOptions options = golden_options();
  options.optim.lr = 0;
  TrainStep train(config_, weights_, threads_, options);
  const auto first = run(train, step_), second = run(train, step_);
  EXPECT_EQ(first, second);
}

TEST_F(GoldenGrpo, EntropyBonusRaisesTheEntropy) {
  for (const double sign : {1.0, -1.0}) {
    TrainOptions options = golden_options();
    options.optim.lr = 1e-4;
    options.optim.weight_decay = 0;
    options.loss.kl_loss_coef = 0;
    options.loss.entropy_coef = sign;
    for (auto& t : step_.targets) t.advantages.clear();
    Weights weights = load_hf(data_path("tiny"), config_, DType::f32);
    TrainStep train(config_, weights, threads_, options);
    const double before = run(train, step_).at("train/entropy_loss"),
                 after = run(train, step_).at("train/entropy_loss");
    EXPECT_GT(sign * (after - before), 1e-3);
  }
}

TEST_F(GoldenGrpo, SupervisedLossIsTheMeanLogProb) {
  TrainOptions options = golden_options();
  options.objective = Objective::supervised;
  TrainStep train(config_, weights_, threads_, options);
  const auto scores = train.score(weights_, step_.pointers());
  double loss = 0;
  for (size_t i = 0; i < scores.size(); i++) {
    double sum = 0, tokens = 0;
    for (size_t t = 0; t < scores[i].size(); t++) {
      sum += step_.trajectories[i].loss_mask[t] * static_cast<double>(scores[i][t]);
      tokens += step_.trajectories[i].loss_mask[t];
    }
    loss -= sum / tokens / static_cast<double>(scores.size());
  }
  const auto first = run(train, step_), second = run(train, step_);
  EXPECT_NEAR(first.at("train/loss"), loss, 1e-6 * loss);
  EXPECT_LT(second.at("train/loss"), loss - 0.1);
  EXPECT_EQ(first.count("train/pg_loss"), 0u);
}

TEST_F(GoldenGrpo, RefusesAStepWithoutTokens) {
  for (auto& t : step_.trajectories) t.loss_mask.assign(t.loss_mask.size(), 0);
  TrainStep train(config_, weights_, threads_, golden_options());
  try {
    run(train, step_);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::numerics);
  }
}

TEST_F(GoldenGrpo, SkipsAStepThatIsNotFinite) {
  const Weights before = load_hf(data_path("tiny"), config_, DType::f32);
  auto& advantages = step_.targets[1].advantages;
  advantages.assign(advantages.size(), std::numeric_limits<double>::quiet_NaN());
  TrainStep train(config_, weights_, threads_, golden_options());
  EXPECT_EQ(run(train, step_).at("train/skipped_steps"), 1);
  EXPECT_EQ(train.skipped_in_a_row(), 1);
  EXPECT_EQ(train.optimizer().steps(), 0);
  for_each_tensor([](const TensorSpec& spec, const Tensor& a,
                     const Tensor& b) { EXPECT_EQ(std::memcmp(a.data(), b.data(), a.bytes()), 0) << spec.name; },
                  before, weights_);
  advantages.assign(advantages.size(), 1);
  EXPECT_EQ(run(train, step_).at("train/skipped_steps"), 1);  // the total stays
  EXPECT_EQ(train.skipped_in_a_row(), 0);
  EXPECT_EQ(train.optimizer().steps(), 1);
}

// Log-probs, entropies and gradients of the head against the definition, in float64, with a temperature.
TEST(LossHead, AgainstTheDefinition) {
  ModelConfig config = read_model_config(data_path("tiny"));
  config.num_layers = 1;
  config.full_attention = {true};
  config.vocab_size = 11;
  config.hidden_size = 5;
  Weights weights(config, DType::f64), grads(config, DType::f64);
  auto noise = [state = uint32_t{1}]() mutable {
    state = state * 1664525u + 1013904223u;
    return static_cast<double>(state >> 8) / (1 << 24) - 0.5;
  };
  for (int64_t i = 0; i < weights.lm_head.numel(); i++) weights.lm_head.as<double>()[i] = 4 * noise();
  OwnedTensor hidden(DType::f64, {6, 5}), dhidden(DType::f64, {6, 5});
  for (int64_t i = 0; i < 30; i++) hidden.view().as<double>()[i] = noise();
  const std::vector<HeadRow> rows = {{0, 3}, {1, 10}, {4, 0}, {5, 3}};
  constexpr double temperature = 0.7;
  ThreadPool threads(1);
  Stream stream(threads);
  Arena arena(1 << 20);
  Exec exec{stream, arena};
  for (const int64_t chunk : {-1, 1, 3}) {
    const HeadOptions options{.temperature = temperature, .chunk_rows = chunk, .entropy = true};
    std::vector<double> log_probs(rows.size()), entropies(rows.size());
    const auto score = [&] { score_rows(exec, weights, hidden, rows, options, log_probs, entropies); };
    const auto loss = [&] {
      score();
      double sum = 0;
      for (size_t i = 0; i < rows.size(); i++) {
        sum += (1.0 + static_cast<double>(i)) * (0.4 * entropies[i] - log_probs[i]);
      }
      return sum;
    };
    score();
    for (size_t i = 0; i < rows.size(); i++) {
      double sum = 0, mean = 0, target = 0;
      for (int64_t v = 0; v < 11; v++) {
        double l = 0;
        for (int64_t k = 0; k < 5; k++)
          l += weights.lm_head.as<double>()[5 * v + k] * hidden.view().as<double>()[5 * rows[i].row + k];
        l /= temperature;
        sum += std::exp(l);
        mean += l * std::exp(l);
        if (v == rows[i].target) target = l;
      }
      EXPECT_NEAR(log_probs[i], target - std::log(sum), 1e-12);
      EXPECT_NEAR(entropies[i], std::log(sum) - mean / sum, 1e-12);
    }
    grads.zero(stream);
    size_t called = 0;
    loss_head(
        exec, weights, hidden, rows, options,
        [&](size_t i, double log_prob, double entropy) {
          EXPECT_EQ(i, called++);
          EXPECT_EQ(log_prob, log_probs[i]);
          EXPECT_EQ(entropy, entropies[i]);
          const double w = 1.0 + static_cast<double>(i);
          return HeadGradient{.d_log_prob = -w, .d_entropy = 0.4 * w};
        },
        dhidden, grads.lm_head);
    EXPECT_EQ(called, rows.size());
    const auto check = [&](const Tensor& x, const Tensor& d) {
      for (int64_t i = 0; i < x.numel(); i++) {
        constexpr double h = 1e-5;
        double& value = x.as<double>()[i];
        const double old = value;
        value = old + h;
        const double up = loss();
        value = old - h;
        const double down = loss();
        value = old;
        EXPECT_NEAR(d.as<double>()[i], (up - down) / (2 * h), 1e-7) << i;
      }
    };
    check(hidden, dhidden);  // rows 2 and 3, which no row points to, included
    check(weights.lm_head, grads.lm_head);
  }
}

}  // namespace
}  // namespace furlong::test
