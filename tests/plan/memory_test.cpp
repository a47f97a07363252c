// The plan's sums, its refusals, and what it advises, with dry runs that are simple formulas.
#include "plan/memory.h"

#include <gtest/gtest.h>

#include "plan/shapes.h"

namespace furlong {
namespace {

constexpr uint64_t mib = uint64_t{1} << 20, gib = uint64_t{1} << 30;

// Working memory: 1 MiB a token, a quarter with recompute; a running sequence 8 MiB, a page 1 MiB, least 32 MiB.
DryRuns formulas() {
  DryRuns runs;
  runs.training = [](const PlanInputs& in) {
    const uint64_t bytes = static_cast<uint64_t>(in.micro_tokens) * mib / (in.recompute ? 4 : 1);
    return WorkingBytes{{{"layer", bytes}}, bytes};
  };
  runs.rollout = [](const PlanInputs& in, uint64_t pool) {
    RolloutBytes r{.page = 32, .least = 32 * mib};
    r.slots = in.max_running;
    r.slot_bytes = std::min<uint64_t>(pool / 2, static_cast<uint64_t>(in.max_running) * 8 * mib);
    r.page_bytes =
        std::min<uint64_t>(pool - std::min(pool, r.slot_bytes), static_cast<uint64_t>(in.max_running) * 4 * mib);
    r.working = static_cast<uint64_t>(in.max_running) * mib;
    r.block = r.page_bytes + r.slot_bytes + r.working;
    return r;
  };
  return runs;
}

PlanInputs gpu_run() {
  PlanInputs in{.model = toy(), .dtype = DType::bf16, .cuda = true, .trains = true, .rolls = true};
  in.micro_tokens = 1024;
  in.micro_segments = 8;
  in.longest = 100;
  in.packs = true;
  in.max_running = 64;
  in.device_total = 8 * gib;
  in.device_taken = 512 * mib;
  in.host_available = 16 * gib;
  in.may_offload = true;
  return in;
}

const PlanRow& row(const MemoryPlan& plan, const std::string& begin) {
  for (const auto& r : plan.rows) {
    if (r.name.starts_with(begin)) return r;
  }
  ADD_FAILURE() << begin;
  return plan.rows.front();
}

bool has_row(const MemoryPlan& plan, const std::string& begin) {
  return std::any_of(plan.rows.begin(), plan.rows.end(), [&](const auto& r) { return r.name.starts_with(begin); });
}

TEST(MemoryPlan, WeightsGradientsMastersAndMoments) {
  const PlanInputs in = gpu_run();
  const MemoryPlan plan = plan_memory(in, formulas());
  EXPECT_TRUE(plan.fits());
  const Weights half(in.model, DType::bf16), trunk(in.model, DType::f32, Device::cpu, false);
  EXPECT_EQ(row(plan, "weights").device[0], half.bytes());
  EXPECT_EQ(row(plan, "gradients").device[1], trunk.bytes()) << "the MTP head is not trained";
  int64_t all = 0, trained = 0;
  for (const auto& spec : half.specs()) {
    all += spec.numel();
    trained += spec.mtp ? 0 : spec.numel();
  }
  EXPECT_EQ(row(plan, "fp32 masters").device[0], static_cast<uint64_t>(4 * all));
  EXPECT_EQ(row(plan, "optimizer moments").device[0], static_cast<uint64_t>(8 * trained));
  EXPECT_FALSE(has_row(plan, "reference"));
  PlanInputs fp32 = in;
  fp32.dtype = DType::f32;
  fp32.mtp = fp32.reference = true;
  const MemoryPlan other = plan_memory(fp32, formulas());
  EXPECT_FALSE(has_row(other, "fp32 masters")) << "fp32 weights are their own";
  EXPECT_EQ(row(other, "reference").device[0], Weights(in.model, DType::f32).bytes());
  EXPECT_EQ(row(other, "gradients").device[0], Weights(in.model, DType::f32).bytes());
}

TEST(MemoryPlan, PhasesTakeTurns) {
  const MemoryPlan plan = plan_memory(gpu_run(), formulas());
  EXPECT_EQ(row(plan, "training working").device[0], 0u);
  EXPECT_EQ(row(plan, "training working").device[1], 1024 * mib);
  EXPECT_EQ(row(plan, "rollout slots").device[0], 512 * mib);
  EXPECT_EQ(row(plan, "rollout slots").device[1], 0u);
  EXPECT_EQ(plan.block, 1024 * mib) << "the larger of the two";
  uint64_t resident = 0;
  for (const auto& r : plan.rows) {
    if (r.device[0] == r.device[1]) resident += r.device[0];
  }
  EXPECT_EQ(plan.device_peak(), resident + plan.block);
}

TEST(MemoryPlan, WeightsInPacksHaveARow) {
  DryRuns runs = formulas();
  runs.rollout = [without = runs.rollout](const PlanInputs& in, uint64_t pool) {
    RolloutBytes r = without(in, pool);
    r.packs = 3 * mib;
    r.block += r.packs;
    return r;
  };
  const MemoryPlan plan = plan_memory(gpu_run(), runs), without = plan_memory(gpu_run(), formulas());
  EXPECT_EQ(row(plan, "rollout weights in packs").device[0], 3 * mib);
  EXPECT_EQ(row(plan, "rollout working").device[0], row(without, "rollout working").device[0]);
  EXPECT_FALSE(has_row(without, "rollout weights in packs"));
}

TEST(MemoryPlan, BothAtOnceHavePartsOfTheirOwn) {
  PlanInputs in = gpu_run();
  const MemoryPlan turns = plan_memory(in, formulas());
  in.at_once = true;
  const MemoryPlan plan = plan_memory(in, formulas());
  EXPECT_TRUE(plan.fits());
  const RolloutBytes rollout = formulas().rollout(in, plan.pool);
  EXPECT_GE(plan.training_at, rollout.block);
  EXPECT_LT(plan.training_at, rollout.block + 256);
  EXPECT_EQ(plan.training_at % 256, 0u);
  EXPECT_EQ(plan.block, plan.training_at + 1024 * mib);
  EXPECT_EQ(turns.training_at, 0u);
  EXPECT_EQ(plan.device(Phase::rollout), plan.device(Phase::training));
  EXPECT_EQ(plan.device_peak(), turns.device_peak() - turns.block + plan.block);
  // The rollout gets what training leaves, and one that leaves nothing is refused.
  in.device_total = turns.device_peak() - turns.block + 1200 * mib;
  const MemoryPlan tight = plan_memory(in, formulas());
  EXPECT_TRUE(tight.fits());
  EXPECT_LT(tight.pool, plan.pool);
  in.device_total -= 200 * mib;
  EXPECT_FALSE(plan_memory(in, formulas()).fits());
}

TEST(MemoryPlan, OffloadMovesTheOptimizerToTheHost) {
  PlanInputs in = gpu_run();
  const uint64_t before = plan_memory(in, formulas()).device_peak();
  const uint64_t state = row(plan_memory(in, formulas()), "fp32 masters").device[0] +
                         row(plan_memory(in, formulas()), "optimizer moments").device[0];
  in.offload = 1;
  const MemoryPlan plan = plan_memory(in, formulas());
  EXPECT_EQ(plan.device_peak(), before - state);
  EXPECT_EQ(row(plan, "fp32 masters").host[0] + row(plan, "optimizer moments").host[0], state);
  in.exp_avg = in.exp_avg_sq = DType::bf16;
  EXPECT_EQ(row(plan_memory(in, formulas()), "optimizer moments").host[0], row(plan, "optimizer moments").host[0] / 2);
  in.exp_avg = in.exp_avg_sq = DType::f32;
  in.offload = 0.5;
  const MemoryPlan half = plan_memory(in, formulas());
  // Tensors move whole: one of each kind may stay that half of the numbers would take along.
  const uint64_t largest = size_of_rank(in.model, in.layout, in.dtype).largest * 3 * 4;
  EXPECT_NEAR(static_cast<double>(half.device_peak()), static_cast<double>(before - state / 2 + largest), 2);
  EXPECT_FALSE(has_row(half, "gradients on the host"));
  const uint64_t block = 8 << 20;  // three on their way down in fp32 and up in bf16
  EXPECT_EQ(row(half, "blocks on their way").host[1], 3 * block * (4 + 2));
  in.overlap = true;
  EXPECT_NEAR(static_cast<double>(row(plan_memory(in, formulas()), "gradients on the host").host[1]),
              static_cast<double>(row(half, "gradients").device[0]) / 2, 4096);
  EXPECT_EQ(row(plan_memory(in, formulas()), "blocks on their way").host[1], 3 * block * 2);
  EXPECT_FALSE(has_row(half, "weights on the host"));
  in.master = DType::bf16;
  EXPECT_NEAR(static_cast<double>(row(plan_memory(in, formulas()), "weights on the host").host[1]),
              static_cast<double>(row(half, "weights").device[0]) / 2, 4096);
}

TEST(MemoryPlan, DtypesOfTheOptimizer) {
  PlanInputs in = gpu_run();
  in.master = DType::bf16;
  EXPECT_FALSE(has_row(plan_memory(in, formulas()), "fp32 masters")) << "the weights themselves";
  const uint64_t whole = row(plan_memory(in, formulas()), "gradients").device[1];
  in.main_grads = DType::bf16;
  const MemoryPlan plan = plan_memory(in, formulas());
  EXPECT_NEAR(static_cast<double>(row(plan, "gradients").device[1]), static_cast<double>(whole) / 2, 4096);
  EXPECT_TRUE(has_row(plan, "gradients of a micro-batch"));
}

TEST(MemoryPlan, OptimizerStateIsSpreadOverEqualRanks) {
  PlanInputs in = gpu_run();
  in.layout = {.expert = 4, .gpus = 8};
  in.gpus_a_host = 8;
  in.offload = 1;
  const MemoryPlan plan = plan_memory(in, formulas());
  const RankSize rank = size_of_rank(in.model, in.layout, DType::bf16);
  const int64_t one = (rank.dense + 7) / 8 + (rank.experts + 1) / 2;
  EXPECT_EQ(row(plan, "fp32 masters").host[0], static_cast<uint64_t>(8 * 4 * one));
}

TEST(MemoryPlan, TheFractionCoversWhatIsResidentAndTheRollout) {
  PlanInputs in = gpu_run();
  in.fraction = 0.3;
  MemoryPlan plan = plan_memory(in, formulas());
  EXPECT_TRUE(plan.fits());
  EXPECT_LE(plan.device(Phase::rollout), static_cast<uint64_t>(0.3 * 8 * gib));
  EXPECT_GT(plan.device(Phase::rollout), static_cast<uint64_t>(0.15 * 8 * gib));
  in.max_running = 1 << 16;  // as much as it may
  plan = plan_memory(in, formulas());
  EXPECT_FALSE(plan.fits()) << "the rollout's working memory alone is 64 GiB";
  in.max_running = 300;
  in.fraction = 0.4;
  plan = plan_memory(in, formulas());
  EXPECT_NEAR(static_cast<double>(plan.device(Phase::rollout)), 0.4 * 8 * gib, 2.0 * mib);
}

TEST(MemoryPlan, OnTheCpuEverythingLiesOnTheHost) {
  PlanInputs in = gpu_run();
  in.cuda = false;
  const MemoryPlan plan = plan_memory(in, formulas());
  EXPECT_TRUE(plan.fits());
  EXPECT_EQ(plan.device_peak(), 0u);
  EXPECT_GT(plan.host(Phase::training), 1024 * mib);
  EXPECT_FALSE(has_row(plan, "scratch"));
}

TEST(MemoryPlan, SaysWhatIsTooLittleAndByHowMuch) {
  PlanInputs in = gpu_run();
  in.device_total = plan_memory(in, formulas()).device_peak();
  EXPECT_TRUE(plan_memory(in, formulas()).fits()) << "to the byte";
  in.device_total -= 3 * mib;
  MemoryPlan plan = plan_memory(in, formulas());
  ASSERT_EQ(plan.problems.size(), 1u);
  EXPECT_NE(plan.problems[0].find("3.0 MiB too little"), std::string::npos) << plan.problems[0];
  EXPECT_NE(plan.problems[0].find("GPU"), std::string::npos);
  in = gpu_run();
  in.host_available = mib;
  plan = plan_memory(in, formulas());
  ASSERT_EQ(plan.problems.size(), 1u);
  EXPECT_NE(plan.problems[0].find("host memory"), std::string::npos);
}

// Whatever is advised must fit when it is done.
TEST(Nearest, SmallerMicroBatchesAndRecompute) {
  PlanInputs in = gpu_run();
  in.device_total = gib + 512 * mib;  // 1 GiB of working memory is too much
  ASSERT_FALSE(plan_memory(in, formulas()).fits());
  const auto advice = nearest_that_fits(in, formulas());
  ASSERT_EQ(advice.size(), 2u);
  EXPECT_TRUE(advice[0].starts_with("--recompute-granularity full: ")) << advice[0];
  EXPECT_TRUE(advice[1].starts_with("--max-tokens-per-gpu 512: ") ||
              advice[1].starts_with("--max-tokens-per-gpu 256: "))
      << advice[1];
  in.recompute = true;
  EXPECT_TRUE(plan_memory(in, formulas()).fits());
}

TEST(Nearest, ASampleIsTheSmallestMicroBatch) {
  PlanInputs in = gpu_run();
  in.recompute = true;
  in.micro_tokens = 8192;
  in.longest = 8000;
  in.device_total = 2 * gib;
  for (const auto& advice : nearest_that_fits(in, formulas())) {
    EXPECT_EQ(advice.find("--max-tokens-per-gpu"), std::string::npos) << advice;
  }
}

TEST(Nearest, AFractionThatIsTooSmall) {
  PlanInputs in = gpu_run();
  in.fraction = 0.05;
  const MemoryPlan plan = plan_memory(in, formulas());
  ASSERT_FALSE(plan.fits());
  EXPECT_NE(plan.problems[0].find("--rollout-mem-fraction-static 0.05"), std::string::npos) << plan.problems[0];
  const auto advice = nearest_that_fits(in, formulas());
  ASSERT_FALSE(advice.empty());
  EXPECT_TRUE(advice[0].starts_with("--rollout-mem-fraction-static 0.")) << advice[0];
}

TEST(Nearest, OffloadOnlyWhereThisBuildHasIt) {
  PlanInputs in = gpu_run();
  in.model = qwen35();
  in.model.num_layers = 4;
  in.model.full_attention.resize(4);
  in.device_total = 80 * gib;
  in.host_available = 1000 * gib;
  ASSERT_FALSE(plan_memory(in, formulas()).fits());
  auto advice = nearest_that_fits(in, formulas());
  ASSERT_FALSE(advice.empty());
  EXPECT_TRUE(advice[0].starts_with("--optimizer-cpu-offload: ")) << advice[0];
  in.may_offload = false;
  for (const auto& text : nearest_that_fits(in, formulas())) EXPECT_EQ(text.find("offload"), std::string::npos) << text;
}

TEST(Nearest, MoreGpusForTheWholeModel) {
  PlanInputs in = gpu_run();
  in.model = qwen35();
  in.device_total = 140 * gib;
  in.host_available = 2000 * gib;
  EXPECT_TRUE(nearest_that_fits(in, formulas()).empty()) << "of a program that runs on one";
  in.may_spread = true;
  const auto advice = nearest_that_fits(in, formulas());
  ASSERT_EQ(advice.size(), 1u);
  EXPECT_NE(advice[0].find("GPUs with --expert-model-parallel-size"), std::string::npos) << advice[0];
}

TEST(Nearest, NothingHelps) {
  PlanInputs in = gpu_run();
  in.device_total = in.device_taken + mib;
  EXPECT_TRUE(nearest_that_fits(in, formulas()).empty());
}

}  // namespace
}  // namespace furlong
