// The memory plan of real runs, and what a fault in mid-step leaves behind.
#include "checkpoint/resume.h"
#include "parallel/threads.h"
#include "rollout/engine.h"
#include "tensor/cuda.h"
#include "trainer/fixture.h"
#include "trainer/memory_plan.h"
#include "trainer/options.h"
#include "trainer/train_step.h"

namespace furlong {
namespace {

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
}

Trajectory sample_of(int64_t length, int64_t prompt) {
  Trajectory t;
  for (int64_t i = 0; i < length; i++) t.tokens.push_back(static_cast<int32_t>((7 * i + length) % 500));
  t.response_length = static_cast<int32_t>(length - prompt);
  t.loss_mask.assign(static_cast<size_t>(t.response_length), 1);
  return t;
}

// No packing of samples of the planned lengths needs more than was planned, and a longer sample makes its own room.
TEST(MemoryPlan, CoversEveryPackOfItsLengths) {
  const ModelConfig config = read_model_config(tiny_folder);
  constexpr int64_t most = 400, shortest = 9, longest = 150, count = 24;
  for (const bool recompute : {false, true}) {
    Weights weights = load_hf(tiny_folder, config, DType::f32);
    ThreadPool threads(1);
    TrainOptions options{.objective = Objective::supervised, .mtp = true};
    options.pack = {.dynamic = true, .max_tokens = most};
    options.recompute = recompute ? Recompute::full : Recompute::none;
    Weights outline = Weights::outline(config, DType::f32);
    const auto plan =
        TrainStep::working_memory(config, outline, threads, options, most, std::min(count, most / shortest + 1));
    uint64_t sum = 0;
    for (const auto& [name, bytes] : plan.parts) sum += bytes;
    EXPECT_EQ(sum, plan.bytes);
    TrainStep step(config, weights, threads, options, Share::block(plan.bytes, Device::cpu));
    uint32_t state = 1;
    const auto between = [&](int64_t low, int64_t high) {
      state = state * 1664525 + 1013904223;
      return low + (state >> 8) % (high - low + 1);
    };
    const auto run = [&](const std::vector<int64_t>& lengths) {
      std::vector<Trajectory> samples;
      std::vector<const Trajectory*> picked;
      for (const int64_t n : lengths) samples.push_back(sample_of(n, 4));
      for (const auto& t : samples) picked.push_back(&t);
      return step.run(picked, std::vector<TokenTargets>(picked.size()));
    };
    for (int round = 0; round < 6; round++) {
      std::vector<int64_t> lengths;
      // Of every round's own mixture: all short, all just past a chunk, or anything.
      for (int64_t i = 0; i < count; i++) {
        lengths.push_back(round % 3 == 0 ? shortest : round % 3 == 1 ? 65 : between(shortest, longest));
      }
      run(lengths);
      ASSERT_EQ(step.working_bytes(), plan.bytes) << "round " << round;
    }
    EXPECT_TRUE(std::isfinite(run({2 * most}).front().second));
    EXPECT_GT(step.working_bytes(), plan.bytes);
  }
}

// On a mesh too: of every stage, with several micro-batches under way, whatever rows come to a rank's experts.
TEST(MemoryPlan, CoversEveryPackOnAMesh) {
  const ModelConfig config = read_model_config(tiny_folder);
  constexpr int64_t most = 130, shortest = 9, count = 24;
  std::vector<Trajectory> samples;
  std::vector<const Trajectory*> picked;
  for (int64_t i = 0; i < count; i++) samples.push_back(sample_of(shortest + (i * 37) % 70, 4));
  for (const auto& t : samples) picked.push_back(&t);
  TrainOptions options{.objective = Objective::supervised, .mtp = true};
  options.pack = {.dynamic = true, .max_tokens = most};
  const std::pair<ParallelSizes, Dispatcher> layouts[] = {
      {{.pipeline = 2, .expert = 2}, Dispatcher::alltoall},
      {{.tensor = 2, .context = 2, .expert = 4}, Dispatcher::alltoall},
      {{.expert = 4}, Dispatcher::flex}};
  for (const auto& [sizes, dispatcher] : layouts) {
    run_ranks(4, [&, sizes = sizes, dispatcher = dispatcher](World& world) {
      const Mesh mesh(world, sizes, dispatcher);
      ThreadPool threads(1);
      Weights weights = load_hf(tiny_folder, config, DType::f32, {.mesh = mesh});
      uint64_t planned = 0;
      for (int64_t stage = 0; stage < sizes.pipeline; stage++) {
        const MeshRank place = mesh_rank(sizes, (stage + 1) * (4 / sizes.pipeline) - 1, 4);
        Weights outline = Weights::outline(config, DType::f32, {.rank = place});
        const auto plan =
            TrainStep::working_memory(config, outline, threads, options, most, most / shortest + 1, dispatcher);
        uint64_t sum = 0;
        for (const auto& [name, bytes] : plan.parts) sum += bytes;
        EXPECT_EQ(sum, plan.bytes);
        planned = std::max(planned, plan.bytes);
      }
      TrainStep step(config, weights, threads, options, Share::block(planned, Device::cpu), mesh);
      for (int round = 0; round < 2; round++) {
        step.run(picked, std::vector<TokenTargets>(picked.size()));
        EXPECT_EQ(step.working_bytes(), planned);
        step.score(weights, picked);
        EXPECT_EQ(step.working_bytes(), planned);
      }
    });
  }
}

// What a limit of host memory refuses, before the weights are looked at.
TEST(MemoryPlan, RefusesBeforeLoadingAndItsAdviceHolds) {
  const Folder folder;
  fs::create_directories(folder / "weightless");
  for (const auto& entry : fs::directory_iterator(playground().model)) {
    if (entry.path().extension() != ".safetensors") fs::copy(entry.path(), folder / "weightless");
  }
  Settings s = small_run(folder / "run", 1);
  s.hf_checkpoint = folder / "weightless";
  s.rollout_max_response_len = 200;
  s.max_tokens_per_gpu = 4096;
  s.host_memory_gib = 0.14;  // 80 MiB beside the program itself
  const std::string message = refusal(Exit::resources, s);
  for (const char* part :
       {"nothing was loaded", "host memory", "too little", "weights", "gradients", "optimizer moments", "rollout pages",
        "training working memory: moe", "total", "there is", "what would fit"}) {
    expect_contains(message, part);
  }
  EXPECT_FALSE(fs::exists(folder / "run/plan.txt"));
  // With the memory it asks for, it goes on to the weights.
  s.host_memory_gib.reset();
  expect_contains(refusal(Exit::input, s), "weightless");

  s = small_run(folder / "advised", 1);
  s.max_tokens_per_gpu = 4096;
  const ModelConfig config = read_model_config(s.hf_checkpoint);
  const Workload work{.trains = true, .rolls = true, .longest = 220, .shortest = 20, .requests = 16};
  ThreadPool threads(1);
  const DryRuns runs = dry_runs(s, work, threads);
  PlanInputs in = plan_inputs(s, config, work, {.host_available = uint64_t{1} << 40});
  const MemoryPlan whole = plan_memory(in, runs);
  ASSERT_TRUE(whole.fits());
  ASSERT_GT(whole.host(Phase::training), whole.host(Phase::rollout));
  in.host_available = whole.host(Phase::training) - 1;
  const auto advice = nearest_that_fits(in, runs);
  ASSERT_FALSE(advice.empty());
  expect_contains(advice[0], "--recompute-granularity full");
  in.recompute = true;
  EXPECT_TRUE(plan_memory(in, runs).fits());
}

// The optimizer's settings reach the plan, and what it counts is what the trainer then holds.
TEST(MemoryPlan, CountsTheOptimizerAsTheSettingsHaveIt) {
  const ModelConfig config = read_model_config(tiny_folder);
  ThreadPool threads(1);
  const Workload work{.trains = true, .longest = 220, .shortest = 20};
  Settings s;
  s.dtype = "bf16";
  s.enable_mtp_training = true;
  s.use_dynamic_batch_size = true;
  s.max_tokens_per_gpu = 400;
  for (const std::string main_params : {"fp32", "bf16"}) {
    for (const std::string others : {"fp32", "bf16"}) {
      s.main_params_dtype = main_params;
      s.main_grads_dtype = s.exp_avg_dtype = others;
      const MemoryPlan plan =
          plan_memory(plan_inputs(s, config, work, {.host_available = uint64_t{1} << 40}), dry_runs(s, work, threads));
      const auto planned = [&](const std::vector<std::string>& names) {
        uint64_t sum = 0;
        for (const auto& row : plan.rows) {
          if (std::find(names.begin(), names.end(), row.name) != names.end()) sum += row.host[1];
        }
        return static_cast<double>(sum);
      };
      Weights weights = load_hf(tiny_folder, config, DType::bf16);
      TrainStep step(config, weights, threads, train_options(s, config));
      // Each tensor of masters and moments begins on a boundary of 64 bytes.
      const double boundaries = 64 * 3 * static_cast<double>(weights.specs().size());
      EXPECT_EQ(planned({"gradients", "gradients of a micro-batch"}), static_cast<double>(step.gradient_bytes()));
      EXPECT_NEAR(planned({"fp32 masters", "optimizer moments"}), static_cast<double>(step.optimizer().device_bytes()),
                  boundaries);
    }
  }
  s.device = "cuda";
  s.optimizer_cpu_offload = s.overlap_cpu_optimizer_d2h_h2d = true;
  s.optimizer_offload_fraction = 0.25;
  s.exp_avg_sq_dtype = "bf16";
  const PlanInputs in = plan_inputs(s, config, work, {});
  EXPECT_EQ(in.offload, 0.25);
  EXPECT_TRUE(in.overlap);
  EXPECT_EQ(in.exp_avg_sq, DType::bf16);
}

TEST(MemoryPlan, StandsInTheRunDirectory) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.use_rollout_routing_replay = true;
  run(s);
  const std::string text = read_file(folder / "run/plan.txt");
  for (const char* part : {"host, rollout", "host, training", "weights", "recorded routes", "rollout slots", "there is",
                           "passes of a step", "with the rollout's routes"}) {
    expect_contains(text, part);
  }
}

// A device error between gradients and update, as cuda::check throws it.
TEST(Fault, InMidStepLeavesTheLastCheckpointAndItsContinuation) {
  const Folder folder;
  Settings whole = small_run(folder / "whole", 3);
  whole.save_interval = 1;
  run(whole);
  run(small_run(folder / "first", 1));
  Settings broken = whole;
  broken.run_dir = folder / "broken";
  validate(broken, Command::train);
  int steps = 0;
  const Faults faults{.before_update = [&](Stream&) {
    if (++steps < 2) return;
    throw Error(Exit::lost, cuda::describe_error("cudaStreamSynchronize", "linear", "unspecified launch failure",
                                                 "cudaErrorLaunchFailure"));
  }};
  try {
    train(broken, false, faults);
    FAIL() << "the fault was swallowed";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::lost);
    expect_contains(e.what(), "linear");
  }
  EXPECT_EQ(steps, 2);
  const std::string first = "/checkpoints/iter_0000000";
  EXPECT_EQ(verify_checkpoint((folder / "broken") + first), "");
  EXPECT_TRUE(same_files((folder / "first") + first, (folder / "broken") + first));
  EXPECT_FALSE(fs::exists(folder / "broken/checkpoints/iter_0000001"));
  run(broken);
  EXPECT_TRUE(same_files(folder / "whole/hf", folder / "broken/hf"));
  EXPECT_EQ(metrics_of(folder / "whole"), metrics_of(folder / "broken"));
}

}  // namespace
}  // namespace furlong
