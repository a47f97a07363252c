// Models and requests for the rollout's tests.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/hf.h"
#include "checkpoint/init.h"
#include "rollout/engine.h"

namespace furlong {

inline const std::string tiny_folder = FURLONG_TEST_DATA "/tiny";

struct TestModel {
  ModelConfig config;
  Weights weights;
};

// The checkpoint of tests/data/tiny: 8 layers, 512 tokens, an MTP head.
inline const TestModel& tiny_model(DType dtype = DType::f32) {
  const auto load = [](DType t) {
    TestModel m{read_model_config(tiny_folder), {}};
    m.weights = load_hf(tiny_folder, m.config, t);
    return m;
  };
  static const TestModel fp32 = load(DType::f32), half = load(DType::bf16);
  return dtype == DType::f32 ? fp32 : half;
}

// A checkpoint in tests/data/siblings.
inline TestModel sibling_model(const std::string& name) {
  const std::string folder = std::string(FURLONG_TEST_DATA) + "/siblings/" + name;
  TestModel m{read_model_config(folder), {}};
  m.weights = load_hf(folder, m.config, DType::f32);
  return m;
}

// One delta-net and one attention layer, 8 tokens, an MTP head; lively random weights.
inline TestModel toy_model(int64_t vocab = 8, DType dtype = DType::f32) {
  ModelConfig c;
  c.vocab_size = vocab;
  c.hidden_size = 32;
  c.num_layers = 2;
  c.full_attention = {false, true};
  c.num_heads = 2;
  c.num_kv_heads = 1;
  c.head_dim = 16;
  c.rotary_dim = 4;
  c.linear_num_key_heads = 1;
  c.linear_num_value_heads = 2;
  c.linear_key_head_dim = c.linear_value_head_dim = 16;
  c.num_experts = 4;
  c.experts_per_token = 2;
  c.moe_intermediate_size = c.shared_intermediate_size = 16;
  c.mtp_num_layers = 1;
  c.max_position_embeddings = 4096;
  TestModel m{c, Weights(c, dtype)};
  init_weights(m.weights, c, 5, 0.3);
  return m;
}

inline void fill(const Tensor& t, float value) { std::fill_n(t.as<float>(), t.numel(), value); }

// What a layer adds to the residual stream becomes zero.
inline void silence(LayerWeights& layer) {
  fill(layer.full_attention ? layer.attention.o : layer.delta.out, 0);
  fill(layer.moe.down, 0);
  fill(layer.moe.shared_down, 0);
}

// The next token depends on the current one alone, and the MTP head knows it exactly: every draft is accepted.
inline TestModel foreseen_model() {
  TestModel m = toy_model();
  for (auto& layer : m.weights.layers) silence(layer);
  MtpWeights& mtp = m.weights.mtp.front();
  silence(mtp.layer);
  fill(mtp.fc, 0);
  for (int64_t i = 0; i < m.config.hidden_size; i++) mtp.fc.at(i).as<float>()[i] = 1;
  for (const Tensor& norm : {mtp.norm_embedding, mtp.norm, m.weights.final_norm}) fill(norm, 0);
  return m;
}

// A small reproducible stream of numbers for test data.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : key_{.seed = seed, .purpose = Purpose::data} {}
  // Between low and high, both included.
  int64_t between(int64_t low, int64_t high) {
    return low + random_word(key_, next_++) % static_cast<uint32_t>(high - low + 1);
  }

 private:
  RngKey key_;
  uint32_t next_ = 0;
};

inline std::vector<int32_t> random_tokens(Numbers& numbers, int64_t count, int64_t vocab) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; i++) out.push_back(static_cast<int32_t>(numbers.between(0, vocab - 1)));
  return out;
}

inline std::vector<Completion> generate(const TestModel& m, const EngineOptions& options,
                                        const std::vector<Request>& requests, int threads = 1) {
  ThreadPool pool(threads);
  Engine engine(m.config, m.weights, options, pool);
  auto done = engine.generate(requests);
  const auto& memory = engine.memory();
  EXPECT_EQ(memory.free_pages(), memory.options().pages - 1);
  EXPECT_EQ(memory.free_slots(), memory.options().slots - 1);
  return done;
}

// Tokens, log-probs bit for bit, and how each ended.
inline void expect_same(const std::vector<Completion>& a, const std::vector<Completion>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); i++) {
    ASSERT_EQ(a[i].request, b[i].request) << what;
    ASSERT_EQ(a[i].sample, b[i].sample) << what;
    ASSERT_EQ(a[i].tokens, b[i].tokens) << what << ", request " << a[i].request << " sample " << a[i].sample;
    ASSERT_EQ(a[i].log_probs, b[i].log_probs) << what << ", request " << a[i].request << " sample " << a[i].sample;
    ASSERT_EQ(a[i].reason, b[i].reason) << what << ", request " << a[i].request << " sample " << a[i].sample;
  }
}

}  // namespace furlong
