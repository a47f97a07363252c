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
  std::vector<int> tried;
  for (int step = 0; step < 5000; step++) {
    if (policy.pays(8)) tried.push_back(step);
  }
  std::vector<int> expected;
  for (const int first : {128, 388, 904, 1932, 2960, 3988}) {
    for (int i = 0; i < 4; i++) expected.push_back(first + i);
  }
  EXPECT_EQ(tried, expected);
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

// Where a step of the last request had its root, and whether the one draft behind it was accepted; once the last
// request runs alone if drafts are left out beside others.
std::map<int64_t, bool> accepted_drafts(const TestModel& m, const EngineOptions& options, bool keeps_prefixes) {
  ThreadPool threads(1);
  EngineOptions with = options;
  with.keep_prefixes = keeps_prefixes;
  Engine engine(m.config, m.weights, with, threads);
  std::map<int64_t, bool> accepted;
  int64_t tokens = 0, drafted = 0;
  for (const Request& r : some_requests(m, 7)) {
    const bool last = r.max_new_tokens == 10 + 12 * 6;
    engine.submit(r, [&, last](const Emitted& e) {
      if (!last || e.tokens.empty()) return;
      if (engine.stats().drafted > drafted) accepted[tokens] = e.tokens.size() > 1;
      tokens += std::ssize(e.tokens);
    });
  }
  while (drafted = engine.stats().drafted, engine.step()) {
  }
  EXPECT_EQ(tokens, 82);
  return accepted;
}

// Rows that were set aside while drafts were left out leave the head's memory as if it had read them one by one.
TEST(DraftPolicy, TheHeadReadsLaterWhatItLeftOut) {
  TestModel m = toy_model();
  // What the head's layer remembers decides what it proposes.
  const Tensor values = m.weights.mtp.front().layer.attention.v;
  for (int64_t i = 0; i < values.numel(); i++) values.as<float>()[i] *= 100;
  EngineOptions options{.max_running = 8, .drafts = 1, .page = 16, .max_tokens = 200, .prefill_budget = 64};
  const auto always = accepted_drafts(m, options, false);
  EXPECT_GT(std::count_if(always.begin(), always.end(), [](const auto& a) { return a.second; }), 8);
  options.step_costs = {.sequences = {1, 2}, .plain = {1, 1}, .drafted = {1, 9}};
  for (const int64_t rows : {64, 128, 2048}) {  // until they are read: a few steps, more, all
    for (const bool keeps_prefixes : {false, true}) {
      options.prefill_budget = rows;
      const auto tail = accepted_drafts(m, options, keeps_prefixes);
      EXPECT_LT(tail.size(), 20);
      int64_t both = 0;
      for (const auto& [root, accepted] : tail) {
        const auto same = always.find(root);
        if (same == always.end()) continue;
        EXPECT_EQ(accepted, same->second) << "root " << root << ", " << rows << " rows set aside";
        both++;
      }
      EXPECT_GT(both, 5);
    }
  }
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
