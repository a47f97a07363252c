// Training steps and rollouts on as many GPUs as there are ranks: by itself this program is one rank, under
// mpirun -n N test_gpus one of N, with a GPU each and NCCL between them. Every layout that N ranks can have computes
// what one of them computes alone.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "checkpoint/hf.h"
#include "cuda/gpu_ranks.h"
#include "golden.h"
#include "parallel/mesh.h"
#include "rl/golden_step.h"
#include "rollout/engine.h"
#include "trainer/train_step.h"

namespace furlong::test {
namespace {

struct GpuLayout {
  ParallelSizes sizes;
  Dispatcher dispatcher = Dispatcher::alltoall;

  std::string name() const {
    return fmt::format("tp{}_pp{}_cp{}_ep{}_etp{}_{}", sizes.tensor, sizes.pipeline, sizes.context, sizes.expert,
                       sizes.expert_tensor, dispatcher == Dispatcher::flex ? "flex" : "alltoall");
  }
};

const std::vector<GpuLayout>& all_layouts() {
  constexpr auto flex = Dispatcher::flex;
  static const std::vector<GpuLayout> layouts = {
      {},
      {{.expert = 2}},
      {{.expert = 2}, flex},
      {{.expert = 4}},
      {{.expert = 4}, flex},
      {{.expert = 8}},
      {{.expert = 8}, flex},
      {{.tensor = 2}},
      {{.tensor = 2, .expert = 2}, flex},
      {{.context = 2}},
      {{.context = 2, .expert = 2}, flex},
      {{.pipeline = 2}},
      {{.expert = 2, .expert_tensor = 2}, flex},
      {{.pipeline = 2, .expert = 2}, flex},
      {{.pipeline = 2, .expert = 4}},
      {{.tensor = 2, .pipeline = 2, .expert = 2}},
      {{.tensor = 2, .context = 2, .expert = 8}, flex},
  };
  return layouts;
}

// Those that this many ranks can have.
std::vector<GpuLayout> layouts_here(const ModelConfig& config, int ranks) {
  std::vector<GpuLayout> out;
  for (const GpuLayout& layout : all_layouts()) {
    if (mesh_problem(layout.sizes, ranks).empty() && layout_problems(config, layout.sizes).empty())
      out.push_back(layout);
  }
  return out;
}

class Gpus : public ::testing::Test {
 protected:
  World& world = Ranks::get();
  ThreadPool threads{2};
  const std::string folder = data_path("tiny");
  const ModelConfig config = read_model_config(folder);
  const std::string scratch = fmt::format("{}furlong_gpus_{}", ::testing::TempDir(), getpid());

  ~Gpus() override { std::filesystem::remove_all(scratch); }

  Weights weights(const Mesh& mesh, DType dtype) {
    return load_hf(folder, config, dtype, {.device = Device::cuda, .mesh = mesh});
  }

  using Grads = std::map<std::string, std::vector<float>>;
  // The reference's step with the MTP loss beside it: losses, and on the first rank of the mesh the gradients.
  struct Found {
    double loss = 0, mtp_loss = 0, grad_norm = 0;
    Grads grads;
  };
  Found step(const Mesh& mesh, DType dtype, const Golden& golden) {
    Weights mine = weights(mesh, dtype);
    TrainOptions options = golden_options();
    options.pack = {.dynamic = true, .max_tokens = 160};
    options.mtp = true;
    options.optim.train_mtp = true;
    options.dump_grads = scratch;
    Found found;
    const Step samples = golden_step(golden);
    {
      TrainStep train(config, mine, threads, options, {}, mesh);
      for (const auto& [name, value] : train.run(samples.pointers(), samples.targets)) {
        if (name == "train/loss") found.loss = value;
        if (name == "train/mtp_loss") found.mtp_loss = value;
        if (name == "train/grad_norm") found.grad_norm = value;
      }
    }
    if (mesh.world().rank() == 0) {
      const SafetensorsFile file(scratch + "/step_0000000.safetensors");
      for (const auto& e : file.entries()) found.grads[e.name] = floats_of(e);
    }
    std::filesystem::remove_all(scratch);
    return found;
  }
  // |a - b| over |b|, all tensors as one vector.
  static double distance(const Grads& a, const Grads& b) {
    double difference = 0, size = 0;
    for (const auto& [name, x] : b) {
      const auto& y = a.at(name);
      EXPECT_EQ(x.size(), y.size()) << name;
      for (size_t i = 0; i < x.size(); i++) {
        difference += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
        size += std::pow(static_cast<double>(x[i]), 2);
      }
    }
    return std::sqrt(difference / size);
  }
};

// fp32: the bound that one GPU's gradients are held to beside the reference's. A mesh in bf16 rounds what its ranks
// send as well: it may be twice as far from fp32 as one GPU is.
TEST_F(Gpus, AStepIsThatOfOneGpu) {
  const Golden golden("golden_grpo.safetensors");
  const Found exact = step(Mesh::alone(), DType::f32, golden), coarse = step(Mesh::alone(), DType::bf16, golden);
  const double error = distance(coarse.grads, exact.grads);
  for (const GpuLayout& layout : layouts_here(config, world.size())) {
    SCOPED_TRACE(layout.name());
    const Mesh mesh(world, layout.sizes, layout.dispatcher);
    const Found f32 = step(mesh, DType::f32, golden), bf16 = step(mesh, DType::bf16, golden);
    EXPECT_NEAR(f32.loss, exact.loss, 1e-4 * std::abs(exact.loss));
    EXPECT_NEAR(f32.mtp_loss, exact.mtp_loss, 1e-4 * exact.mtp_loss);
    EXPECT_NEAR(f32.grad_norm, exact.grad_norm, 1e-4 * exact.grad_norm);
    if (world.rank() != 0) continue;
    double worst = 0;
    for (const auto& [name, grad] : exact.grads) worst = std::max(worst, relative_error(f32.grads.at(name), grad));
    const double rounded = distance(bf16.grads, exact.grads);
    std::printf("%-34s gradients: fp32 within %.1e of one GPU's; bf16 %.4f of fp32, one GPU %.4f\n",
                layout.name().c_str(), worst, rounded, error);
    EXPECT_LT(worst, 1e-4);
    EXPECT_LT(rounded, 2 * error);
  }
}

// Requests dealt to data parallel ranks, fewer at the end than there are ranks. In fp32 the tokens of one GPU; recorded
// steps change no bit.
TEST_F(Gpus, RolloutsAreThoseOfOneGpu) {
  std::vector<Request> requests;
  for (int64_t i = 0; i < 2 * world.size() + 1; i++) {
    Request r{.samples = 3,
              .params = {.temperature = i % 3 == 0 ? 0.0 : 1.0},
              .max_new_tokens = 12 + 9 * i,
              .seed = 3,
              .group_index = i};
    for (int64_t p = 0; p < 5 + 17 * i; p++)
      r.prompt.push_back(static_cast<int32_t>((p * p + 7 * i + 3) % config.vocab_size));
    requests.push_back(std::move(r));
  }
  const auto generate = [&](const Mesh& mesh, int64_t drafts, bool recorded) {
    const Weights mine = weights(mesh, DType::f32);
    EngineOptions options{.max_running = 8, .drafts = drafts, .page = 16, .max_tokens = 512};
    if (recorded) options.graph_batches = {1, 2, 4, 8};
    Engine engine(config, mine, options, threads, {}, mesh);
    std::vector<Request> own;
    for (size_t i = 0; i < requests.size(); i++) {
      if (static_cast<int64_t>(i) % mesh.place().data_size == mesh.place().data) own.push_back(requests[i]);
    }
    auto done = engine.generate(own);
    EXPECT_EQ(engine.memory().free_slots(), engine.memory().options().slots - 1);
    return done;
  };
  for (const int64_t drafts : {0, 2}) {
    const auto alone = generate(Mesh::alone(), drafts, false);
    for (const GpuLayout& layout : layouts_here(config, world.size())) {
      SCOPED_TRACE(fmt::format("{}, {} drafts", layout.name(), drafts));
      const Mesh mesh(world, layout.sizes, layout.dispatcher);
      const auto plain = generate(mesh, drafts, false), recorded = generate(mesh, drafts, true);
      std::vector<Completion> wanted;
      for (const auto& c : alone) {
        if (static_cast<int64_t>(c.request) % mesh.place().data_size == mesh.place().data) wanted.push_back(c);
      }
      ASSERT_EQ(plain.size(), wanted.size());
      ASSERT_EQ(recorded.size(), wanted.size());
      for (size_t i = 0; i < wanted.size(); i++) {
        EXPECT_EQ(plain[i].tokens, wanted[i].tokens) << i;
        EXPECT_EQ(recorded[i].tokens, plain[i].tokens) << i;
        EXPECT_EQ(recorded[i].log_probs, plain[i].log_probs) << i;
      }
    }
  }
}

}  // namespace
}  // namespace furlong::test
