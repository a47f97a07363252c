#include "layouts.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tensor/copy.h"

namespace furlong::test {
namespace {

double length_of(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

}  // namespace

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

void PrintTo(const Layout& l, std::ostream* out) { *out << name_of_layout(l); }

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

ModelConfig many_heads_dense(bool tied) {
  ModelConfig c = many_heads();
  c.linear_num_value_heads = 3 * c.linear_num_key_heads;
  c.num_experts = c.experts_per_token = c.moe_intermediate_size = c.shared_intermediate_size = 0;
  c.intermediate_size = 28;
  c.tied_embeddings = tied;
  return c;
}

Weights part_of(const ModelConfig& config, const Weights& whole, const MeshRank& place, Device device) {
  Weights part(config, whole.dtype(), Placement{.device = device, .rank = place});
  for (size_t i = 0; i < part.specs().size(); i++) {
    const TensorSpec& spec = part.specs()[i];
    if (!spec.here) continue;
    const Tensor &to = part.tensors()[i], &from = whole.tensors()[i];
    const size_t size = size_of(to.dtype());
    for_each_run(spec, [&](int64_t first, int64_t full, int64_t n) {
      write_numbers(to, first, n, static_cast<const char*>(from.data()) + static_cast<size_t>(full) * size);
    });
  }
  return part;
}

void Outcome::add(const Pass& pass, const MeshRank& place) {
  const std::lock_guard lock(mutex);
  const bool last = place.stage + 1 == place.sizes.pipeline;
  if (last && place.tensor == 0) {
    loss += pass.loss();
    mtp_loss += pass.mtp_loss();
  }
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& grad) {
        if (!spec.here) return;  // a copy has the gradient of the head that it is, or none
        auto& whole = grads[spec.name];
        whole.resize(static_cast<size_t>(spec.full_numel()));
        const std::vector<double> part = values_of(grad);
        for_each_run(spec, [&](int64_t first, int64_t full, int64_t n) {
          for (int64_t i = 0; i < n; i++) whole[static_cast<size_t>(full + i)] += part[static_cast<size_t>(first + i)];
        });
      },
      pass.grads());
}

void run_layout(const Layout& layout, const ModelConfig& config, const Weights& whole, const Batches& batches,
                PassOptions options, Outcome& outcome, Device device) {
  ASSERT_EQ(layout_problems(config, layout.sizes), std::vector<std::string>());
  options.recompute = layout.recompute;
  Sequences all;
  for (const auto& batch : batches) all.insert(all.end(), batch.begin(), batch.end());
  options.plan = &all;
  run_ranks(layout.ranks, [&](World& world) {
    const Mesh mesh(world, layout.sizes, layout.dispatcher);
    const Weights weights = part_of(config, whole, mesh.place(), device);
    PassOptions mine = options;
    mine.mesh = &mesh;
    const Pass pass(config, weights, batches[static_cast<size_t>(mesh.place().data)], mine);
    outcome.add(pass, mesh.place());
  });
}

void expect_same(const Outcome& found, const Outcome& expected, double tolerance) {
  EXPECT_NEAR(found.loss, expected.loss, tolerance * std::abs(expected.loss));
  EXPECT_NEAR(found.mtp_loss, expected.mtp_loss, tolerance * std::abs(expected.mtp_loss));
  EXPECT_EQ(found.grads.size(), expected.grads.size());
  for (const auto& [name, theirs] : expected.grads) {
    const auto at = found.grads.find(name);
    ASSERT_NE(at, found.grads.end()) << name;
    std::vector<double> difference = at->second;
    ASSERT_EQ(difference.size(), theirs.size()) << name;
    for (size_t i = 0; i < difference.size(); i++) difference[i] -= theirs[i];
    EXPECT_GT(length_of(theirs), 1e-9) << name << " does not matter";
    EXPECT_LE(length_of(difference), tolerance * length_of(theirs)) << name;
  }
}

Batches dealt(const Sequences& sequences, int64_t ranks) {
  Batches batches(static_cast<size_t>(ranks));
  for (size_t i = 0; i < sequences.size(); i++) batches[i % batches.size()].push_back(sequences[i]);
  return batches;
}

int64_t data_ranks(const Layout& l) { return mesh_rank(l.sizes, 0, l.ranks).data_size; }

void expect_bits_of_one_rank(const Layout& layout, const ModelConfig& config, const Weights& whole,
                             const Sequences& sequences, Device device) {
  const Batches batches = dealt(sequences, data_ranks(layout));
  const Weights placed_whole = part_of(config, whole, {}, device);
  run_ranks(layout.ranks, [&](World& world) {
    const Mesh mesh(world, layout.sizes, layout.dispatcher);
    const Weights weights = part_of(config, whole, mesh.place(), device);
    const Sequences& mine = batches[static_cast<size_t>(mesh.place().data)];
    const PassOptions options{.backward = false, .temperature = 0.8, .entropy = 0.3};
    PassOptions here = options;
    here.mesh = &mesh;
    here.plan = &sequences;
    const Pass part(config, weights, mine, here), alone(config, placed_whole, mine, options);
    if (mesh.place().stage + 1 < mesh.place().sizes.pipeline) return;
    EXPECT_EQ(part.log_probs(), alone.log_probs()) << "rank " << world.rank();
    EXPECT_EQ(part.entropies(), alone.entropies()) << "rank " << world.rank();
    EXPECT_EQ(part.mtp_log_probs(), alone.mtp_log_probs()) << "rank " << world.rank();
  });
}

}  // namespace furlong::test
