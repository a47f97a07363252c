// The optimizer over a mesh of ranks: the step of one rank that has the sums of all gradients.
#include "optim/owners.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "optim/adam.h"
#include "parallel/threads.h"
#include "shards.h"

namespace furlong::test {
namespace {

ModelConfig model() {
  ModelConfig c;
  c.vocab_size = 101;
  c.hidden_size = 32;
  c.num_layers = 4;
  c.full_attention = {false, false, true, false};
  c.num_heads = 8;
  c.num_kv_heads = 2;
  c.head_dim = 8;
  c.rotary_dim = 4;
  c.linear_num_key_heads = 4;
  c.linear_num_value_heads = 8;
  c.linear_key_head_dim = 8;
  c.linear_value_head_dim = 12;
  c.num_experts = 8;
  c.experts_per_token = 2;
  c.moe_intermediate_size = 16;
  c.shared_intermediate_size = 20;
  c.mtp_num_layers = 1;
  return c;
}

struct Layout {
  ParallelSizes sizes;
  int ranks;
};

const Layout layouts[] = {{{}, 1},
                          {{}, 3},
                          {{.expert = 4}, 8},
                          {{.tensor = 4}, 4},
                          {{.tensor = 2, .context = 2, .expert = 8}, 8},
                          {{.pipeline = 2, .expert = 2, .expert_tensor = 2}, 8},
                          {{.tensor = 2, .pipeline = 4}, 8}};

void fill(const Weights& w, std::mt19937& engine, double scale) {
  std::normal_distribution<double> normal(0, scale);
  for (const Tensor& t : w.tensors()) {
    for (int64_t i = 0; i < t.numel(); i++) {
      const auto x = static_cast<float>(normal(engine));
      if (t.dtype() == DType::bf16) {
        t.as<bf16>()[i] = bf16(x);
      } else {
        t.as<float>()[i] = x;
      }
    }
  }
}

// What rank r adds to the gradients of a step: numbers of the whole model, of which it computes those that it holds.
Weights addend(const ModelConfig& config, DType dtype, int rank, int step) {
  Weights grads(config, dtype);
  std::mt19937 engine(static_cast<uint32_t>(100 * step + rank));
  fill(grads, engine, 1);
  return grads;
}

float number_at(const Tensor& t, int64_t i) {
  return t.dtype() == DType::bf16 ? static_cast<float>(t.as<bf16>()[i]) : t.as<float>()[i];
}

// The gradient of one rank: for each number the sum over its holders in fp32, in their order, rounded once.
Weights summed(const ModelConfig& config, DType dtype, const Layout& layout, int step) {
  Weights sum(config, dtype);
  std::vector<Weights> parts;
  for (int r = 0; r < layout.ranks; r++) parts.push_back(addend(config, dtype, r, step));
  std::vector<std::vector<float>> sums;
  for (const Tensor& t : sum.tensors()) sums.emplace_back(static_cast<size_t>(t.numel()));
  std::vector<std::vector<bool>> begun;
  for (const auto& s : sums) begun.emplace_back(s.size());
  for (int r = 0; r < layout.ranks; r++) {
    const auto specs = tensor_registry(config, mesh_rank(layout.sizes, r, layout.ranks));
    for (size_t i = 0; i < specs.size(); i++) {
      if (!specs[i].here || specs[i].copied) continue;
      for_each_run(specs[i], [&](int64_t, int64_t first, int64_t count) {
        for (int64_t n = first; n < first + count; n++) {
          const auto at = static_cast<size_t>(n);
          const float x = number_at(parts[static_cast<size_t>(r)].tensors()[i], n);
          sums[i][at] = begun[i][at] ? sums[i][at] + x : x;
          begun[i][at] = true;
        }
      });
    }
  }
  for (size_t i = 0; i < sums.size(); i++) {
    const Tensor& t = sum.tensors()[i];
    for (int64_t n = 0; n < t.numel(); n++) {
      if (t.dtype() == DType::bf16) {
        t.as<bf16>()[n] = bf16(sums[i][static_cast<size_t>(n)]);
      } else {
        t.as<float>()[n] = sums[i][static_cast<size_t>(n)];
      }
    }
  }
  return sum;
}

struct Case {
  DType weights, grads;
  bool told;  // of the parts as the backward pass completes them
};

// Without clipping a number's update depends on its own gradient alone: the same bits on every layout.
TEST(OptimizerOverRanks, UpdatesAsOneRankDoes) {
  const ModelConfig config = model();
  for (const Layout& layout : layouts) {
    for (const Case& c : {Case{DType::f32, DType::f32, true}, Case{DType::bf16, DType::f32, false},
                          Case{DType::bf16, DType::bf16, true}}) {
      SCOPED_TRACE(fmt::format("tp {} pp {} cp {} ep {} etp {} on {}, {} weights", layout.sizes.tensor,
                               layout.sizes.pipeline, layout.sizes.context, layout.sizes.expert,
                               layout.sizes.expert_tensor, layout.ranks, name_of(c.weights)));
      const OptimOptions options{.lr = 0.01,
                                 .weight_decay = 0.1,
                                 .clip_grad = 0,
                                 .main_grads = c.grads,
                                 .exchange_block = c.told ? 1500 : int64_t{16} << 20};
      ThreadPool threads(1);
      Stream stream(threads);
      Weights whole(config, c.weights);
      std::mt19937 engine(3);
      fill(whole, engine, 1);
      const Weights start = [&] {
        Weights copy(config, c.weights);
        for_each_tensor([](const TensorSpec&, const Tensor& to,
                           const Tensor& from) { std::memcpy(to.data(), from.data(), to.bytes()); },
                        copy, whole);
        return copy;
      }();
      Optimizer one(config, whole, options);
      double norm = 0;
      constexpr int steps = 2;
      for (int step = 0; step < steps; step++) norm = one.step(stream, summed(config, c.grads, layout, step)).grad_norm;

      Gathered weights(config), masters(config), moments(config);
      run_ranks(layout.ranks, [&](World& world) {
        const Mesh mesh(world, layout.sizes);
        ThreadPool pool(1);
        Stream at(pool);
        Weights mine = shard_of(config, start, mesh.place());
        Optimizer optimizer(config, mine, options, &at, mesh);
        double found = 0;
        for (int step = 0; step < steps; step++) {
          const Weights grads = shard_of(config, addend(config, c.grads, world.rank(), step), mesh.place());
          if (c.told) {
            for (int part = mtp_part(config); part >= 0; part--) optimizer.gradients_done(at, grads, part);
          }
          found = optimizer.step(at, grads).grad_norm;
        }
        EXPECT_NEAR(found, norm, 1e-12 * norm);
        weights.add(mine, mesh.place());
        masters.add(optimizer.masters(), mesh.place());
        moments.add(optimizer.exp_avg(), mesh.place());
        // All holders have the new weights, and the last stage the new embedding.
        const Weights want = shard_of(config, whole, mesh.place());
        for_each_tensor(
            [](const TensorSpec& spec, const Tensor& a, const Tensor& b) {
              EXPECT_TRUE(!a.defined() || std::memcmp(a.data(), b.data(), a.bytes()) == 0) << spec.name;
            },
            want, mine);
      });
      for (const auto* all : {&weights, &masters, &moments}) all->expect_complete();
      for (size_t i = 0; i < whole.specs().size(); i++) {
        const std::string& name = whole.specs()[i].name;
        for (int64_t n = 0; n < whole.tensors()[i].numel(); n++) {
          const auto at = static_cast<size_t>(n);
          ASSERT_EQ(weights[name][at], number_at(whole.tensors()[i], n)) << name;
          ASSERT_EQ(masters[name][at], number_at(one.masters().tensors()[i], n)) << name;
          ASSERT_EQ(moments[name][at], number_at(one.exp_avg().tensors()[i], n)) << name;
        }
      }
    }
  }
}

// One number of one rank that is not finite: no rank changes anything, and the next step is as if nothing had been.
TEST(OptimizerOverRanks, SkipAlike) {
  const ModelConfig config = model();
  for (const Layout& layout : layouts) {
    run_ranks(layout.ranks, [&](World& world) {
      const Mesh mesh(world, layout.sizes);
      ThreadPool pool(1);
      Stream at(pool);
      const Weights start = addend(config, DType::f32, 50, 0);
      Weights mine = shard_of(config, start, mesh.place());
      Optimizer optimizer(config, mine, {.lr = 0.01, .clip_grad = 1}, &at, mesh);
      const Weights bad = shard_of(config, addend(config, DType::f32, world.rank(), 1), mesh.place());
      if (world.rank() + 1 == world.size()) {
        bad.layers.back().moe.down.as<float>()[7] = std::numeric_limits<float>::infinity();
      }
      const StepResult skipped = optimizer.step(at, bad);
      EXPECT_TRUE(skipped.skipped);
      const Weights before = shard_of(config, start, mesh.place());
      for_each_tensor(
          [](const TensorSpec& spec, const Tensor& a, const Tensor& b) {
            EXPECT_TRUE(!a.defined() || std::memcmp(a.data(), b.data(), a.bytes()) == 0) << spec.name;
          },
          before, mine);
      const Weights good = shard_of(config, addend(config, DType::f32, world.rank(), 1), mesh.place());
      const StepResult done = optimizer.step(at, good);
      EXPECT_FALSE(done.skipped);
      const auto norms = mesh.world().gather_bytes(fmt::format("{}", done.grad_norm));
      for (const auto& norm : norms) EXPECT_EQ(norm, norms.front());
    });
  }
}

TEST(Owners, BlocksAreAlignedAndCoverEverything) {
  for (const int64_t n : {1, 63, 64, 65, 1000, 4096}) {
    for (const int64_t ranks : {1, 2, 3, 8}) {
      int64_t next = 0;
      for (int64_t i = 0; i < ranks; i++) {
        const Range r = owned_block(n, i, ranks);
        EXPECT_EQ(r.begin, next);
        EXPECT_TRUE(r.begin % 64 == 0 || r.begin == n);
        next = r.end;
      }
      EXPECT_EQ(next, n);
    }
  }
}

}  // namespace
}  // namespace furlong::test
