// Drafts are left out where they do not pay, and nobody's tokens change.
#include "rollout/fixture.h"

namespace furlong {
namespace {

TEST(DraftPolicy, RatiosLieBetweenWhatWasMeasured) {
  const StepCosts costs{.sequences = {1, 5, 9}, .plain = {1, 2, 2}, .drafted = {1, 3, 5}};
  EXPECT_DOUBLE_EQ(costs.ratio(1), 1);
  EXPECT_DOUBLE_EQ(costs.ratio(3), 2.0 / 1.5);
  EXPECT_DOUBLE_EQ(costs.ratio(5), 1.5);
  EXPECT_DOUBLE_EQ(costs.ratio(7), 2);
  EXPECT_DOUBLE_EQ(costs.ratio(9), 2.5);
  EXPECT_DOUBLE_EQ(costs.ratio(100), 2.5);
}

TEST(DraftPolicy, FollowsWhatIsAccepted) {
  EXPECT_TRUE(DraftPolicy(2).pays(1000));
  DraftPolicy policy(2, {.sequences = {1, 100}, .plain = {1, 1}, .drafted = {1.1, 2.1}});
  policy.record(100000, 160000);
  policy.record(100000, 160000);
  EXPECT_NEAR(policy.accept_length(), 1.6, 0.01);
  EXPECT_TRUE(policy.pays(10));
  EXPECT_FALSE(policy.pays(90));
  for (int i = 0; i < 40; i++) policy.record(1000, 2500);
  EXPECT_TRUE(policy.pays(90));
}

TEST(DraftPolicy, TriesAgainNowAndThen) {
  DraftPolicy policy(2, {.sequences = {1}, .plain = {1}, .drafted = {4}});
  int tried = 0;
  for (int step = 0; step < 20560; step++) tried += policy.pays(8);
  EXPECT_EQ(tried, 80);
}

std::vector<Request> some_requests(const TestModel& m, int64_t count) {
  Numbers numbers(23);
  std::vector<Request> requests;
  for (int64_t i = 0; i < count; i++) {
    requests.push_back({.prompt = random_tokens(numbers, numbers.between(1, 70), m.config.vocab_size),
                        .params = {.temperature = i % 2 == 0 ? 1.0 : 0.0},
                        .max_new_tokens = 10 + 12 * i,
                        .seed = 3,
                        .group_index = i});
  }
  return requests;
}

// The last two sequences draft again, from a head whose memory has every row: all of it is accepted.
TEST(DraftPolicy, DraftsComeBackInTheTail) {
  const TestModel m = foreseen_model();
  const auto requests = some_requests(m, 7);
  EngineOptions options{.max_running = 8, .max_tokens = 200};
  const auto expected = generate(m, options, requests);
  options.drafts = 3;
  options.step_costs = {.sequences = {2, 3}, .plain = {1, 1}, .drafted = {1, 9}};
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, options, threads);
  expect_same(engine.generate(requests), expected, "drafts in the tail");
  const EngineStats& stats = engine.stats();
  EXPECT_GT(stats.drafted, 3);
  EXPECT_LT(stats.drafted, 60);
  EXPECT_EQ(stats.accepted, stats.drafted);
}

TEST(DraftPolicy, MeasuredBeforeTheFirstRequest) {
  const TestModel& m = tiny_model();
  const auto requests = some_requests(m, 9);
  EngineOptions options{.max_running = 6, .max_tokens = 200};
  const auto expected = generate(m, options, requests);
  options.drafts = 2;
  options.measure_speculation = true;
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, options, threads);
  EXPECT_FALSE(engine.draft_policy().costs().defined());
  expect_same(engine.generate(requests), expected, "measured");
  const StepCosts& costs = engine.draft_policy().costs();
  EXPECT_EQ(costs.sequences, (std::vector<int64_t>{1, 4, 6}));
  for (size_t i = 0; i < 3; i++) {
    EXPECT_GT(costs.plain[i], 0);
    EXPECT_GT(costs.drafted[i], 0);
  }
  int64_t tokens = 0;
  for (const auto& c : expected) tokens += std::ssize(c.tokens);
  EXPECT_EQ(engine.stats().emitted, tokens) << "what is measured is not counted";
  EXPECT_EQ(engine.memory().free_pages(), engine.memory().options().pages - 1);
  EXPECT_EQ(engine.memory().free_slots(), engine.memory().options().slots - 1);
}

}  // namespace
}  // namespace furlong
