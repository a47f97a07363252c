// The model over a mesh of ranks, all of them on one device: every layout computes what one rank computes there.
#include "model/layouts.h"

#include <gtest/gtest.h>

namespace furlong::test {
namespace {

// Heads and widths of the tensor cores' bodies.
ModelConfig wide_heads() {
  ModelConfig c = many_heads();
  c.hidden_size = 64;
  c.head_dim = 64;
  c.rotary_dim = 16;
  c.linear_key_head_dim = c.linear_value_head_dim = 64;
  c.moe_intermediate_size = 128;
  c.shared_intermediate_size = 64;
  return c;
}

class CudaLayouts : public ::testing::TestWithParam<Layout> {
 protected:
  static void SetUpTestSuite() { cuda::open(); }
};

// In fp32 sums over ranks are rounded in another order than those of one rank. An activation is the result of about 16
// such sums a layer, each of up to some hundred terms, over three layers and back: some thousand roundings of 2^-24.
void expect_one_ranks_results(const Layout& layout, const std::vector<ModelConfig>& configs) {
  for (const ModelConfig& config : configs) {
    Weights whole(config, DType::f32);
    fill_random(whole, 31);
    const Sequences sequences = disjoint_sequences({63, 1, 65, 2, 7, 5}, config.vocab_size, 32);
    const PassOptions options{.row_weight = 0.01, .temperature = 0.8, .entropy = 0.3};
    Outcome expected, found;
    run_layout({}, config, whole, {sequences}, options, expected, Device::cuda);
    run_layout(layout, config, whole, dealt(sequences, data_ranks(layout)), options, found, Device::cuda);
    expect_same(found, expected, 5e-4);
  }
}

TEST_P(CudaLayouts, ComputeWhatOneRankComputes) { expect_one_ranks_results(GetParam(), {many_heads(), wide_heads()}); }

class CudaDenseLayouts : public CudaLayouts {};

// Three value heads a key head; tied and not.
TEST_P(CudaDenseLayouts, ComputeWhatOneRankComputes) {
  ModelConfig wide = many_heads_dense(true);
  wide.hidden_size = 64;
  wide.head_dim = 64;
  wide.rotary_dim = 16;
  wide.linear_key_head_dim = wide.linear_value_head_dim = 64;
  wide.intermediate_size = 128;
  expect_one_ranks_results(GetParam(), {many_heads_dense(false), wide});
}

// Fewer rows than ranks that share them, and data ranks with nothing to do.
TEST_P(CudaLayouts, FewRowsOnManyRanks) {
  const ModelConfig config = many_heads();
  Weights whole(config, DType::f32);
  fill_random(whole, 33);
  const Sequences sequences = disjoint_sequences({4}, config.vocab_size, 34);
  const PassOptions options{.row_weight = 0.01, .temperature = 0.8, .entropy = 0.3};
  Outcome expected, found;
  run_layout({}, config, whole, {sequences}, options, expected, Device::cuda);
  run_layout(GetParam(), config, whole, dealt(sequences, data_ranks(GetParam())), options, found, Device::cuda);
  expect_same(found, expected, 5e-4);
}

constexpr auto flex = Dispatcher::flex;
constexpr auto alltoall = Dispatcher::alltoall;
constexpr auto full = Recompute::full;

std::string name_of(const ::testing::TestParamInfo<Layout>& info) { return name_of_layout(info.param); }

INSTANTIATE_TEST_SUITE_P(All, CudaDenseLayouts,
                         ::testing::Values(Layout{2, {.tensor = 2}}, Layout{2, {.pipeline = 2}},
                                           Layout{4, {.tensor = 2, .context = 2}}),
                         name_of);

INSTANTIATE_TEST_SUITE_P(All, CudaLayouts,
                         ::testing::Values(Layout{2, {.tensor = 2}}, Layout{4, {.context = 4}},
                                           Layout{2, {.pipeline = 2}}, Layout{2, {}}, Layout{4, {.expert = 4}},
                                           Layout{4, {.expert = 4}, flex},
                                           Layout{4, {.expert = 2, .expert_tensor = 2}, alltoall, full},
                                           Layout{4, {.expert = 2, .expert_tensor = 2}, flex, full},
                                           Layout{8, {.tensor = 2, .context = 2, .expert = 8}},
                                           Layout{8, {.tensor = 2, .context = 2, .expert = 8}, flex, full},
                                           Layout{8, {.tensor = 2, .pipeline = 2, .expert = 2}, alltoall, full}),
                         name_of);

class CudaLayoutBits : public CudaLayouts {};

TEST_P(CudaLayoutBits, LogProbsAreThoseOfOneRank) {
  for (const ModelConfig& config : {many_heads(), wide_heads()}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("heads of {}, {}", config.head_dim, furlong::name_of(dtype)));
      Weights whole(config, dtype);
      fill_random(whole, 37);
      expect_bits_of_one_rank(GetParam(), config, whole,
                              disjoint_sequences({163, 161, 165, 142, 7, 5, 70, 133}, config.vocab_size, 38),
                              Device::cuda);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaLayoutBits,
                         ::testing::Values(Layout{2, {.context = 2}}, Layout{4, {.context = 4}},
                                           Layout{8, {.expert = 8}}, Layout{8, {.context = 4, .expert = 8}},
                                           Layout{2, {.pipeline = 2}}),
                         name_of);

}  // namespace
}  // namespace furlong::test
