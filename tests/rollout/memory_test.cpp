// Pages and slots: who holds what, and that nothing is lost, shared wrongly or waited for without end.
#include <cstring>
#include <map>

#include "rollout/fixture.h"

namespace furlong {
namespace {

constexpr int64_t page = 8;

MemoryOptions pool(int64_t pages, int64_t slots) {
  return {.page = page, .pages = pages, .slots = slots, .draft_rows = 4, .mtp = true};
}

TEST(Memory, SizesAreTheTensors) {
  const TestModel& m = tiny_model();
  const MemoryOptions o = pool(10, 5);
  const auto bytes = RolloutMemory::bytes_of(m.config, DType::f32, o);
  EXPECT_EQ(bytes.pages, 10 * RolloutMemory::page_bytes(m.config, DType::f32, o));
  RolloutMemory memory(m.config, DType::f32, o);
  const auto& view = memory.view({}, {});
  size_t pages = view.mtp.k.bytes() + view.mtp.v.bytes(), slots = 0;
  for (const auto& p : view.attention) pages += p.k.bytes() + p.v.bytes();
  for (const auto& d : view.delta) {
    for (const Tensor& t : {d.state, d.ring_k, d.ring_u, d.ring_g, d.window}) slots += t.bytes();
  }
  EXPECT_EQ(bytes.pages, pages);
  EXPECT_EQ(bytes.slots, slots);
  EXPECT_EQ(view.attention.size(), 2u);
  EXPECT_EQ(view.delta.size(), 6u);
}

TEST(Memory, AForkSharesFullPagesButNeverTheOneOfTheLastRow) {
  const TestModel m = toy_model();
  RolloutMemory memory(m.config, DType::f32, pool(100, 8));
  for (int64_t prompt = 1; prompt <= 3 * page + 1; prompt++) {
    SequenceMemory parent = memory.reserve(prompt);
    parent.length = prompt;
    const int64_t rows = prompt + 20, before = memory.free_pages();
    SequenceMemory child = memory.fork(parent, rows);
    EXPECT_EQ(before - memory.free_pages(), memory.pages_for_fork(prompt, rows));
    ASSERT_EQ(static_cast<int64_t>(child.pages.size()), memory.pages_for(rows));
    EXPECT_EQ(child.length, prompt);
    EXPECT_NE(child.slot, parent.slot);
    for (int64_t p = 0; p < prompt; p++) {
      const auto i = static_cast<size_t>(p / page);
      const bool holds_last_row = p / page == (prompt - 1) / page;
      EXPECT_EQ(child.pages[i] != parent.pages[i], holds_last_row) << "row " << p << " of " << prompt;
    }
    // The parent may go first.
    memory.release(parent);
    memory.release(child);
    EXPECT_EQ(memory.free_pages(), 99);
    EXPECT_EQ(memory.free_slots(), 7);
  }
}

TEST(Memory, AForkCopiesTheLastPageAndTheSlot) {
  const TestModel m = toy_model();
  RolloutMemory memory(m.config, DType::f32, pool(20, 4));
  SequenceMemory parent = memory.reserve(12);
  parent.length = 12;
  const auto view = memory.view({}, {});
  const auto& kv = view.attention[0];
  const auto& slots = view.delta[0];
  const auto at = [](const Tensor& t, int64_t i) -> float& { return t.at(i).as<float>()[3]; };
  at(kv.k, parent.pages[1]) = 1;
  at(view.mtp.v, parent.pages[1]) = 2;
  at(slots.state, parent.slot) = 3;
  at(slots.ring_u, parent.slot) = 4;
  SequenceMemory child = memory.fork(parent, 20);
  EXPECT_EQ(at(kv.k, child.pages[1]), 1);
  EXPECT_EQ(at(view.mtp.v, child.pages[1]), 2);
  EXPECT_EQ(at(slots.state, child.slot), 3);
  EXPECT_EQ(at(slots.ring_u, child.slot), 4);
  at(kv.k, child.pages[1]) = 5;
  EXPECT_EQ(at(kv.k, parent.pages[1]), 1);
  // A slot that is used again starts from an empty state.
  const int32_t slot = parent.slot;
  memory.release(parent);
  SequenceMemory next = memory.reserve(1);
  EXPECT_EQ(next.slot, slot);
  EXPECT_EQ(at(slots.state, slot), 0);
}

// Pages of running samples and waiting prefixes: none handed out twice, prompt pages shared with kin only.
void check_holders(Scheduler& scheduler, const RolloutMemory& memory) {
  std::map<int32_t, std::vector<std::pair<size_t, size_t>>> holders;  // page: request, place in the sequence
  std::map<int32_t, int> slots;
  const auto add = [&](const SequenceMemory& s, size_t request) {
    slots[s.slot]++;
    for (size_t i = 0; i < s.pages.size(); i++) holders[s.pages[i]].push_back({request, i});
  };
  for (const auto& p : scheduler.prefixes()) add(p->memory, p->request);
  for (const auto& s : scheduler.running()) add(s->memory, s->request);
  for (const auto& [slot, count] : slots) {
    EXPECT_EQ(count, 1);
    EXPECT_NE(slot, 0);
  }
  for (const auto& [id, list] : holders) {
    EXPECT_NE(id, 0);
    for (const auto& holder : list) EXPECT_EQ(holder, list.front()) << "page " << id;
    const auto prompt = static_cast<int64_t>(scheduler.request(list.front().first).prompt.size());
    if (list.size() > 1) {
      EXPECT_LT(static_cast<int64_t>(list.front().second), (prompt - 1) / page) << "page " << id;
    }
  }
  EXPECT_EQ(static_cast<int64_t>(holders.size()) + memory.free_pages(), memory.options().pages - 1);
  EXPECT_EQ(static_cast<int64_t>(slots.size()) + memory.free_slots(), memory.options().slots - 1);
}

// Runs the scheduler without a model: prompts advance and samples end after random numbers of rounds.
void play(const ModelConfig& config, uint64_t seed) {
  SCOPED_TRACE(fmt::format("seed {}", seed));
  Numbers numbers(seed);
  const int64_t drafts = numbers.between(0, 3), count = numbers.between(1, 12);
  std::vector<Request> requests;
  for (int64_t i = 0; i < count; i++) {
    requests.push_back({.prompt = std::vector<int32_t>(static_cast<size_t>(numbers.between(1, 60)), 1),
                        .samples = numbers.between(1, 6),
                        .max_new_tokens = numbers.between(1, 40)});
  }
  RolloutMemory memory(config, DType::f32, pool(numbers.between(2, 40), numbers.between(3, 10)));
  int64_t largest = 0;
  for (const auto& r : requests) {
    const auto prompt = static_cast<int64_t>(r.prompt.size());
    largest =
        std::max(largest, memory.pages_for(prompt) + memory.pages_for_fork(prompt, prompt + r.max_new_tokens + drafts));
  }
  const int64_t max_running = numbers.between(1, 8);
  if (largest > memory.options().pages - 1) {
    try {
      Scheduler(requests, memory, max_running, drafts);
      ADD_FAILURE() << "a request of " << largest << " pages was taken by a pool of " << memory.options().pages - 1;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::resources);
      EXPECT_NE(std::string(e.what()).find("pages of 8 tokens"), std::string::npos) << e.what();
    }
    EXPECT_EQ(memory.free_pages(), memory.options().pages - 1);
    return;
  }
  Scheduler scheduler(requests, memory, max_running, drafts);
  std::map<size_t, std::vector<int64_t>> ended;
  int rounds = 0;
  for (scheduler.admit(); !scheduler.finished(); scheduler.admit(), rounds++) {
    ASSERT_LT(rounds, 5000) << "requests wait for each other";
    EXPECT_LE(static_cast<int64_t>(scheduler.running().size()), max_running);
    check_holders(scheduler, memory);
    bool moved = false;
    for (auto& prefix : scheduler.prefixes()) {
      const auto prompt = static_cast<int64_t>(scheduler.request(prefix->request).prompt.size());
      if (prefix->done == prompt) continue;
      prefix->done = std::min(prompt, prefix->done + numbers.between(1, 32));
      prefix->memory.length = prefix->done;
      moved = true;
    }
    for (auto& sample : scheduler.running()) {
      sample->fresh = nullptr;
      moved = true;
      if (numbers.between(0, 3) > 0) continue;
      ended[sample->request].push_back(sample->out.sample);
      scheduler.ended.push_back(sample.get());
    }
    ASSERT_TRUE(moved) << "a round without work";
    scheduler.retire();
  }
  for (size_t i = 0; i < requests.size(); i++) {
    std::sort(ended[i].begin(), ended[i].end());
    ASSERT_EQ(static_cast<int64_t>(ended[i].size()), requests[i].samples);
    for (int64_t s = 0; s < requests[i].samples; s++) EXPECT_EQ(ended[i][static_cast<size_t>(s)], s);
  }
  EXPECT_EQ(memory.free_pages(), memory.options().pages - 1);
  EXPECT_EQ(memory.free_slots(), memory.options().slots - 1);
}

TEST(Scheduler, FinishesEveryRandomSetOrRefusesIt) {
  const TestModel m = toy_model();
  for (uint64_t seed = 1; seed <= 1500 && !testing::Test::HasFailure(); seed++) play(m.config, seed);
}

TEST(Scheduler, RequestsStartInOrder) {
  const TestModel m = toy_model();
  RolloutMemory memory(m.config, DType::f32, pool(64, 16));
  std::vector<Request> requests(6, {.prompt = {1, 2}, .samples = 1, .max_new_tokens = 4});
  Scheduler scheduler(requests, memory, 3, 0);
  scheduler.admit();
  ASSERT_EQ(scheduler.prefixes().size(), 3u);
  for (size_t i = 0; i < 3; i++) EXPECT_EQ(scheduler.prefixes()[i]->request, i);
}

// The engine in every pool from one page up: refused before anything runs, or the same completions as with room.
TEST(Pools, DownToTheSmallest) {
  const TestModel m = toy_model();
  Numbers numbers(41);
  std::vector<Request> requests;
  for (int64_t i = 0; i < 10; i++) {
    requests.push_back({.prompt = random_tokens(numbers, numbers.between(1, 40), 8),
                        .samples = numbers.between(1, 3),
                        .params = {.temperature = 1},
                        .max_new_tokens = numbers.between(1, 20),
                        .group_index = i});
  }
  EngineOptions options{.max_running = 6, .drafts = 2, .page = page, .max_tokens = 60, .prefill_budget = 64};
  const auto expected = generate(m, options, requests);
  int64_t largest = 0;
  for (const auto& r : requests) {
    const auto prompt = static_cast<int64_t>(r.prompt.size()), rows = prompt + r.max_new_tokens + options.drafts;
    const auto up = [](int64_t n) { return (n + page - 1) / page; };
    largest = std::max(largest, up(prompt) + up(rows) - (prompt - 1) / page);
  }
  ThreadPool threads(1);
  const MemoryOptions full = Engine(m.config, m.weights, options, threads).memory().options();
  const size_t slot = RolloutMemory::slot_bytes(m.config, DType::f32, full);
  const size_t one_page = RolloutMemory::page_bytes(m.config, DType::f32, full);
  bool refused = false, served = false;
  for (int64_t pages = 2; pages <= largest + 6; pages++) {
    options.memory_bytes = 3 * slot + static_cast<size_t>(pages) * one_page;
    Engine engine(m.config, m.weights, options, threads);
    const MemoryOptions got = engine.memory().options();
    ASSERT_LE(static_cast<size_t>(got.slots) * slot + static_cast<size_t>(got.pages) * one_page, options.memory_bytes);
    if (got.pages - 1 < largest) {
      refused = true;
      try {
        engine.generate(requests);
        ADD_FAILURE() << got.pages << " pages took a request of " << largest;
      } catch (const Error& e) {
        EXPECT_EQ(e.code(), Exit::resources) << e.what();
        EXPECT_NE(std::string(e.what()).find("--rollout-mem-fraction-static"), std::string::npos);
      }
      EXPECT_EQ(engine.stats().steps, 0);
    } else {
      served = true;
      expect_same(engine.generate(requests), expected, fmt::format("{} pages", got.pages));
    }
    EXPECT_EQ(engine.memory().free_pages(), got.pages - 1);
    EXPECT_EQ(engine.memory().free_slots(), got.slots - 1);
  }
  EXPECT_TRUE(refused);
  EXPECT_TRUE(served);
}

// Many slots must not eat the memory of the pages: fewer run at once instead.
TEST(Pools, LittleMemoryMeansFewerRunning) {
  const TestModel& m = tiny_model();
  const EngineOptions roomy{.max_running = 512, .max_tokens = 200};
  ThreadPool threads(1);
  const MemoryOptions full = Engine(m.config, m.weights, roomy, threads).memory().options();
  EngineOptions tight = roomy;
  tight.memory_bytes = static_cast<size_t>(full.slots / 8) * RolloutMemory::slot_bytes(m.config, DType::f32, full);
  const Request r{
      .prompt = std::vector<int32_t>(100, 5), .samples = 40, .params = {.temperature = 1}, .max_new_tokens = 3};
  expect_same(generate(m, tight, {r}), generate(m, roomy, {r}), "an eighth of the slots' memory");
}

// The trainer's working memory leaves any bytes behind, among them those of NaN; no row that nobody wrote is read.
TEST(Memory, WhatOthersLeftInItChangesNoBit) {
  const TestModel& m = tiny_model();
  ThreadPool threads(1);
  Numbers numbers(7);
  std::vector<Request> requests;
  for (int64_t i = 0; i < 5; i++) {
    Request r{.samples = 2, .params = {.temperature = 1}, .max_new_tokens = 20 + 9 * i, .seed = 3, .group_index = i};
    r.prompt = random_tokens(numbers, 1 + 37 * i, m.config.vocab_size);
    requests.push_back(std::move(r));
  }
  const EngineOptions options{.max_running = 4, .drafts = 2, .max_tokens = 260};
  const auto alone = Engine(m.config, m.weights, options, threads).generate(requests);
  const EngineNeeds needs = engine_needs(m.config, m.weights, options, threads);
  const EngineNeeds planned = engine_needs(m.config, Weights::outline(m.config, DType::f32), options, threads);
  EXPECT_EQ(planned.block, needs.block) << "an outline is enough to plan";
  const Share block = Share::block(needs.block + 4096, Device::cpu), training = block.part(0, block.bytes());
  Engine engine(m.config, m.weights, options, threads, block);
  for (const uint8_t left : {0xff, 0x7f, 0x5a}) {  // NaN, NaN, a large number
    ASSERT_EQ(training.enter(), left != 0xff);
    std::memset(training.data(), left, training.bytes());
    expect_same(alone, engine.generate(requests), "over other bytes");
  }
}

}  // namespace
}  // namespace furlong
