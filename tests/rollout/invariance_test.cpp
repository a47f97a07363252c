// What a request gets does not depend on how it is served: drafts, neighbours, pages, prefill pieces, threads.
#include "rollout/fixture.h"

namespace furlong {
namespace {

constexpr SampleParams kinds[] = {{.temperature = 0},
                                  {.temperature = 1},
                                  {.temperature = 0.7, .top_k = 5},
                                  {.temperature = 1.3, .top_p = 0.6},
                                  {.temperature = 1, .top_k = 40, .top_p = 0.9}};

std::vector<Request> many_requests(int64_t count) {
  Numbers numbers(11);
  std::vector<Request> requests;
  for (int64_t i = 0; i < count; i++) {
    requests.push_back({.prompt = random_tokens(numbers, numbers.between(1, 150), 512),
                        .samples = numbers.between(1, 4),
                        .params = kinds[i % 5],
                        .max_new_tokens = numbers.between(1, 12),
                        .stop_ids = {7, 300, 301, 302, 303, 304},
                        .seed = 3,
                        .group_index = 1000 + i});
  }
  return requests;
}

TEST(Invariance, EveryWayOfServing256PromptsGivesTheSameBits) {
  const TestModel& m = tiny_model();
  const auto requests = many_requests(256);
  const EngineOptions plain{.max_running = 256, .max_tokens = 162};
  const auto expected = generate(m, plain, requests);
  size_t wanted = 0, stopped = 0;
  for (const auto& r : requests) wanted += static_cast<size_t>(r.samples);
  ASSERT_EQ(expected.size(), wanted);
  for (const auto& c : expected) stopped += c.reason == FinishReason::stop;
  EXPECT_GT(stopped, 0u);
  EXPECT_LT(stopped, wanted);

  struct Case {
    int64_t drafts, running, page, budget;
    int threads;
  };
  for (const Case& how :
       {Case{3, 256, 32, 2048, 2}, Case{1, 7, 8, 64, 1}, Case{2, 64, 8, 512, 1}, Case{0, 7, 32, 128, 1}}) {
    const EngineOptions options{.max_running = how.running,
                                .drafts = how.drafts,
                                .page = how.page,
                                .max_tokens = 162,
                                .prefill_budget = how.budget};
    expect_same(generate(m, options, requests, how.threads), expected,
                fmt::format("drafts {}, running {}, page {}, prefill budget {}, threads {}", how.drafts, how.running,
                            how.page, how.budget, how.threads));
  }
}

TEST(Invariance, OneAfterTheOther) {
  const TestModel& m = tiny_model();
  const auto requests = many_requests(48);
  const auto expected = generate(m, {.max_running = 256, .max_tokens = 162}, requests);
  for (const int64_t drafts : {0, 3}) {
    const EngineOptions options{.max_running = 1, .drafts = drafts, .page = 8, .max_tokens = 162};
    expect_same(generate(m, options, requests), expected, fmt::format("one at a time, drafts {}", drafts));
  }
}

TEST(Invariance, GreedyDraftsChangeNoToken) {
  const TestModel& m = tiny_model();
  const auto requests = many_requests(24);
  const EngineOptions plain{.max_running = 64, .max_tokens = 162};
  EngineOptions greedy = plain;
  greedy.drafts = 3;
  greedy.greedy_drafts = true;
  expect_same(generate(m, greedy, requests), generate(m, plain, requests), "greedy drafts");
}

TEST(Invariance, Bf16) {
  const TestModel& m = tiny_model(DType::bf16);
  const auto requests = many_requests(32);
  const auto expected = generate(m, {.max_running = 64, .max_tokens = 162}, requests);
  const EngineOptions drafted{.max_running = 7, .drafts = 3, .page = 8, .max_tokens = 162, .prefill_budget = 64};
  expect_same(generate(m, drafted, requests, 2), expected, "bf16 with drafts");
}

// Prompts that end at, just before and just behind the edges of chunks and pages; responses that cross the next edge.
TEST(Invariance, LengthsAtTheEdges) {
  const TestModel& m = tiny_model();
  Numbers numbers(12);
  std::vector<Request> requests;
  for (const int64_t length : {1, 2, 31, 32, 33, 60, 61, 62, 63, 64, 65, 66, 127, 128, 129}) {
    requests.push_back({.prompt = random_tokens(numbers, length, 512),
                        .samples = 2,
                        .params = {.temperature = 1},
                        .max_new_tokens = 70,
                        .seed = 4,
                        .group_index = length});
  }
  const auto expected = generate(m, {.max_running = 64, .max_tokens = 200}, requests);
  for (const auto& c : expected) ASSERT_EQ(c.tokens.size(), 70u);
  for (const int64_t drafts : {1, 2, 3}) {
    const EngineOptions options{
        .max_running = 9, .drafts = drafts, .page = 16, .max_tokens = 200, .prefill_budget = 64};
    expect_same(generate(m, options, requests), expected, fmt::format("drafts {}", drafts));
  }
}

TEST(Invariance, AWarmEngineRepeatsItself) {
  const TestModel& m = tiny_model();
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, {.max_running = 16, .drafts = 2, .max_tokens = 162}, threads);
  const auto requests = many_requests(20);
  const auto first = engine.generate(requests);
  engine.generate(many_requests(5));
  expect_same(engine.generate(requests), first, "the same engine again");
}

TEST(Invariance, SamplesAndGroupsHaveTheirOwnDraws) {
  const TestModel m = toy_model();
  Request r{.prompt = {1, 2, 3}, .samples = 8, .params = {.temperature = 1}, .max_new_tokens = 24, .seed = 1};
  const auto done = generate(m, {.max_running = 8, .max_tokens = 32}, {r});
  for (size_t i = 0; i < done.size(); i++) {
    for (size_t j = 0; j < i; j++) EXPECT_NE(done[i].tokens, done[j].tokens) << i << " and " << j;
  }
  Request other = r;
  other.group_index = 1;
  Request reseeded = r;
  reseeded.seed = 2;
  for (const auto& changed : {other, reseeded}) {
    EXPECT_NE(generate(m, {.max_running = 8, .max_tokens = 32}, {changed})[0].tokens, done[0].tokens);
  }
}

TEST(Ends, NewTokensAreCounted) {
  const TestModel m = foreseen_model();
  for (const int64_t drafts : {0, 3}) {
    std::vector<Request> requests;
    for (int64_t n = 1; n <= 9; n++) {
      requests.push_back({.prompt = {3}, .params = {.temperature = 1}, .max_new_tokens = n, .group_index = n});
    }
    const auto done = generate(m, {.max_running = 4, .drafts = drafts, .max_tokens = 16}, requests);
    ASSERT_EQ(done.size(), 9u);
    for (size_t i = 0; i < 9; i++) {
      EXPECT_EQ(done[i].tokens.size(), i + 1) << "drafts " << drafts;
      EXPECT_EQ(done[i].reason, FinishReason::length);
    }
  }
}

TEST(Ends, AllDraftsOfAForeseenModelAreAccepted) {
  const TestModel m = foreseen_model();
  for (const bool greedy : {false, true}) {
    const SampleParams params{.temperature = greedy ? 0.0 : 1.0};
    const Request r{.prompt = {1, 2}, .samples = 16, .params = params, .max_new_tokens = 41};
    const auto done = generate(m, {.max_running = 8, .drafts = 3, .max_tokens = 64}, {r});
    for (const auto& c : done) {
      // One token from the prompt, then 4 a verification.
      EXPECT_EQ(c.verify_steps, 10);
      EXPECT_EQ(c.drafted, 30);
      EXPECT_EQ(c.accepted, 30);
      EXPECT_DOUBLE_EQ(c.accept_length(), 4);
    }
  }
}

// Every draft is accepted, so that a stop id stands at each place of an accepted run in turn.
TEST(Ends, AStopIdInsideAnAcceptedRun) {
  const TestModel m = foreseen_model();
  const Request whole{.prompt = {1, 2}, .samples = 32, .params = {.temperature = 1}, .max_new_tokens = 40};
  const auto expected = generate(m, {.max_running = 32, .max_tokens = 64}, {whole});
  std::vector<size_t> places(4, 0);
  for (int32_t stop = 0; stop < 8; stop++) {
    Request r = whole;
    r.stop_ids = {stop};
    const auto plain = generate(m, {.max_running = 32, .max_tokens = 64}, {r});
    const auto drafted = generate(m, {.max_running = 5, .drafts = 3, .max_tokens = 64}, {r});
    expect_same(drafted, plain, fmt::format("stop id {}", stop));
    for (size_t i = 0; i < drafted.size(); i++) {
      const auto& tokens = expected[i].tokens;
      const auto at = static_cast<size_t>(std::find(tokens.begin(), tokens.end(), stop) - tokens.begin());
      const bool stopped = at < tokens.size();
      EXPECT_EQ(drafted[i].tokens,
                std::vector<int32_t>(tokens.begin(), tokens.begin() + static_cast<int64_t>(stopped ? at + 1 : 40)));
      EXPECT_EQ(drafted[i].reason, stopped ? FinishReason::stop : FinishReason::length);
      if (stopped && at > 0) places[(at - 1) % 4]++;
    }
  }
  for (const size_t count : places) EXPECT_GT(count, 0u);
}

// A rule over the response so far ends it in the middle of an accepted run, too.
TEST(Ends, AStopRuleInsideAnAcceptedRun) {
  const TestModel m = foreseen_model();
  Request r{.prompt = {1, 2}, .samples = 64, .params = {.temperature = 1}, .max_new_tokens = 40};
  r.stop_when = [](std::span<const int32_t> tokens) {
    return tokens.size() >= 2 && tokens.back() - tokens[tokens.size() - 2] == 4;
  };
  const auto plain = generate(m, {.max_running = 32, .max_tokens = 64}, {r});
  expect_same(generate(m, {.max_running = 5, .drafts = 3, .max_tokens = 64}, {r}), plain, "a stop rule");
  std::vector<size_t> places(4, 0);
  size_t unstopped = 0;
  for (const auto& c : plain) {
    bool holds = false;
    for (size_t n = 1; n <= c.tokens.size(); n++) {
      if (!r.stop_when({c.tokens.data(), n})) continue;
      EXPECT_EQ(n, c.tokens.size()) << "drawn past the end";
      holds = true;
    }
    EXPECT_EQ(c.reason, holds ? FinishReason::stop : FinishReason::length);
    (holds ? places[(c.tokens.size() - 2) % 4] : unstopped)++;
  }
  for (const size_t count : places) EXPECT_GT(count, 0u);
  EXPECT_GT(unstopped, 0u);
}

TEST(Ends, NothingToDo) {
  EXPECT_TRUE(generate(toy_model(), {.max_running = 4, .drafts = 1, .max_tokens = 64}, {}).empty());
}

}  // namespace
}  // namespace furlong
