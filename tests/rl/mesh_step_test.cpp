// Training steps over a mesh of ranks (threads): what one process computes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <limits>
#include <map>
#include <random>

#include "checkpoint/hf.h"
#include "golden.h"
#include "model/support.h"
#include "parallel/threads.h"
#include "rl/golden_step.h"
#include "shards.h"
#include "trainer/train_step.h"

namespace furlong::test {
namespace {

ModelConfig lively_config() {
  ModelConfig c;
  c.vocab_size = 61;
  c.hidden_size = 24;
  c.num_layers = 3;
  c.full_attention = {false, true, false};
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 8;
  c.rotary_dim = 4;
  c.linear_num_key_heads = 2;
  c.linear_num_value_heads = 4;
  c.linear_key_head_dim = 6;
  c.linear_value_head_dim = 10;
  c.num_experts = 8;
  c.experts_per_token = 2;
  c.moe_intermediate_size = 12;
  c.shared_intermediate_size = 14;
  c.mtp_num_layers = 1;
  c.max_position_embeddings = 512;
  return c;
}

// Samples of these lengths with holes in their masks, old and reference log-probs that are somewhat off.
Step lively_samples(const std::vector<int64_t>& lengths, int64_t vocab, uint32_t seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> noise(-0.4f, 0.4f);
  Step step;
  for (const int64_t length : lengths) {
    Trajectory t;
    for (int64_t i = 0; i < length; i++)
      t.tokens.push_back(static_cast<int32_t>(engine() % static_cast<uint32_t>(vocab)));
    t.response_length = static_cast<int32_t>(length - 1 - static_cast<int64_t>(engine() % 3));
    TokenTargets target;
    target.advantages.assign(static_cast<size_t>(t.response_length), static_cast<double>(noise(engine)) * 4);
    target.old_log_probs.emplace();
    target.ref_log_probs.emplace();
    for (int32_t i = 0; i < t.response_length; i++) {
      t.loss_mask.push_back(engine() % 5 != 0);
      target.old_log_probs->push_back(noise(engine) - 4);
      target.ref_log_probs->push_back(noise(engine) - 4);
      t.rollout_log_probs.push_back(noise(engine) - 4);
    }
    step.trajectories.push_back(std::move(t));
    step.targets.push_back(std::move(target));
  }
  return step;
}

TrainOptions lively_options() {
  return {.loss = {.eps_clip = 0.2,
                   .eps_clip_high = 0.28,
                   .kl_loss_coef = 0.05,
                   .kl_type = KlType::low_var_kl,
                   .entropy_coef = 0.01},
          .pack = {.dynamic = true, .max_tokens = 60},
          .optim = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.98, .weight_decay = 0.1, .clip_grad = 1, .train_mtp = true},
          .mtp = true,
          .entropy = true};
}

struct RankLayout {
  ParallelSizes sizes;
  int ranks = 1;
  Dispatcher dispatcher = Dispatcher::alltoall;
  std::string name() const {
    std::string text = fmt::format("on{}", ranks);
    const auto add = [&](const char* what, int64_t size) {
      if (size > 1) text += fmt::format("_{}{}", what, size);
    };
    add("tp", sizes.tensor);
    add("pp", sizes.pipeline);
    add("cp", sizes.context);
    add("ep", sizes.expert);
    add("etp", sizes.expert_tensor);
    if (dispatcher == Dispatcher::flex) text += "_flex";
    return text;
  }
};

// A few steps, as rank 0 tells of them, with the gradients of the last and the weights after it.
struct Outcome {
  std::vector<std::map<std::string, double>> metrics;
  std::map<std::string, std::vector<float>> grads, weights;
  std::vector<std::vector<float>> scores;  // before the first step
};

std::map<std::string, double> without_times(const Metrics& metrics) {
  std::map<std::string, double> out;
  for (const auto& [name, value] : metrics) {
    if (!name.starts_with("perf/")) out[name] = value;
  }
  return out;
}

Outcome trained(const ModelConfig& config, const Weights& start, const std::vector<Step>& steps, TrainOptions options,
                const RankLayout& layout, const std::function<void(int, const Outcome&)>& look = {}) {
  const std::string folder = fmt::format("{}furlong_mesh_{}_{}", ::testing::TempDir(), getpid(), layout.name());
  std::filesystem::remove_all(folder);
  options.dump_grads = folder;
  Outcome first;
  Gathered weights(config);
  run_ranks(layout.ranks, [&](World& world) {
    const Mesh mesh(world, layout.sizes, layout.dispatcher);
    ThreadPool threads(1);
    Weights mine = shard_of(config, start, mesh.place());
    TrainStep train(config, mine, threads, options, {}, mesh);
    Outcome out;
    out.scores = train.score(mine, steps.front().pointers());
    for (const Step& step : steps) out.metrics.push_back(without_times(train.run(step.pointers(), step.targets)));
    weights.add(mine, mesh.place());
    if (look) look(world.rank(), out);
    if (world.rank() == 0) first = std::move(out);
  });
  weights.expect_complete();
  first.weights = weights.all();
  const SafetensorsFile file(fmt::format("{}/step_{:07d}.safetensors", folder, steps.size() - 1));
  for (const auto& e : file.entries()) first.grads[e.name] = floats_of(e);
  std::filesystem::remove_all(folder);
  return first;
}

// Losses to the tolerance of themselves; the other figures are smooth functions of log-probs, whose roundings they
// have. of_norm: of the gradient's norm.
void expect_near(const std::map<std::string, double>& got, const std::map<std::string, double>& want, double tolerance,
                 double of_norm) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, value] : want) {
    const bool loss = name == "train/loss" || name == "train/mtp_loss", norm = name == "train/grad_norm";
    const double size = std::max(std::abs(value), loss ? 0.0 : 1.0);
    EXPECT_NEAR(got.at(name), value, (norm ? of_norm : tolerance) * size) << name;
  }
}

// How far the whole gradients are apart, beside their size.
double distance(const Outcome& got, const Outcome& want) {
  double difference = 0, size = 0;
  for (const auto& [name, grad] : want.grads) {
    for (size_t i = 0; i < grad.size(); i++) {
      difference += std::pow(static_cast<double>(got.grads.at(name).at(i)) - static_cast<double>(grad[i]), 2);
      size += std::pow(static_cast<double>(grad[i]), 2);
    }
  }
  return std::sqrt(difference / size);
}

// Of one step; weights move by the sign of their gradients, which may be rounding error. of_norm: of the gradient's
// norm.
void expect_same(const Outcome& got, const Outcome& want, double tolerance = 1e-6, double of_grads = 1e-5,
                 double of_norm = 1e-6) {
  ASSERT_EQ(got.grads.size(), want.grads.size());
  for (const auto& [name, grad] : want.grads) EXPECT_LT(relative_error(got.grads.at(name), grad), of_grads) << name;
  for (size_t i = 0; i < want.metrics.size(); i++) expect_near(got.metrics[i], want.metrics[i], tolerance, of_norm);
  int64_t near = 0, all = 0;
  for (const auto& [name, w] : want.weights) {
    for (size_t i = 0; i < w.size(); i++) near += std::abs(got.weights.at(name)[i] - w[i]) <= 1e-5f;
    all += std::ssize(w);
  }
  EXPECT_GE(static_cast<double>(near), 0.999 * static_cast<double>(all));
  ASSERT_EQ(got.scores.size(), want.scores.size());
  for (size_t s = 0; s < want.scores.size(); s++) EXPECT_LT(relative_error(got.scores[s], want.scores[s]), 1e-5) << s;
}

const std::vector<int64_t> uneven = {37, 9, 21, 4, 58, 13, 30, 7, 16, 3};

class MeshStep : public ::testing::TestWithParam<RankLayout> {
 protected:
  MeshStep() : config_(lively_config()), start_(config_, DType::f32) { fill_random(start_, 11); }
  ModelConfig config_;
  Weights start_;
};

TEST_P(MeshStep, EqualsOneProcess) {
  const std::vector<Step> steps = {lively_samples(uneven, config_.vocab_size, 3)};
  const Outcome one = trained(config_, start_, steps, lively_options(), {});
  EXPECT_GT(one.metrics[0].at("train/mtp_loss"), 0);
  const Outcome mesh = trained(config_, start_, steps, lively_options(), GetParam(), [&](int rank, const Outcome& o) {
    expect_near(o.metrics[0], one.metrics[0], 1e-6, 1e-6);
    EXPECT_EQ(o.scores.size(), one.scores.size()) << rank;
  });
  expect_same(mesh, one);
}

// Fewer samples than data parallel ranks: some have nothing to do but take part, and some experts get no token.
TEST_P(MeshStep, RanksWithoutSamples) {
  const std::vector<Step> steps = {lively_samples({5}, config_.vocab_size, 4)};
  const Outcome one = trained(config_, start_, steps, lively_options(), {});
  const auto& down = one.grads.at("model.language_model.layers.0.mlp.experts.down_proj");
  const auto each = static_cast<std::ptrdiff_t>(down.size()) / config_.num_experts;
  int64_t without = 0;
  for (auto expert = down.begin(); expert != down.end(); expert += each)
    without += std::all_of(expert, expert + each, [](float g) { return g == 0; });
  EXPECT_GT(without, 0);
  expect_same(trained(config_, start_, steps, lively_options(), GetParam()), one);
}

TEST_P(MeshStep, RepeatsItsBits) {
  std::vector<Step> steps;
  for (uint32_t i = 0; i < 2; i++) steps.push_back(lively_samples(uneven, config_.vocab_size, 5 + i));
  const Outcome a = trained(config_, start_, steps, lively_options(), GetParam()),
                b = trained(config_, start_, steps, lively_options(), GetParam());
  EXPECT_EQ(a.metrics, b.metrics);
  EXPECT_TRUE(a.grads == b.grads);
  EXPECT_TRUE(a.weights == b.weights);
}

constexpr auto flex = Dispatcher::flex;

// Recompute, fixed micro-batches and gradients kept in bf16: the figures of one process, for the last within bf16's
// rounding of each micro-batch's share.
TEST(MeshOptions, DoNotMatter) {
  const ModelConfig config = lively_config();
  Weights start(config, DType::f32);
  fill_random(start, 11);
  const std::vector<Step> steps = {lively_samples(uneven, config.vocab_size, 3)};
  for (const RankLayout& layout : {RankLayout{{.tensor = 2, .context = 2, .expert = 4}, 4, Dispatcher::flex},
                                   RankLayout{{.pipeline = 2, .expert = 2}, 8}}) {
    TrainOptions options = lively_options();
    options.recompute = Recompute::full;
    options.pack = {.micro_batch_size = 2, .balance = true};
    options.per_token = true;
    options.head_chunk = 5;
    const Outcome one = trained(config, start, steps, options, {});
    expect_same(trained(config, start, steps, options, layout), one);
    options.optim.main_grads = DType::bf16;
    const Outcome rounded = trained(config, start, steps, options, layout);
    const double micro_batches = static_cast<double>(uneven.size());
    for (const auto& [name, grad] : one.grads)
      EXPECT_LT(relative_error(rounded.grads.at(name), grad), std::ldexp(micro_batches, -8)) << name;
  }
}

// What all tokens of a sample share, and a critic's step with its values: the figures of one process.
TEST(MeshOptions, SampleRatiosAndCritics) {
  const ModelConfig config = lively_config();
  ModelConfig critic = config;
  critic.mtp_num_layers = 0;
  critic.value_head = true;
  Weights start(config, DType::f32), critic_start(critic, DType::f32);
  fill_random(start, 11);
  fill_random(critic_start, 11);
  std::vector<Step> steps = {lively_samples(uneven, config.vocab_size, 3)};
  TrainOptions options = lively_options();
  options.loss.sequence_ratio = true;
  options.loss.importance = Importance::clip;
  options.loss.importance_high = 1.1;
  options.loss.opsm_delta = 0.0;
  TrainOptions valued = lively_options();
  valued.objective = Objective::value;
  valued.loss = {};
  valued.mtp = valued.optim.train_mtp = valued.entropy = false;
  std::vector<Step> returns = steps;
  for (Step& step : returns) {
    for (TokenTargets& target : step.targets) {
      target.old_values = target.returns = target.advantages;
      for (size_t i = 0; i < target.returns.size(); i++) target.returns[i] += 0.1 * static_cast<double>(i);
    }
  }
  // So that the losses of samples do not cancel.
  for (TokenTargets& target : steps[0].targets) {
    for (double& a : target.advantages) a = 0.25 * a - 0.25;
  }
  const Outcome one = trained(config, start, steps, options, {}),
                one_critic = trained(critic, critic_start, returns, valued, {});
  EXPECT_GT(one.metrics[0].at("train/opsm_clipfrac"), 0);
  EXPECT_GT(one_critic.metrics[0].at("train/value_clipfrac"), 0);
  EXPECT_EQ(one_critic.grads.at("value_head.weight").size(), static_cast<size_t>(config.hidden_size));
  for (const RankLayout& layout : {RankLayout{{.tensor = 2, .context = 2, .expert = 4}, 4, Dispatcher::flex},
                                   RankLayout{{.pipeline = 2, .expert = 2}, 8}}) {
    // A ratio multiplies all tokens of its sample, and its roundings with them.
    expect_same(trained(config, start, steps, options, layout), one, 4e-6, 4e-5);
    expect_same(trained(critic, critic_start, returns, valued, layout), one_critic);
  }
}

// A loss or a gradient of one rank that is not finite: all ranks skip the step and keep their weights.
TEST(MeshOptions, AStepIsSkippedAlike) {
  const ModelConfig config = lively_config();
  Weights start(config, DType::f32);
  fill_random(start, 11);
  for (const RankLayout& layout : {RankLayout{{.tensor = 2, .context = 2, .expert = 4}, 8},
                                   RankLayout{{.tensor = 2, .pipeline = 2, .expert = 2}, 8}}) {
    for (const bool in_loss : {true, false}) {
      std::vector<Step> steps = {lively_samples(uneven, config.vocab_size, 3)};
      TrainOptions options = lively_options();
      if (in_loss) {
        auto& advantages = steps[0].targets[4].advantages;
        advantages.assign(advantages.size(), std::numeric_limits<double>::quiet_NaN());
      }
      std::atomic<int> called = 0;
      options.before_update = [&](Stream&) { called++; };
      std::atomic<int> skipped = 0;
      Weights broken = shard_of(config, start, {});
      if (!in_loss) broken.layers[0].delta.norm.as<float>()[1] = std::numeric_limits<float>::infinity();
      const Outcome got = trained(config, broken, steps, options, layout, [&](int, const Outcome& o) {
        skipped += o.metrics[0].at("train/skipped_steps") == 1;
      });
      EXPECT_EQ(skipped, layout.ranks);
      EXPECT_EQ(called, layout.ranks);
      for (const auto& spec : broken.specs()) {
        const Tensor& t = broken.tensors()[static_cast<size_t>(&spec - broken.specs().data())];
        EXPECT_TRUE(std::equal(t.as<float>(), t.as<float>() + t.numel(), got.weights.at(spec.name).begin()))
            << spec.name;
      }
    }
  }
}

// Weights and activations in bf16, masters in fp32.
TEST(MeshOptions, Bf16) {
  const ModelConfig config = lively_config();
  Weights start(config, DType::bf16);
  fill_random(start, 11);
  const std::vector<Step> steps = {lively_samples(uneven, config.vocab_size, 3),
                                   lively_samples(uneven, config.vocab_size, 4)};
  const Outcome one = trained(config, start, steps, lively_options(), {});
  for (const RankLayout& layout : {RankLayout{{.tensor = 2, .context = 2, .expert = 4}, 4, Dispatcher::flex},
                                   RankLayout{{.pipeline = 2, .expert = 2}, 8}}) {
    SCOPED_TRACE(layout.name());
    const Outcome mesh = trained(config, start, steps, lively_options(), layout);
    for (size_t i = 0; i < steps.size(); i++) {
      for (const char* name : {"train/loss", "train/mtp_loss", "train/grad_norm"}) {
        // Every activation is rounded to 8 bits, in other places where rows are gathered and sums are split. The loss
        // is a mean of numbers of the size of a log-prob that nearly cancel.
        const double want = one.metrics[i].at(name), each = std::ldexp(4.0, -8) / std::sqrt(100.0);
        EXPECT_NEAR(mesh.metrics[i].at(name), want, 0.02 * std::abs(want) + each) << name << " of step " << i;
      }
    }
  }
}

ModelConfig lively_dense(bool tied) {
  ModelConfig c = lively_config();
  c.linear_num_value_heads = 6;
  c.num_experts = c.experts_per_token = c.moe_intermediate_size = c.shared_intermediate_size = 0;
  c.intermediate_size = 28;
  c.tied_embeddings = tied;
  return c;
}

class DenseMeshStep : public ::testing::TestWithParam<RankLayout> {};

// Untied and tied; on pipeline stages a tied embedding's gradient comes from both ends, and its update goes to both.
TEST_P(DenseMeshStep, EqualsOneProcess) {
  for (const bool tied : {false, true}) {
    SCOPED_TRACE(tied);
    const ModelConfig config = lively_dense(tied);
    Weights start(config, DType::f32);
    fill_random(start, 12);
    std::vector<Step> steps = {lively_samples(uneven, config.vocab_size, 3)};
    // The rounding of fp32, which the taps of one layer feel most; in fp64 layouts agree to 1e-9 (layouts_test.cpp).
    // Norms are at most as far apart as what they are of.
    const Outcome split = trained(config, start, steps, lively_options(), GetParam()),
                  whole = trained(config, start, steps, lively_options(), {});
    expect_same(split, whole, 1e-6, 5e-5, std::max(1e-6, distance(split, whole)));
    for (uint32_t i = 0; i < 3; i++) steps.push_back(lively_samples(uneven, config.vocab_size, 40 + i));
    TrainOptions options = lively_options();
    options.optim.exchange_block = 100;  // several pieces
    options.mtp = options.optim.train_mtp = false;
    const Outcome one = trained(config, start, steps, options, {}),
                  mesh = trained(config, start, steps, options, GetParam());
    for (size_t i = 0; i < steps.size(); i++) {
      for (const char* name : {"train/loss", "train/grad_norm"}) {
        const double want = one.metrics[i].at(name);
        EXPECT_NEAR(mesh.metrics[i].at(name), want, 1e-4 * std::abs(want)) << name << " of step " << i;
      }
    }
    // Gradients kept in bf16: each micro-batch's share is rounded, the head's and the embedding's by themselves.
    options.optim.main_grads = DType::bf16;
    steps.resize(1);
    const Outcome exact = trained(config, start, steps, lively_options(), {}),
                  rounded = trained(config, start, steps, options, GetParam());
    for (const auto& [name, grad] : rounded.grads)
      EXPECT_LT(relative_error(grad, exact.grads.at(name)), std::ldexp(20.0, -8)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, DenseMeshStep,
                         ::testing::Values(RankLayout{{}, 1}, RankLayout{{}, 2}, RankLayout{{.tensor = 2}, 2},
                                           RankLayout{{.pipeline = 2}, 2}, RankLayout{{.pipeline = 3}, 3},
                                           RankLayout{{.tensor = 2, .pipeline = 2}, 8},
                                           RankLayout{{.tensor = 2, .pipeline = 2, .context = 2}, 8}),
                         [](const auto& info) { return info.param.name(); });

// The reference's step on eight ranks.
TEST(MeshGolden, GrpoStepOnEightRanks) {
  const Golden golden("golden_grpo.safetensors");
  const ModelConfig config = tiny_config();
  const Weights start = tiny_weights(config, DType::f32);
  const std::vector<Step> steps = {golden_step(golden)};
  TrainOptions options = golden_options();
  options.pack = {.micro_batch_size = 1};
  for (const RankLayout& layout :
       {RankLayout{{.tensor = 2, .context = 2, .expert = 8}, 8}, RankLayout{{.expert = 8}, 8, Dispatcher::flex},
        RankLayout{{.tensor = 2, .pipeline = 2, .expert = 2}, 8}, RankLayout{{.pipeline = 4, .expert_tensor = 2}, 8}}) {
    SCOPED_TRACE(layout.name());
    const Outcome got = trained(config, start, steps, options, layout);
    for (const auto& [metric, name] :
         {std::pair("train/loss", "loss"), std::pair("train/pg_loss", "pg_loss"), std::pair("train/kl_loss", "kl_loss"),
          std::pair("train/pg_clipfrac", "pg_clipfrac"), std::pair("train/grad_norm", "grad_norm")}) {
      const double want = golden.number(name);
      EXPECT_NEAR(got.metrics[0].at(metric), want, 1e-4 * std::abs(want)) << metric;
    }
    int64_t near = 0, all = 0;
    for (const auto& [name, weight] : got.weights) {
      if (!golden.has("adam." + name)) continue;
      const auto want = golden.floats("adam." + name);
      for (size_t i = 0; i < want.size(); i++) near += std::abs(weight[i] - want[i]) <= 1e-5f;
      all += std::ssize(want);
    }
    EXPECT_GT(all, 100000);
    EXPECT_GE(static_cast<double>(near), 0.999 * static_cast<double>(all));
  }
}

// Ten steps of the same trajectories on every layout.
TEST(MeshSteps, StayTogether) {
  const ModelConfig config = lively_config();
  Weights start(config, DType::f32);
  fill_random(start, 11);
  std::vector<Step> steps;
  for (uint32_t i = 0; i < 10; i++) steps.push_back(lively_samples(uneven, config.vocab_size, 30 + i));
  const Outcome one = trained(config, start, steps, lively_options(), {});
  EXPECT_GT(std::abs(one.metrics.back().at("train/mtp_loss") - one.metrics.front().at("train/mtp_loss")), 1e-2);
  for (const RankLayout& layout :
       {RankLayout{{}, 8}, RankLayout{{.tensor = 2, .context = 2, .expert = 8}, 8},
        RankLayout{{.tensor = 2, .pipeline = 2, .expert = 2}, 8}, RankLayout{{.expert = 4}, 4, Dispatcher::flex}}) {
    SCOPED_TRACE(layout.name());
    const Outcome mesh = trained(config, start, steps, lively_options(), layout);
    for (size_t i = 0; i < steps.size(); i++) {
      for (const char* name : {"train/loss", "train/mtp_loss", "train/grad_norm"}) {
        const double want = one.metrics[i].at(name);
        EXPECT_NEAR(mesh.metrics[i].at(name), want, 1e-4 * std::abs(want)) << name << " of step " << i;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, MeshStep,
    ::testing::Values(RankLayout{{}, 2}, RankLayout{{}, 3}, RankLayout{{}, 8}, RankLayout{{.tensor = 2}, 2},
                      RankLayout{{.context = 2}, 2}, RankLayout{{.pipeline = 2}, 2}, RankLayout{{.pipeline = 3}, 3},
                      RankLayout{{.expert = 2}, 2}, RankLayout{{.expert_tensor = 2}, 2}, RankLayout{{.tensor = 2}, 4},
                      RankLayout{{.context = 2}, 4}, RankLayout{{.pipeline = 2}, 4}, RankLayout{{.expert = 2}, 4},
                      RankLayout{{.expert = 4}, 4}, RankLayout{{.expert = 4}, 8, flex}, RankLayout{{.expert = 8}, 8},
                      RankLayout{{.expert = 8}, 8, flex}, RankLayout{{.expert = 2, .expert_tensor = 2}, 8},
                      RankLayout{{.tensor = 2, .context = 2}, 4}, RankLayout{{.tensor = 2, .context = 2}, 8},
                      RankLayout{{.tensor = 2, .context = 2, .expert = 8}, 8},
                      RankLayout{{.tensor = 2, .context = 2, .expert = 8}, 8, flex},
                      RankLayout{{.tensor = 2, .pipeline = 2}, 4},
                      RankLayout{{.tensor = 2, .pipeline = 2, .expert = 2}, 8},
                      RankLayout{{.pipeline = 2, .context = 2, .expert = 4}, 8},
                      RankLayout{{.pipeline = 2, .expert = 4}, 8, flex},
                      RankLayout{{.tensor = 2, .pipeline = 2, .context = 2}, 8},
                      RankLayout{{.tensor = 2, .pipeline = 2, .context = 2, .expert = 2, .expert_tensor = 2}, 8}),
    [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace furlong::test
