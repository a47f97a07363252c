// The whole model on a CUDA device: decode graphs, random weights, and training steps.
#include <gtest/gtest.h>

#include <random>

#include "checkpoint/init.h"
#include "cuda/small_model.h"
#include "ops/random.h"
#include "rollout/engine.h"
#include "tensor/copy.h"
#include "trainer/train_step.h"

namespace furlong::test {
namespace {

// Heads and widths for which the bodies of the tensor cores stand in, among them those that recorded steps start early.
ModelConfig wide_model() {
  ModelConfig c = small_model();
  c.hidden_size = 512;
  c.head_dim = 256;
  c.rotary_dim = 64;
  c.linear_num_key_heads = 4;
  c.linear_num_value_heads = 8;
  c.linear_key_head_dim = c.linear_value_head_dim = 128;
  c.num_experts = 64;
  c.experts_per_token = 8;
  c.moe_intermediate_size = c.shared_intermediate_size = 128;
  return c;
}

// Every weight goes to a neighbour in its dtype or stays.
void move_by_a_rounding(const Weights& weights, uint32_t seed) {
  std::mt19937 engine(seed);
  const auto move = [&]<class T>(T* bits, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
      if (static_cast<T>(bits[i] << 1) != 0) bits[i] = static_cast<T>(bits[i] + engine() % 3 - 1);
    }
  };
  for (const Tensor& t : weights.tensors()) {
    if (t.dtype() == DType::bf16) {
      move(static_cast<uint16_t*>(t.data()), t.numel());
    } else {
      move(static_cast<uint32_t*>(t.data()), t.numel());
    }
  }
}

struct CudaModel : ::testing::TestWithParam<DType> {
  static void SetUpTestSuite() { cuda::open(); }
  ModelConfig config = small_model();
  ThreadPool threads{2};
  Weights on(Device device) {
    Weights w(config, GetParam(), device);
    init_weights(w, config, 5, 0.15, &threads);  // drawn on the host either way
    return w;
  }
  void expect_trains_as_on_the_host();
  std::vector<Request> requests() const {
    std::vector<Request> out;
    for (int32_t i = 0; i < 11; i++) {
      Request r{.samples = 2, .params = {.temperature = 1}, .max_new_tokens = 40 + 7 * i, .seed = 9, .group_index = i};
      for (int32_t p = 0; p < 5 + 13 * i; p++) r.prompt.push_back((7 * p + i) % 97);
      out.push_back(std::move(r));
    }
    return out;
  }
};

TEST_P(CudaModel, GraphsChangeNoBits) {
  for (const auto& shape : {small_model(), wide_model(), made_dense(small_model()), made_dense(wide_model())}) {
    config = shape;
    const Weights weights = on(Device::cuda);
    for (const int64_t drafts : {0, 2}) {
      const EngineOptions plain{.max_running = 9, .drafts = drafts, .max_tokens = 400};
      EngineOptions recorded = plain;
      recorded.graph_batches = {1, 2, 4, 9};
      const auto work = requests();
      const auto a = Engine(config, weights, plain, threads).generate(work);
      const auto b = Engine(config, weights, recorded, threads).generate(work);
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); i++) {
        EXPECT_EQ(a[i].tokens, b[i].tokens) << "completion " << i << ", " << drafts << " drafts";
        EXPECT_EQ(a[i].log_probs, b[i].log_probs) << "completion " << i << ", " << drafts << " drafts";
      }
    }
  }
}

// More rows than share a launch: products run beside others, in a recording and without.
TEST_P(CudaModel, ProductsBesideOthersRepeatTheirBits) {
  for (const auto& shape : {small_model(), wide_model()}) {
    config = shape;
    const Weights weights = on(Device::cuda);
    const EngineOptions plain{.max_running = 150, .max_tokens = 200};
    EngineOptions recorded = plain;
    recorded.graph_batches = {16, 64, 100, 150};
    std::vector<Request> work = requests();
    work.resize(1);
    work[0].samples = 150;
    work[0].max_new_tokens = 70;
    const auto a = Engine(config, weights, plain, threads).generate(work);
    for (int run = 0; run < 3; run++) {
      const auto b = Engine(config, weights, run == 0 ? plain : recorded, threads).generate(work);
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); i++) {
        EXPECT_EQ(a[i].tokens, b[i].tokens) << "completion " << i << ", run " << run;
        EXPECT_EQ(a[i].log_probs, b[i].log_probs) << "completion " << i << ", run " << run;
      }
    }
  }
}

// The trainer's working memory leaves any bytes behind, among them those of NaN.
TEST_P(CudaModel, WhatOthersLeftInSharedMemoryChangesNoBit) {
  const Weights weights = on(Device::cuda);
  for (const int64_t drafts : {0, 2}) {
    const EngineOptions options{.max_running = 9, .drafts = drafts, .max_tokens = 400, .graph_batches = {2, 4, 9}};
    const auto work = requests();
    const auto alone = Engine(config, weights, options, threads).generate(work);
    const EngineNeeds needs = engine_needs(config, weights, options, threads);
    const Share block = Share::block(needs.block + 4096, Device::cuda), training = block.part(0, block.bytes());
    const std::vector<uint8_t> nan(block.bytes(), 0xff);
    Engine engine(config, weights, options, threads, block);
    for (int round = 0; round < 3; round++) {
      training.enter();
      cuda::copy_now(training.data(), nan.data(), nan.size(), true);
      const auto shared = engine.generate(work);
      ASSERT_EQ(alone.size(), shared.size());
      for (size_t i = 0; i < alone.size(); i++) {
        EXPECT_EQ(alone[i].tokens, shared[i].tokens) << "completion " << i << ", round " << round;
        EXPECT_EQ(alone[i].log_probs, shared[i].log_probs) << "completion " << i << ", round " << round;
      }
    }
  }
}

TEST_P(CudaModel, TrainsAsOnTheHostAndRepeatsItsBits) { expect_trains_as_on_the_host(); }

TEST_P(CudaModel, ADenseOneTrainsAsOnTheHost) {
  config = made_dense(small_model());
  expect_trains_as_on_the_host();
}

void CudaModel::expect_trains_as_on_the_host() {
  std::vector<Trajectory> samples(3);
  std::vector<const Trajectory*> picked;
  for (size_t i = 0; i < samples.size(); i++) {
    for (size_t p = 0; p < 70 + 40 * i; p++) samples[i].tokens.push_back(static_cast<int32_t>((p * p + 3 * i) % 97));
    samples[i].response_length = static_cast<int32_t>(samples[i].tokens.size()) - 4;
    samples[i].loss_mask.assign(static_cast<size_t>(samples[i].response_length), 1);
    picked.push_back(&samples[i]);
  }
  const auto train = [&](Device device, std::vector<float>& head, uint32_t moved = 0) {
    Weights weights = on(device);
    if (moved != 0) move_by_a_rounding(weights, moved);
    TrainOptions options;
    options.pack = {.dynamic = true, .max_tokens = 160};
    options.objective = Objective::supervised;
    options.recompute = Recompute::full;
    options.mtp = true;
    // With a large epsilon an update is proportional to its gradient. With the usual one the first updates go by the
    // signs of gradients, so that the rounding of the smallest decides as much as the largest.
    options.optim.lr = 0.1;
    options.optim.eps = 1;
    TrainStep step(config, weights, threads, options);
    std::vector<double> figures;
    for (int i = 0; i < 3; i++) {
      for (const auto& [name, value] : step.run(picked, std::vector<TokenTargets>(picked.size()))) {
        if (name == "train/loss" || name == "train/mtp_loss" || name == "train/grad_norm") figures.push_back(value);
      }
    }
    const OnHost master(step.optimizer().masters().lm_head);
    head.assign(master.view().as<float>(), master.view().as<float>() + master.view().numel());
    return figures;
  };
  std::vector<float> host_head, head, again_head;
  const auto host = train(Device::cpu, host_head), first = train(Device::cuda, head),
             again = train(Device::cuda, again_head);
  EXPECT_EQ(first, again);
  EXPECT_EQ(head, again_head);
  ASSERT_EQ(host.size(), first.size());
  // How far one rounding of every weight moves the gradient's norm on the host. An activation is rounded about 16 times
  // a layer; such errors add up like their root, to 4 times that.
  std::vector<double> spread(host.size(), 0);
  for (uint32_t seed = 1; seed <= 8; seed++) {
    std::vector<float> unused;
    const auto other = train(Device::cpu, unused, seed);
    for (size_t i = 0; i < host.size(); i++) spread[i] = std::max(spread[i], std::abs(other[i] - host[i]));
  }
  // bf16 rounds every activation; the norm of a gradient sums over all of them.
  const double tolerance = GetParam() == DType::bf16 ? 0.03 : 1e-4;
  for (size_t i = 0; i < host.size(); i++) {
    const bool is_norm = i % 3 == 1;  // loss, gradient norm, MTP loss
    const double bound = tolerance * std::abs(host[i]);
    EXPECT_NEAR(first[i], host[i], is_norm ? std::max(bound, 4 * spread[i]) : bound) << i;
  }
}

TEST_P(CudaModel, RandomNumbersAreTheHosts) {
  Stream host(threads), device(threads, Device::cuda);
  const RngKey key{.seed = 3, .group = 5, .sample = 2, .purpose = Purpose::init};
  // A whole tensor; parts of rows, which begin and end in the middle of a pair, of less and of more than 2^31 numbers.
  struct Case {
    int64_t rows, row, first, stride;
  };
  for (const Case& c : {Case{70001, 1, 0, 0}, Case{999, 71, 13, 158}, Case{999, 70, (int64_t{1} << 33) + 6, 71},
                        Case{70001, 1, 3, 5}}) {
    const OwnedTensor a(GetParam(), {c.rows, c.row}), b(GetParam(), {c.rows, c.row}, Device::cuda);
    random_normal(host, a, key, 0.5, c.first, c.stride);
    random_normal(device, b, key, 0.5, c.first, c.stride);
    const OnHost got(b.view());
    double worst = 0;
    for (int64_t i = 0; i < c.rows * c.row; i++) {
      const bool half = GetParam() == DType::bf16;
      const double x = half ? static_cast<float>(a.view().as<bf16>()[i]) : a.view().as<float>()[i];
      const double y = half ? static_cast<float>(got.view().as<bf16>()[i]) : got.view().as<float>()[i];
      worst = std::max(worst, std::abs(x - y) / (std::abs(x) + 1e-2));
    }
    EXPECT_LT(worst, GetParam() == DType::bf16 ? 1.0 / 128 : 1e-5) << c.rows << " rows of " << c.row;
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaModel, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace furlong::test
