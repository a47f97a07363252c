// Requests that come and go while others run.
#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>

#include "rollout/fixture.h"

namespace furlong {
namespace {

std::vector<Request> mixed_requests(int64_t count, const TestModel& m) {
  Numbers numbers(17);
  std::vector<Request> requests;
  for (int64_t i = 0; i < count; i++) {
    requests.push_back({.prompt = random_tokens(numbers, numbers.between(1, 90), m.config.vocab_size),
                        .samples = numbers.between(1, 3),
                        .params = {.temperature = i % 3 == 0 ? 0.0 : 1.0},
                        .max_new_tokens = numbers.between(1, 30),
                        .stop_ids = {7, 9, 11},
                        .seed = 3,
                        .group_index = i});
  }
  return requests;
}

// What a stream has told of one sample.
struct Heard {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
  std::vector<Completion> ends;
};
using Ears = std::map<std::pair<uint64_t, int64_t>, Heard>;

Sink listen(Ears& ears) {
  return [&ears](const Emitted& e) {
    Heard& heard = ears[{e.request, e.sample}];
    EXPECT_TRUE(heard.ends.empty()) << "told after its end";
    ASSERT_EQ(e.tokens.size(), e.log_probs.size());
    heard.tokens.insert(heard.tokens.end(), e.tokens.begin(), e.tokens.end());
    heard.log_probs.insert(heard.log_probs.end(), e.log_probs.begin(), e.log_probs.end());
    if (e.finished != nullptr) heard.ends.push_back(*e.finished);
  };
}

void expect_empty(const Engine& engine) {
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.memory().free_pages(), engine.memory().options().pages - 1);
  EXPECT_EQ(engine.memory().free_slots(), engine.memory().options().slots - 1);
}

TEST(Stream, LateRequestsGetTheBitsOfTogether) {
  const TestModel& m = tiny_model();
  const auto requests = mixed_requests(20, m);
  const EngineOptions options{.max_running = 6, .drafts = 2, .page = 16, .max_tokens = 130, .prefill_budget = 64};
  const auto expected = generate(m, options, requests);
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, options, threads);
  EXPECT_FALSE(engine.step());
  Ears ears;
  for (size_t i = 0; i < requests.size(); i++) {
    EXPECT_EQ(engine.submit(requests[i], listen(ears)), i + 1);
    for (size_t s = 0; s < i % 4; s++) EXPECT_TRUE(engine.step());
  }
  while (engine.step()) {
  }
  expect_empty(engine);
  std::vector<Completion> found;
  for (auto& [key, heard] : ears) {
    ASSERT_EQ(heard.ends.size(), 1u);
    EXPECT_EQ(heard.ends[0].tokens, heard.tokens);
    EXPECT_EQ(heard.ends[0].log_probs, heard.log_probs);
    heard.ends[0].request = key.first - 1;
    found.push_back(std::move(heard.ends[0]));
  }
  expect_same(found, expected, "one after the other");
}

TEST(Stream, TokensComeAsTheyAreDrawn) {
  const TestModel m = foreseen_model();
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, {.max_running = 2, .drafts = 3, .max_tokens = 40}, threads);
  std::vector<size_t> sizes;
  engine.submit({.prompt = {1, 2}, .max_new_tokens = 10}, [&](const Emitted& e) { sizes.push_back(e.tokens.size()); });
  while (engine.step()) {
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{1, 4, 4, 1}));
}

// At every moment of a request's life, from its wait to its last token.
TEST(Stream, CancelledWithinOneStep) {
  const TestModel& m = tiny_model();
  const auto requests = mixed_requests(6, m);
  const EngineOptions options{.max_running = 4, .drafts = 2, .page = 16, .max_tokens = 130, .prefill_budget = 64};
  const auto expected = generate(m, options, requests);
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, options, threads);
  size_t aborted = 0, partial = 0, rest = 0;
  for (int64_t moment = 0; moment < 30; moment += 2) {
    for (uint64_t victim = 0; victim < requests.size(); victim++) {
      Ears ears;
      std::vector<uint64_t> ids;
      for (const auto& r : requests) ids.push_back(engine.submit(r, listen(ears)));
      for (int64_t s = 0; s < moment; s++) engine.step();
      engine.cancel(ids[victim]);
      engine.step();
      for (int64_t s = 0; s < requests[victim].samples; s++) {
        ASSERT_EQ((ears[{ids[victim], s}].ends.size()), 1u) << "alive a step after its end";
      }
      while (engine.step()) {
      }
      expect_empty(engine);
      size_t at = 0;
      for (const auto& [key, heard] : ears) {
        ASSERT_EQ(heard.ends.size(), 1u);
        const Completion& c = heard.ends[0];
        const Completion& whole = expected[at++];
        EXPECT_EQ(c.tokens, heard.tokens);
        if (c.reason != FinishReason::abort) {
          EXPECT_EQ(c.tokens, whole.tokens);
          EXPECT_EQ(c.log_probs, whole.log_probs);
          rest++;
          continue;
        }
        EXPECT_EQ(key.first, ids[victim]);
        ASSERT_LT(c.tokens.size(), whole.tokens.size());
        EXPECT_TRUE(std::equal(c.tokens.begin(), c.tokens.end(), whole.tokens.begin()));
        aborted++;
        partial += !c.tokens.empty();
      }
      EXPECT_EQ(at, expected.size());
    }
  }
  EXPECT_GT(partial, 30u);
  EXPECT_GT(aborted, partial + 20);
  EXPECT_GT(rest, aborted);
  engine.cancel(123456);
  EXPECT_FALSE(engine.step());
}

TEST(Stream, ASinkMaySubmitAndCancel) {
  const TestModel& m = tiny_model();
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, {.max_running = 4, .max_tokens = 60}, threads);
  const Request r{.prompt = {5, 6, 7}, .samples = 2, .params = {.temperature = 1}, .max_new_tokens = 20, .seed = 1};
  Ears ears;
  bool more = true;
  engine.submit(r, [&](const Emitted& e) {
    listen(ears)(e);
    if (ears[{e.request, e.sample}].tokens.size() == 5) engine.cancel(e.request);
    if (std::exchange(more, false)) engine.submit(r, listen(ears));
  });
  while (engine.step()) {
  }
  expect_empty(engine);
  ASSERT_EQ(ears.size(), 4u);
  for (const auto& [key, heard] : ears) {
    ASSERT_EQ(heard.ends.size(), 1u);
    EXPECT_EQ(heard.tokens.size(), key.first == 1 ? 5u : 20u);
    EXPECT_EQ(heard.ends[0].reason, key.first == 1 ? FinishReason::abort : FinishReason::length);
  }
}

TEST(Stream, WhatNeverFitsIsRefusedAndNothingElseSuffers) {
  const TestModel m = toy_model();
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, {.max_running = 2, .max_tokens = 64}, threads);
  Ears ears;
  const auto first = engine.submit({.prompt = {1}, .max_new_tokens = 8}, listen(ears));
  engine.step();
  EXPECT_THROW(engine.submit({.prompt = {1}, .max_new_tokens = 1 << 20}, listen(ears)), Error);
  while (engine.step()) {
  }
  ASSERT_EQ(ears.size(), 1u);
  EXPECT_EQ((ears[{first, 0}].tokens.size()), 8u);
  expect_empty(engine);
}

TEST(Stream, AFailingRuleLeavesAnEngineThatWorks) {
  const TestModel& m = tiny_model();
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, {.max_running = 4, .drafts = 2, .max_tokens = 60}, threads);
  std::vector<Request> requests(3, {.prompt = {5, 6, 7}, .samples = 2, .max_new_tokens = 20});
  const auto expected = engine.generate(requests);
  auto broken = requests;
  broken[1].stop_when = [](std::span<const int32_t> tokens) -> bool {
    return tokens.size() < 9 ? false : throw std::runtime_error("no rule");
  };
  EXPECT_THROW(engine.generate(broken), std::runtime_error);
  expect_empty(engine);
  expect_same(engine.generate(requests), expected, "after a failure");
}

TEST(Stream, AlternativesStandBesideTheDraws) {
  const TestModel& m = tiny_model();
  for (const double temperature : {0.0, 1.0, 0.5}) {
    const Request plain{.prompt = {5, 6, 7}, .params = {.temperature = temperature}, .max_new_tokens = 12, .seed = 2};
    Request r = plain;
    r.alternatives = 20;
    Request all = plain;
    all.alternatives = m.config.vocab_size;
    const EngineOptions options{.max_running = 4, .drafts = 2, .max_tokens = 60};
    const auto done = generate(m, options, {plain, r, all});
    EXPECT_TRUE(done[0].alternatives.empty());
    for (const size_t i : {1u, 2u}) {
      EXPECT_EQ(done[i].tokens, done[0].tokens);
      EXPECT_EQ(done[i].log_probs, done[0].log_probs);
      ASSERT_EQ(done[i].alternatives.size(), done[0].tokens.size());
    }
    for (size_t t = 0; t < done[0].tokens.size(); t++) {
      const auto& few = done[1].alternatives[t];
      const auto& every = done[2].alternatives[t];
      ASSERT_EQ(few.size(), 20u);
      ASSERT_EQ(static_cast<int64_t>(every.size()), m.config.vocab_size);
      double sum = 0;
      for (size_t i = 0; i < every.size(); i++) {
        sum += std::exp(static_cast<double>(every[i].log_prob));
        if (i < 20) {
          EXPECT_EQ(few[i].token, every[i].token);
        }
        EXPECT_GE(every[i == 0 ? 0 : i - 1].log_prob, every[i].log_prob);
        if (every[i].token == done[0].tokens[t]) {
          EXPECT_EQ(every[i].log_prob, done[0].log_probs[t]);
        }
      }
      EXPECT_NEAR(sum, 1, 1e-4);
      EXPECT_TRUE(temperature > 0 || few[0].token == done[0].tokens[t]);
    }
  }
}

// Asleep at every moment, while others write over the memory.
TEST(Stream, SleepLosesNothing) {
  const TestModel& m = tiny_model();
  const auto requests = mixed_requests(6, m);
  const EngineOptions options{.max_running = 4, .drafts = 2, .page = 16, .max_tokens = 130, .prefill_budget = 64};
  const auto expected = generate(m, options, requests);
  ThreadPool threads(1);
  const Share block = Share::block(engine_needs(m.config, m.weights, options, threads).block, Device::cpu);
  const Share others = block.part(0, block.bytes());
  Engine engine(m.config, m.weights, options, threads, block);
  for (const int every : {1, 3, 7}) {
    Ears ears;
    std::vector<uint64_t> ids;
    for (const auto& r : requests) ids.push_back(engine.submit(r, listen(ears)));
    int64_t slept = 0;
    for (int step = 1; engine.step(); step++) {
      ASSERT_LT(step, 5000) << "nothing is ever done between two sleeps";
      // A sequence must be able to get somewhere before the next one.
      if (step % (every * 4) != 0 || engine.idle()) continue;
      engine.sleep();
      EXPECT_EQ(engine.memory().free_pages(), engine.memory().options().pages - 1);
      EXPECT_EQ(engine.memory().free_slots(), engine.memory().options().slots - 1);
      others.enter();
      std::memset(others.data(), 0xff, others.bytes());
      slept++;
    }
    EXPECT_GT(slept, 1);
    std::vector<Completion> found;
    for (auto& [key, heard] : ears) {
      ASSERT_EQ(heard.ends.size(), 1u);
      EXPECT_EQ(heard.ends[0].tokens, heard.tokens);
      heard.ends[0].request = key.first - ids[0];
      found.push_back(std::move(heard.ends[0]));
    }
    expect_same(found, expected, fmt::format("asleep every {} steps", every));
  }
}

TEST(Stream, WeightsMayChangeInSleep) {
  TestModel m = toy_model();
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, {.max_running = 2, .drafts = 1, .max_tokens = 100}, threads);
  const Request r{.prompt = {1, 2, 3}, .params = {.temperature = 1}, .max_new_tokens = 60, .seed = 1};
  Ears ears;
  const uint64_t id = engine.submit(r, listen(ears));
  while ((ears[{id, 0}].tokens.size()) < 20) engine.step();
  const Heard before = ears[{id, 0}];
  engine.sleep();
  init_weights(m.weights, m.config, 6, 0.3);
  engine.set_weights_version(1);
  while (engine.step()) {
  }
  const Completion& c = ears[{id, 0}].ends.at(0);
  ASSERT_EQ(c.tokens.size(), 60u);
  const auto n = static_cast<int64_t>(before.tokens.size());
  EXPECT_TRUE(std::equal(before.log_probs.begin(), before.log_probs.end(), c.log_probs.begin()));
  // The new weights' own draws behind what the old ones wrote.
  Request rest = r;
  rest.prompt.insert(rest.prompt.end(), c.tokens.begin(), c.tokens.begin() + n);
  rest.max_new_tokens = 60 - n;
  const auto expected = generate(m, {.max_running = 2, .max_tokens = 100}, {rest});
  EXPECT_EQ(std::vector<int32_t>(c.tokens.begin() + n, c.tokens.end()), expected[0].tokens);
  EXPECT_EQ(std::vector<float>(c.log_probs.begin() + n, c.log_probs.end()), expected[0].log_probs);
}

TEST(Stream, LongestFirst) {
  const TestModel& m = tiny_model();
  std::vector<Request> requests;
  for (int64_t i = 0; i < 6; i++) {
    requests.push_back({.prompt = {5, 6, 7}, .max_new_tokens = 4 + 8 * i, .seed = 1, .group_index = i});
  }
  const EngineOptions options{.max_running = 2, .max_tokens = 80};
  ThreadPool threads(1);
  Engine engine(m.config, m.weights, options, threads);
  const auto expected = engine.generate(requests);
  const int64_t in_order = engine.stats().steps;
  engine.reset_stats();
  for (auto& r : requests) r.expected_new = r.max_new_tokens;
  expect_same(engine.generate(requests), expected, "longest first");
  // The last one does not run alone for long.
  EXPECT_LT(engine.stats().steps, in_order);
}

}  // namespace
}  // namespace furlong
