// The limits that `furlong bench` prints, against figures worked out by hand.
#include <gtest/gtest.h>

#include "furlong/presets.h"
#include "plan/ceilings.h"

namespace furlong {
namespace {

ModelConfig benched(const char* preset) {
  ModelConfig c = make_preset(preset, std::nullopt).config;
  c.mtp_num_layers = 0;
  return c;
}

// Per token of mini: 4.1 M active parameters (three delta-net layers of 656,896 + 2 x 1,024 for the gates, one
// attention layer of 458,752, four of 53,504 + 4 x 49,152 + 512, the head), the delta rule's 12 heads, attention.
constexpr double delta_layer = 1024 * 256 + 512 * 256 + 2 * 4 * 256 + 512 * 256 + 1024 * 4;
constexpr double attention_layer = 256 * (1024 + 256) + 512 * 256;
constexpr double experts = 256 * 16 + 5 * 3 * 256 * 64 + 256 + 512;
constexpr double head = 4096 * 256;
constexpr double active = 3 * delta_layer + attention_layer + 4 * experts + head;
constexpr double delta_rule = 12 * (6 * 128 * 128 + 320 * 256 + 2 * 64 * 64);

TEST(BenchLimits, AreThoseOfTheShapeWorkedOutByHand) {
  const Ceilings ceilings{.fp32 = 200e9, .bf16 = 400e9, .memory = 1e15};
  const CpuLimits fp32(benched("mini"), DType::f32, ceilings, 1e15), bf16(benched("mini"), DType::bf16, ceilings, 1e15);
  EXPECT_NEAR(fp32.active_parameters(), active, 0.01 * active);
  const double forward = 2 * active + delta_rule, core = 4 * 512 * 256.0;
  EXPECT_NEAR(fp32.train_step(4096, 512), 4096 * (3 * forward + 3.5 * core) / 200e9, 0.01 * fp32.train_step(4096, 512));
  EXPECT_NEAR(bf16.train_step(4096, 512), fp32.train_step(4096, 512) / 2, 1e-6);
  EXPECT_NEAR(fp32.prefill(1024), (1024 * (forward - 2 * head + 4 * 512 * 512.0) + 2 * head) / 200e9,
              0.01 * fp32.prefill(1024));
  // A decoded token's delta rule stays in fp32.
  const double one = 2 * active + 4 * 512 * 100.0, recurrent = 12 * 7 * 128 * 128.0;
  const double step = bf16.decode_step(32, 100, 1e15);
  EXPECT_NEAR(step, 32 * (one / 400e9 + recurrent / 200e9), 0.01 * step);
}

TEST(BenchLimits, FollowTheRateOfReadingWhereThatIsSlower) {
  const Ceilings ceilings{.fp32 = 200e9, .bf16 = 0, .memory = 50e9};
  const CpuLimits limits(benched("mini"), DType::bf16, ceilings, 1e9);
  // One token reads every active weight (of the experts those it goes to) and its sequence's memory: 12 states of 64
  // KiB, of which it writes a 64th, 3 windows of 3 x 1,024, 100 x 2 x 128 of keys and values, and of the 3 layers'
  // chunks 31.5 rows of 2 x 128 keys, 4 x 128 corrections and 4 decays.
  const double sequence =
      12 * 65536 * (1 + 1 / 64.0) + 2 * (3 * 3 * 1024 + 100 * 2 * 128) + 3 * 31.5 * ((2 * 128 + 4 * 128) * 4 + 4 * 8);
  const double bytes = 2 * active + sequence;
  EXPECT_NEAR(limits.decode_bytes(1, 100), bytes, 0.01 * bytes);
  EXPECT_NEAR(limits.decode_step(1, 100, 1e9), bytes / 1e9, 0.01 * bytes / 1e9);
  const double weights = 2 * (limits.parameters() - head);  // one embedding row is read, not all
  EXPECT_NEAR(limits.decode_block(32, 100), weights + 32 * sequence, 0.001 * weights);
  // Without dot products of bf16, numbers are widened: the ceiling is that of fp32.
  const CpuLimits same(benched("mini"), DType::f32, ceilings, 1e9);
  EXPECT_DOUBLE_EQ(limits.train_step(64, 64), same.train_step(64, 64));
  const double updates = limits.parameters() * 30 / 50e9;
  EXPECT_GT(limits.train_step(1, 1), updates);
}

TEST(BenchLimits, CeilingsAreMeasured) {
  ThreadPool threads(1);
  const Ceilings c = measure_ceilings(threads, BenchClock::processor);
  EXPECT_GT(c.fp32, 1e8);
  EXPECT_LT(c.fp32, 1e13);
  EXPECT_GT(c.memory, 1e7);
  EXPECT_GT(read_rate(threads, BenchClock::processor, 1 << 20), c.memory / 4);
}

}  // namespace
}  // namespace furlong
