// A few of the random schedules; tests/rollout/schedules runs as many as asked for.
#include "rollout/schedules.h"

namespace furlong {
namespace {

TEST(Schedules, EndInTheBitsOfSequencesAlone) {
  Schedules schedules;
  ScheduleCounts counts;
  for (uint64_t seed = 1; seed <= 300; seed++) ASSERT_NO_THROW(schedules.play(seed, counts));
  EXPECT_GT(counts.tokens, 10000) << text_of(counts);
  EXPECT_GT(counts.packed_tokens, 500) << text_of(counts);
  EXPECT_GT(counts.accepted, 1000) << text_of(counts);
  EXPECT_GT(counts.preemptions, 20) << text_of(counts);
  EXPECT_GT(counts.shared_rows, 1000) << text_of(counts);
  EXPECT_GT(counts.aborted, 50) << text_of(counts);
  EXPECT_GT(counts.refused, 10) << text_of(counts);
}

}  // namespace
}  // namespace furlong
