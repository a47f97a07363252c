// Sequences that begin alike run their common rows once, and nobody's bits change.
#include "rollout/fixture.h"

namespace furlong {
namespace {

constexpr int64_t tiny_vocab = 512;

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Prompts of a tree: all begin with one text, groups of them go on alike; lengths around the edges of chunks.
std::vector<Request> family(uint64_t seed, int64_t trunk, int64_t count) {
  Numbers numbers(seed);
  const auto root = random_tokens(numbers, trunk, tiny_vocab);
  std::vector<std::vector<int32_t>> branches;
  for (int64_t i = 0; i < 3; i++)
    branches.push_back(joined(root, random_tokens(numbers, numbers.between(0, 130), tiny_vocab)));
  std::vector<Request> requests;
  for (int64_t i = 0; i < count; i++) {
    requests.push_back({.prompt = joined(branches[static_cast<size_t>(numbers.between(0, 2))],
                                         random_tokens(numbers, numbers.between(1, 80), tiny_vocab)),
                        .samples = numbers.between(1, 2),
                        .params = {.temperature = i % 2 == 0 ? 1.0 : 0.0},
                        .max_new_tokens = numbers.between(1, 40),
                        .stop_ids = {7, 300, 301},
                        .seed = seed,
                        .group_index = i});
  }
  return requests;
}

// The same drafts, too: the head's rows are those of a sequence that has run all of its own.
void expect_same_drafts(const std::vector<Completion>& a, const std::vector<Completion>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); i++) {
    EXPECT_EQ(a[i].drafted, b[i].drafted);
    EXPECT_EQ(a[i].accepted, b[i].accepted) << "request " << a[i].request << " sample " << a[i].sample;
  }
}

class Prefixes : public testing::TestWithParam<DType> {};

TEST_P(Prefixes, SharedRowsChangeNoBit) {
  const TestModel& m = tiny_model(GetParam());
  ThreadPool threads(1);
  for (const int64_t trunk : {63, 64, 65, 130, 200}) {
    const auto requests = family(static_cast<uint64_t>(trunk), trunk, 10);
    for (const int64_t drafts : {0, 2}) {
      EngineOptions options{.max_running = 24,
                            .drafts = drafts,
                            .page = 16,
                            .max_tokens = 460,
                            .prefill_budget = 128,
                            .share_prefixes = false};
      const auto expected = generate(m, options, requests);
      options.share_prefixes = true;
      Engine engine(m.config, m.weights, options, threads);
      const auto found = engine.generate(requests);
      expect_same(found, expected, fmt::format("a trunk of {}, {} drafts", trunk, drafts));
      expect_same_drafts(found, expected);
      // All but the first start behind the trunk's last chunk.
      EXPECT_GE(engine.stats().shared_rows, 9 * (trunk / delta_chunk * delta_chunk));
      EXPECT_EQ(engine.memory().free_pages(), engine.memory().options().pages - 1);
      EXPECT_EQ(engine.memory().free_slots(), engine.memory().options().slots - 1);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Prefixes, testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return name_of(info.param); });

TEST(Prefixes, EqualPromptsOfSeveralRequests) {
  const TestModel& m = tiny_model();
  Numbers numbers(3);
  ThreadPool threads(1);
  for (const int64_t length : {1, 64, 65, 128, 129, 190}) {
    std::vector<Request> requests(
        5, {.prompt = random_tokens(numbers, length, tiny_vocab), .params = {.temperature = 0}, .max_new_tokens = 9});
    for (int64_t i = 0; i < 5; i++) requests[static_cast<size_t>(i)].group_index = i;
    Engine engine(m.config, m.weights, {.max_running = 8, .drafts = 1, .max_tokens = 200}, threads);
    const auto found = engine.generate(requests);
    EXPECT_EQ(engine.stats().shared_rows, 4 * ((length - 1) / delta_chunk * delta_chunk));
    for (const auto& c : found) EXPECT_EQ(c.tokens, found[0].tokens);
  }
}

// A conversation: each turn's prompt is the last one's, the response and something new.
TEST(Prefixes, KeptForTheNextTurn) {
  const TestModel& m = tiny_model();
  ThreadPool threads(1);
  for (const int64_t drafts : {0, 3}) {
    EngineOptions options{.max_running = 4, .drafts = drafts, .page = 16, .max_tokens = 900};
    Engine fresh(m.config, m.weights, options, threads);
    options.keep_prefixes = true;
    Engine engine(m.config, m.weights, options, threads);
    Numbers numbers(9);
    Request r{.prompt = random_tokens(numbers, 100, tiny_vocab), .params = {.temperature = 1}, .max_new_tokens = 90};
    for (int turn = 0; turn < 4; turn++) {
      engine.reset_stats();
      const auto found = engine.generate({&r, 1}), expected = fresh.generate({&r, 1});
      expect_same(found, expected, fmt::format("turn {}", turn));
      expect_same_drafts(found, expected);
      if (turn > 0) {
        // Of what the last turn left, less than two chunks are run again: its end and the new words.
        EXPECT_LT(engine.stats().prefill_rows, 2 * delta_chunk + 30);
      }
      r.prompt = joined(joined(r.prompt, found[0].tokens), random_tokens(numbers, 30, tiny_vocab));
    }
    EXPECT_LT(engine.memory().free_slots(), engine.memory().options().slots - 1);
    engine.set_weights_version(0);
    EXPECT_LT(engine.memory().free_slots(), engine.memory().options().slots - 1);
    engine.set_weights_version(1);
    EXPECT_EQ(engine.memory().free_pages(), engine.memory().options().pages - 1);
    EXPECT_EQ(engine.memory().free_slots(), engine.memory().options().slots - 1);
  }
}

TEST(Prefixes, NewWeightsForgetTheOldOnesRows) {
  TestModel m = toy_model();
  ThreadPool threads(1);
  Numbers numbers(4);
  const Request r{.prompt = random_tokens(numbers, 150, 8), .params = {.temperature = 1}, .max_new_tokens = 30};
  Engine engine(m.config, m.weights, {.max_running = 4, .max_tokens = 200, .keep_prefixes = true}, threads);
  const auto before = engine.generate({&r, 1});
  init_weights(m.weights, m.config, 6, 0.3);
  engine.set_weights_version(1);
  const auto after = engine.generate({&r, 1});
  EXPECT_NE(after[0].log_probs, before[0].log_probs);
  expect_same(after, generate(m, {.max_running = 4, .max_tokens = 200}, {r}), "new weights");
}

// Without prefixes that are kept nobody has to say so.
TEST(Prefixes, WeightsMayChangeBetweenCalls) {
  TestModel m = toy_model();
  ThreadPool threads(1);
  Numbers numbers(4);
  const Request r{.prompt = random_tokens(numbers, 150, 8), .params = {.temperature = 1}, .max_new_tokens = 30};
  Engine engine(m.config, m.weights, {.max_running = 4, .max_tokens = 200}, threads);
  const auto before = engine.generate({&r, 1});
  init_weights(m.weights, m.config, 6, 0.3);
  const auto after = engine.generate({&r, 1});
  EXPECT_NE(after[0].log_probs, before[0].log_probs);
  expect_same(after, generate(m, {.max_running = 4, .max_tokens = 200}, {r}), "new weights");
}

// What is kept gives way: in pools that hold little more than what runs, with sequences that are preempted beside it.
TEST(Prefixes, GiveWayInSmallPools) {
  const TestModel& m = tiny_model();
  ThreadPool threads(1);
  int64_t shared = 0, preempted = 0;
  for (uint64_t seed = 1; seed <= 6; seed++) {
    Numbers numbers(seed);
    const auto all = family(seed, numbers.between(60, 110), 12);
    EngineOptions options{
        .max_running = 6, .page = 16, .max_tokens = 400, .prefill_budget = 128, .share_prefixes = false};
    auto requests = all;
    for (auto& r : requests) r.max_new_tokens *= 2;
    const auto expected = generate(m, options, requests);
    options.share_prefixes = options.keep_prefixes = true;
    options.drafts = numbers.between(0, 2);
    options.margin = 0;
    options.max_pages = 24 + numbers.between(0, 20);
    options.max_slots = numbers.between(4, 10);
    Engine engine(m.config, m.weights, options, threads);
    for (int call = 0; call < 2; call++) expect_same(engine.generate(requests), expected, fmt::format("seed {}", seed));
    shared += engine.stats().shared_rows;
    preempted += engine.stats().preemptions;
    engine.set_weights_version(1);
    EXPECT_EQ(engine.memory().free_pages(), engine.memory().options().pages - 1);
    EXPECT_EQ(engine.memory().free_slots(), engine.memory().options().slots - 1);
  }
  EXPECT_GT(shared, 1000);
  EXPECT_GT(preempted, 5);
}

}  // namespace
}  // namespace furlong
