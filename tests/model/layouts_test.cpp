// The model over a mesh of ranks: every layout computes what one rank computes.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>

#include "parallel/threads.h"
#include "support.h"

namespace furlong::test {
namespace {

struct Layout {
  int ranks = 1;
  ParallelSizes sizes;
  Dispatcher dispatcher = Dispatcher::alltoall;
  Recompute recompute = Recompute::none;
};

std::string name_of_layout(const Layout& l) {
  std::string name = fmt::format("ranks{}", l.ranks);
  const auto add = [&](const char* what, int64_t size) {
    if (size > 1) name += fmt::format("_{}{}", what, size);
  };
  add("tp", l.sizes.tensor);
  add("cp", l.sizes.context);
  add("pp", l.sizes.pipeline);
  add("ep", l.sizes.expert);
  add("etp", l.sizes.expert_tensor);
  if (l.dispatcher == Dispatcher::flex) name += "_flex";
  if (l.recompute == Recompute::full) name += "_recompute";
  return name;
}

ModelConfig many_heads() {
  ModelConfig c = odd_config();
  c.vocab_size = 61;
  c.num_heads = 8;
  c.num_kv_heads = 2;
  c.linear_num_key_heads = 4;
  c.linear_num_value_heads = 8;
  c.num_experts = 8;
  c.experts_per_token = 3;
  return c;
}

// What a rank of a mesh holds of the whole model's weights.
Weights part_of(const ModelConfig& config, const Weights& whole, const MeshRank& place) {
  Weights part(config, whole.dtype(), Placement{.rank = place});
  for (size_t i = 0; i < part.specs().size(); i++) {
    const TensorSpec& spec = part.specs()[i];
    if (!spec.here) continue;
    const Tensor &to = part.tensors()[i], &from = whole.tensors()[i];
    const size_t size = size_of(to.dtype());
    for_each_run(spec, [&](int64_t first, int64_t full, int64_t n) {
      std::copy_n(static_cast<const char*>(from.data()) + static_cast<size_t>(full) * size,
                  static_cast<size_t>(n) * size, static_cast<char*>(to.data()) + static_cast<size_t>(first) * size);
    });
  }
  return part;
}

// What all ranks together computed.
struct Outcome {
  double loss = 0, mtp_loss = 0;
  std::map<std::string, std::vector<double>> grads;      // of the whole tensors, summed over their holders
  std::vector<std::vector<double>> log_probs;            // by data rank, in the order of its rows
  std::mutex mutex;

  void add(const Pass& pass, const MeshRank& place) {
    const std::lock_guard lock(mutex);
    const bool last = place.stage + 1 == place.sizes.pipeline;
    if (last && place.tensor == 0) {
      loss += pass.loss();
      mtp_loss += pass.mtp_loss();
      log_probs.resize(static_cast<size_t>(place.data_size));
      auto& mine = log_probs[static_cast<size_t>(place.data)];
      mine = pass.log_probs();
    }
    for_each_tensor(
        [&](const TensorSpec& spec, const Tensor& grad) {
          if (!spec.here || spec.copied) return;
          auto& whole = grads[spec.name];
          whole.resize(static_cast<size_t>(spec.full_numel()));
          const std::vector<double> part = values_of(grad);
          for_each_run(spec, [&](int64_t first, int64_t full, int64_t n) {
            for (int64_t i = 0; i < n; i++) whole[static_cast<size_t>(full + i)] += part[static_cast<size_t>(first + i)];
          });
        },
        pass.grads());
  }
};

// Sequences by data rank.
using Batches = std::vector<Sequences>;

void run_layout(const Layout& layout, const ModelConfig& config, const Weights& whole, const Batches& batches,
                PassOptions options, Outcome& outcome) {
  ASSERT_EQ(layout_problems(config, layout.sizes), std::vector<std::string>());
  options.recompute = layout.recompute;
  Sequences all;
  for (const auto& batch : batches) all.insert(all.end(), batch.begin(), batch.end());
  options.plan = &all;
  run_ranks(layout.ranks, [&](World& world) {
    const Mesh mesh(world, layout.sizes, layout.dispatcher);
    const Weights weights = part_of(config, whole, mesh.place());
    PassOptions mine = options;
    mine.mesh = &mesh;
    const Pass pass(config, weights, batches[static_cast<size_t>(mesh.place().data)], mine);
    outcome.add(pass, mesh.place());
  });
}

double norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

void expect_same(const Outcome& found, const Outcome& expected) {
  EXPECT_NEAR(found.loss, expected.loss, 1e-10 * std::abs(expected.loss));
  EXPECT_NEAR(found.mtp_loss, expected.mtp_loss, 1e-10 * std::abs(expected.mtp_loss));
  EXPECT_EQ(found.grads.size(), expected.grads.size());
  for (const auto& [name, theirs] : expected.grads) {
    const auto at = found.grads.find(name);
    ASSERT_NE(at, found.grads.end()) << name;
    std::vector<double> difference = at->second;
    ASSERT_EQ(difference.size(), theirs.size()) << name;
    for (size_t i = 0; i < difference.size(); i++) difference[i] -= theirs[i];
    EXPECT_GT(norm(theirs), 1e-9) << name << " does not matter";
    EXPECT_LE(norm(difference), 1e-9 * norm(theirs)) << name;
  }
}

// Each sequence to the next data rank.
Batches dealt(const Sequences& sequences, int64_t ranks) {
  Batches batches(static_cast<size_t>(ranks));
  for (size_t i = 0; i < sequences.size(); i++) batches[i % batches.size()].push_back(sequences[i]);
  return batches;
}

int64_t data_ranks(const Layout& l) { return mesh_rank(l.sizes, 0, l.ranks).data_size; }

class Layouts : public ::testing::TestWithParam<Layout> {
 protected:
  static constexpr double row_weight = 0.01;
  static PassOptions options() { return {.row_weight = row_weight, .temperature = 0.8, .entropy = 0.3}; }

  // A model whose router prefers expert 5, which then gets every token, and never takes expert 2.
  static void make_lopsided(const ModelConfig& config, Weights& weights) {
    const auto favour = [&](const MoeWeights& moe, const Tensor& norm) {
      // A normalised row times (1 + w) has this direction's component only through w: a large constant column.
      for (int64_t i = 0; i < config.hidden_size; i++) norm.as<double>()[i] = norm.as<double>()[i];
      for (int64_t i = 0; i < config.hidden_size; i++) {
        moe.router.as<double>()[2 * config.hidden_size + i] = 0;
        moe.router.as<double>()[5 * config.hidden_size + i] = 0;
      }
    };
    for (auto& layer : weights.layers) favour(layer.moe, layer.post_norm);
  }
};

TEST_P(Layouts, ComputeWhatOneRankComputes) {
  const ModelConfig config = many_heads();
  Weights whole(config, DType::f64);
  fill_random(whole, 21);
  const Sequences sequences = disjoint_sequences({63, 1, 65, 2, 7, 5}, config.vocab_size, 22);
  static Outcome expected;
  if (expected.grads.empty()) run_layout({}, config, whole, {sequences}, options(), expected);
  Outcome found;
  run_layout(GetParam(), config, whole, dealt(sequences, data_ranks(GetParam())), options(), found);
  expect_same(found, expected);
}

constexpr auto flex = Dispatcher::flex;
constexpr auto alltoall = Dispatcher::alltoall;
constexpr auto full = Recompute::full;

INSTANTIATE_TEST_SUITE_P(
    All, Layouts,
    ::testing::Values(
        Layout{2, {.tensor = 2}}, Layout{4, {.tensor = 4}}, Layout{2, {.context = 2}}, Layout{4, {.context = 4}},
        Layout{8, {.context = 8}}, Layout{2, {.pipeline = 2}}, Layout{3, {.pipeline = 3}}, Layout{2, {}},
        Layout{4, {}}, Layout{8, {}}, Layout{2, {.expert = 2}}, Layout{4, {.expert = 4}}, Layout{8, {.expert = 8}},
        Layout{4, {.expert = 2}}, Layout{2, {.expert_tensor = 2}}, Layout{4, {.expert = 2, .expert_tensor = 2}},
        Layout{2, {.expert = 2}, flex}, Layout{4, {.expert = 4}, flex}, Layout{8, {.expert = 8}, flex},
        Layout{4, {.expert = 2, .expert_tensor = 2}, flex}, Layout{2, {.expert_tensor = 2}, flex, full},
        Layout{2, {.tensor = 2}, alltoall, full}, Layout{2, {.context = 2}, alltoall, full},
        Layout{2, {.expert = 2}, alltoall, full}, Layout{2, {.expert = 2}, flex, full},
        Layout{2, {.pipeline = 2}, alltoall, full}, Layout{4, {.tensor = 2, .context = 2}},
        Layout{8, {.tensor = 2, .context = 4}}, Layout{8, {.tensor = 4, .context = 2}},
        Layout{4, {.tensor = 2, .pipeline = 2}}, Layout{4, {.pipeline = 2, .context = 2}},
        Layout{8, {.tensor = 2, .pipeline = 2, .context = 2, .expert = 2, .expert_tensor = 2}},
        Layout{8, {.tensor = 2, .context = 2, .expert = 8}}, Layout{8, {.tensor = 2, .context = 2, .expert = 8}, flex},
        Layout{8, {.tensor = 2, .context = 2, .expert = 8}, alltoall, full},
        Layout{8, {.tensor = 2, .context = 2, .expert = 8}, flex, full},
        Layout{8, {.tensor = 2, .pipeline = 2, .expert = 2}, alltoall, full},
        Layout{8, {.tensor = 2, .pipeline = 2, .expert = 2}, flex}, Layout{4, {.context = 2, .expert = 4}},
        Layout{4, {.tensor = 4, .expert = 2, .expert_tensor = 2}},
        Layout{8, {.tensor = 2, .context = 4, .expert = 4, .expert_tensor = 2}, flex, full},
        Layout{8, {.pipeline = 2, .expert = 4}, alltoall, full}),
    [](const auto& info) { return name_of_layout(info.param); });

}  // namespace
}  // namespace furlong::test
