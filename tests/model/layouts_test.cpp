// The model over a mesh of ranks: every layout computes what one rank computes.
#include "layouts.h"

#include <gtest/gtest.h>

namespace furlong::test {
namespace {

constexpr double row_weight = 0.01;
PassOptions loss_options() { return {.row_weight = row_weight, .temperature = 0.8, .entropy = 0.3}; }

class Layouts : public ::testing::TestWithParam<Layout> {};

TEST_P(Layouts, ComputeWhatOneRankComputes) {
  const ModelConfig config = many_heads();
  Weights whole(config, DType::f64);
  fill_random(whole, 21);
  const Sequences sequences = disjoint_sequences({63, 1, 65, 2, 7, 5}, config.vocab_size, 22);
  Outcome expected, found;
  run_layout({}, config, whole, {sequences}, loss_options(), expected);
  run_layout(GetParam(), config, whole, dealt(sequences, data_ranks(GetParam())), loss_options(), found);
  expect_same(found, expected, 1e-9);
}

// Fewer rows than ranks that share them, and data ranks with nothing to do.
TEST_P(Layouts, FewRowsOnManyRanks) {
  const ModelConfig config = many_heads();
  Weights whole(config, DType::f64);
  fill_random(whole, 23);
  const Sequences sequences = disjoint_sequences({4}, config.vocab_size, 24);
  Outcome expected, found;
  run_layout({}, config, whole, {sequences}, loss_options(), expected);
  run_layout(GetParam(), config, whole, dealt(sequences, data_ranks(GetParam())), loss_options(), found);
  expect_same(found, expected, 1e-9);
}

// Every token takes expert 5 and none takes expert 2: the residual stream has a large positive first column, which the
// router looks at.
void make_lopsided(const ModelConfig& config, Weights& weights) {
  const int64_t h = config.hidden_size;
  const auto favour = [&](LayerWeights& layer) {
    layer.post_norm.as<double>()[0] = 0;
    layer.moe.router.as<double>()[5 * h] = 1.5;
    layer.moe.router.as<double>()[2 * h] = -1.5;
  };
  for (int64_t token = 0; token < config.vocab_size; token++) weights.embed.as<double>()[token * h] = 8;
  for (auto& layer : weights.layers) favour(layer);
  MtpWeights& mtp = weights.mtp.front();
  for (int64_t i = 0; i < 2 * h; i++) mtp.fc.as<double>()[i] = i == 0 ? 4 : 0;
  favour(mtp.layer);
}

TEST_P(Layouts, ExpertsWithNothingAndWithEverything) {
  const ModelConfig config = many_heads();
  Weights whole(config, DType::f64);
  fill_random(whole, 25);
  make_lopsided(config, whole);
  const Sequences sequences = disjoint_sequences({21, 9, 4}, config.vocab_size, 26);
  const Pass alone(config, whole, sequences, {});
  std::vector<LayerSaved> layers = alone.saved().layers;
  layers.push_back(alone.mtp_saved().layer);
  for (const auto& layer : layers) {
    const int32_t* offsets = layer.moe.routing.offsets.as<int32_t>();
    ASSERT_EQ(offsets[3] - offsets[2], 0);
    ASSERT_EQ(offsets[6] - offsets[5], 34);
  }
  Outcome expected, found;
  run_layout({}, config, whole, {sequences}, loss_options(), expected);
  run_layout(GetParam(), config, whole, dealt(sequences, data_ranks(GetParam())), loss_options(), found);
  expect_same(found, expected, 1e-9);
}

// With tensor size 1 nothing is summed over ranks, and a row's bits are those of one rank.
class LayoutBits : public ::testing::TestWithParam<Layout> {};

TEST_P(LayoutBits, LogProbsAreThoseOfOneRank) {
  const ModelConfig config = many_heads();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Weights whole(config, dtype);
    fill_random(whole, 27);
    expect_bits_of_one_rank(GetParam(), config, whole,
                            disjoint_sequences({63, 1, 65, 2, 7, 5, 70, 33}, config.vocab_size, 28));
  }
}

class DenseLayouts : public ::testing::TestWithParam<Layout> {};

TEST_P(DenseLayouts, ComputeWhatOneRankComputes) {
  for (const bool tied : {false, true}) {
    const ModelConfig config = many_heads_dense(tied);
    Weights whole(config, DType::f64);
    fill_random(whole, 31);
    for (const auto& lengths : {std::vector<int64_t>{63, 1, 65, 2, 7, 5}, {4}}) {
      const Sequences sequences = disjoint_sequences(lengths, config.vocab_size, 32);
      Outcome expected, found;
      run_layout({}, config, whole, {sequences}, loss_options(), expected);
      run_layout(GetParam(), config, whole, dealt(sequences, data_ranks(GetParam())), loss_options(), found);
      expect_same(found, expected, 1e-9);
    }
  }
}

class DenseLayoutBits : public ::testing::TestWithParam<Layout> {};

TEST_P(DenseLayoutBits, LogProbsAreThoseOfOneRank) {
  const ModelConfig config = many_heads_dense(true);
  Weights whole(config, DType::bf16);
  fill_random(whole, 33);
  expect_bits_of_one_rank(GetParam(), config, whole, disjoint_sequences({63, 1, 65, 2, 7, 5}, config.vocab_size, 34));
}

constexpr auto flex = Dispatcher::flex;
constexpr auto alltoall = Dispatcher::alltoall;
constexpr auto full = Recompute::full;

INSTANTIATE_TEST_SUITE_P(
    All, Layouts,
    ::testing::Values(Layout{2, {.tensor = 2}}, Layout{4, {.tensor = 4}}, Layout{2, {.context = 2}},
                      Layout{4, {.context = 4}}, Layout{8, {.context = 8}}, Layout{2, {.pipeline = 2}},
                      Layout{3, {.pipeline = 3}}, Layout{2, {}}, Layout{4, {}}, Layout{8, {}}, Layout{2, {.expert = 2}},
                      Layout{4, {.expert = 4}}, Layout{8, {.expert = 8}}, Layout{4, {.expert = 2}},
                      Layout{2, {.expert_tensor = 2}}, Layout{4, {.expert = 2, .expert_tensor = 2}},
                      Layout{2, {.expert = 2}, flex}, Layout{4, {.expert = 4}, flex}, Layout{8, {.expert = 8}, flex},
                      Layout{4, {.expert = 2, .expert_tensor = 2}, flex}, Layout{2, {.expert_tensor = 2}, flex, full},
                      Layout{2, {.tensor = 2}, alltoall, full}, Layout{2, {.context = 2}, alltoall, full},
                      Layout{2, {.expert = 2}, alltoall, full}, Layout{2, {.expert = 2}, flex, full},
                      Layout{2, {.pipeline = 2}, alltoall, full}, Layout{4, {.tensor = 2, .context = 2}},
                      Layout{8, {.tensor = 2, .context = 4}}, Layout{8, {.tensor = 4, .context = 2}},
                      Layout{4, {.tensor = 2, .pipeline = 2}}, Layout{4, {.pipeline = 2, .context = 2}},
                      Layout{8, {.tensor = 2, .pipeline = 2, .context = 2, .expert = 2, .expert_tensor = 2}},
                      Layout{8, {.tensor = 2, .context = 2, .expert = 8}},
                      Layout{8, {.tensor = 2, .context = 2, .expert = 8}, flex},
                      Layout{8, {.tensor = 2, .context = 2, .expert = 8}, alltoall, full},
                      Layout{8, {.tensor = 2, .context = 2, .expert = 8}, flex, full},
                      Layout{8, {.tensor = 2, .pipeline = 2, .expert = 2}, alltoall, full},
                      Layout{8, {.tensor = 2, .pipeline = 2, .expert = 2}, flex},
                      Layout{4, {.context = 2, .expert = 4}}, Layout{4, {.tensor = 4, .expert = 2, .expert_tensor = 2}},
                      Layout{8, {.tensor = 2, .context = 4, .expert = 4, .expert_tensor = 2}, flex, full},
                      Layout{8, {.pipeline = 2, .expert = 4}, alltoall, full}),
    [](const auto& info) { return name_of_layout(info.param); });

INSTANTIATE_TEST_SUITE_P(
    All, DenseLayouts,
    ::testing::Values(Layout{2, {.tensor = 2}}, Layout{4, {.tensor = 4}}, Layout{2, {.context = 2}},
                      Layout{2, {.pipeline = 2}}, Layout{3, {.pipeline = 3}}, Layout{3, {}},
                      Layout{2, {.tensor = 2}, alltoall, full}, Layout{2, {.pipeline = 2}, flex, full},
                      Layout{4, {.tensor = 2, .context = 2}}, Layout{8, {.tensor = 2, .pipeline = 2, .context = 2}}),
    [](const auto& info) { return name_of_layout(info.param); });

INSTANTIATE_TEST_SUITE_P(All, DenseLayoutBits,
                         ::testing::Values(Layout{2, {.context = 2}}, Layout{3, {.pipeline = 3}},
                                           Layout{8, {.pipeline = 2, .context = 2}}),
                         [](const auto& info) { return name_of_layout(info.param); });

INSTANTIATE_TEST_SUITE_P(All, LayoutBits,
                         ::testing::Values(Layout{2, {.context = 2}}, Layout{4, {.context = 4}},
                                           Layout{8, {.context = 8}}, Layout{8, {.expert = 8}},
                                           Layout{8, {.context = 4, .expert = 8}}, Layout{2, {.pipeline = 2}},
                                           Layout{8, {.pipeline = 2, .context = 2, .expert = 4}}),
                         [](const auto& info) { return name_of_layout(info.param); });

}  // namespace
}  // namespace furlong::test
