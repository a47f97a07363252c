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
  std::map<int32_t, std::vector<std::pair<uint64_t, size_t>>> holders;  // page: request, place in the sequence
  std::map<int32_t, int> slots;
  const auto add = [&](const SequenceMemory& s, uint64_t request) {
    slots[s.slot]++;
    for (size_t i = 0; i < s.pages.size(); i++) holders[s.pages[i]].push_back({request, i});
  };
  std::map<uint64_t, int64_t> prompts;
  for (const auto& p : scheduler.prefixes()) {
    add(p->memory, p->job->id);
    prompts[p->job->id] = p->job->prompt();
  }
  for (const auto& s : scheduler.running()) {
    add(s->memory, s->job->id);
    prompts[s->job->id] = s->job->prompt();
  }
  for (const auto& [slot, count] : slots) {
    EXPECT_EQ(count, 1);
    EXPECT_NE(slot, 0);
  }
  for (const auto& [id, list] : holders) {
    EXPECT_NE(id, 0);
    for (const auto& holder : list) EXPECT_EQ(holder, list.front()) << "page " << id;
    const int64_t prompt = prompts[list.front().first];
    if (list.size() > 1) {
      EXPECT_LT(static_cast<int64_t>(list.front().second), (prompt - 1) / page) << "page " << id;
    }
  }
  EXPECT_EQ(static_cast<int64_t>(holders.size()) + memory.free_pages(), memory.options().pages - 1);
  EXPECT_EQ(static_cast<int64_t>(slots.size()) + memory.free_slots(), memory.options().slots - 1);
}

// Runs the scheduler without a model: prompts and samples that run again advance, samples grow and end after random
// numbers of tokens, and some requests are cancelled.
void play(const ModelConfig& config, uint64_t seed, int64_t& preempted) {
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
  const int64_t margins[] = {0, 3, 20, SchedulerOptions::reserve_all};
  const SchedulerOptions options{
      .max_running = numbers.between(1, 8), .drafts = drafts, .margin = margins[numbers.between(0, 3)]};
  Scheduler scheduler(memory, options);
  struct Fate {
    std::vector<int64_t> ended, aborted;
    int64_t samples = 0;
    bool cancelled = false;
  };
  std::map<uint64_t, Fate> fates;
  for (const auto& r : requests) {
    const auto prompt = static_cast<int64_t>(r.prompt.size());
    const int64_t needed = memory.pages_for(prompt) + memory.pages_for_fork(prompt, prompt + r.max_new_tokens + drafts);
    try {
      fates[scheduler.submit(r, {})].samples = r.samples;
      EXPECT_LE(needed, memory.options().pages - 1);
    } catch (const Error& e) {
      EXPECT_GT(needed, memory.options().pages - 1);
      EXPECT_EQ(e.code(), Exit::resources);
      EXPECT_NE(std::string(e.what()).find("pages of 8 tokens"), std::string::npos) << e.what();
    }
  }
  int rounds = 0;
  for (; !scheduler.idle(); rounds++) {
    ASSERT_LT(rounds, 5000) << "requests wait for each other";
    if (numbers.between(0, 30) == 0 && !fates.empty()) {
      auto it = fates.begin();
      std::advance(it, numbers.between(0, std::ssize(fates) - 1));
      it->second.cancelled = true;
      scheduler.cancel(it->first);
    }
    scheduler.schedule();
    preempted += scheduler.preempted();
    EXPECT_LE(std::ssize(scheduler.running()), options.max_running);
    check_holders(scheduler, memory);
    bool moved = scheduler.running().empty() && scheduler.prefixes().empty();  // all that was left was cancelled
    for (auto& prefix : scheduler.prefixes()) {
      if (prefix->complete()) continue;
      prefix->done = std::min(prefix->job->prompt(), prefix->done + numbers.between(1, 32));
      prefix->memory.length = prefix->done;
      moved = true;
    }
    for (auto& sample : scheduler.running()) {
      moved = true;
      auto& tokens = sample->out.tokens;
      if (sample->again) {
        sample->memory.length = std::min(sample->rows(), sample->memory.length + numbers.between(1, 32));
        sample->again = sample->memory.length < sample->rows();
        continue;
      }
      // A step's rows have their pages, those of the drafts for the next one too.
      const int64_t most = sample->job->prompt() + sample->job->request.max_new_tokens + drafts;
      const int64_t rows = sample->memory.length + (sample->fresh ? drafts : 1 + 2 * drafts);
      ASSERT_GE(std::ssize(sample->memory.pages) * page, std::min(most, rows));
      const int64_t drawn = sample->fresh ? 1 : numbers.between(1, 1 + drafts);
      if (!sample->fresh) sample->memory.length += drawn;
      sample->fresh = nullptr;
      tokens.insert(tokens.end(), static_cast<size_t>(drawn), 1);
      sample->ended = std::ssize(tokens) >= sample->job->request.max_new_tokens || numbers.between(0, 30) == 0;
    }
    ASSERT_TRUE(moved) << "a round without work";
    for (const auto& sample : scheduler.retire()) {
      Fate& fate = fates.at(sample->out.request);
      (sample->out.reason == FinishReason::abort ? fate.aborted : fate.ended).push_back(sample->out.sample);
    }
  }
  for (auto& [id, fate] : fates) {
    EXPECT_TRUE(fate.cancelled || fate.aborted.empty());
    fate.ended.insert(fate.ended.end(), fate.aborted.begin(), fate.aborted.end());
    std::sort(fate.ended.begin(), fate.ended.end());
    ASSERT_EQ(std::ssize(fate.ended), fate.samples);
    for (int64_t s = 0; s < fate.samples; s++) EXPECT_EQ(fate.ended[static_cast<size_t>(s)], s);
  }
  EXPECT_EQ(memory.free_pages(), memory.options().pages - 1);
  EXPECT_EQ(memory.free_slots(), memory.options().slots - 1);
}

TEST(Scheduler, FinishesEveryRandomSetOrRefusesIt) {
  const TestModel m = toy_model();
  int64_t preempted = 0;
  for (uint64_t seed = 1; seed <= 3000 && !testing::Test::HasFailure(); seed++) play(m.config, seed, preempted);
  EXPECT_GT(preempted, 1000);
}

TEST(Scheduler, RequestsStartInOrder) {
  const TestModel m = toy_model();
  RolloutMemory memory(m.config, DType::f32, pool(64, 16));
  Scheduler scheduler(memory, {.max_running = 3});
  for (int i = 0; i < 6; i++) scheduler.submit({.prompt = {1, 2}, .samples = 1, .max_new_tokens = 4}, {});
  scheduler.schedule();
  ASSERT_EQ(scheduler.prefixes().size(), 3u);
  for (size_t i = 0; i < 3; i++) EXPECT_EQ(scheduler.prefixes()[i]->job->id, i + 1);
}

// Packed weights lie beside the pools where a quarter of the memory is enough for them; completions are the same.
TEST(Pools, PackedWeightsLeaveThemRoom) {
  const TestModel m = toy_model();
  ThreadPool threads(1);
  Numbers numbers(42);
  const Request r{
      .prompt = random_tokens(numbers, 40, 8), .samples = 2, .params = {.temperature = 1}, .max_new_tokens = 20};
  EngineOptions options{.max_running = 4, .page = page, .max_tokens = 60};
  options.pack_weights = false;
  EXPECT_EQ(engine_needs(m.config, m.weights, options, threads).packs, 0u);
  const auto expected = generate(m, options, {r});
  options.pack_weights = true;
  const EngineNeeds unlimited = engine_needs(m.config, m.weights, options, threads);
  ASSERT_GT(unlimited.packs, 0u);
  for (const size_t memory : {4 * unlimited.packs, 4 * unlimited.packs - 1}) {
    options.memory_bytes = memory;
    const EngineNeeds needs = engine_needs(m.config, m.weights, options, threads);
    EXPECT_EQ(needs.packs, memory == 4 * unlimited.packs ? unlimited.packs : 0);
    EXPECT_LE(needs.pages + needs.slots + needs.packs, memory);
    expect_same(generate(m, options, {r}), expected, fmt::format("{} bytes", memory));
  }
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

// Sequences that outgrow the pool take turns: the newest gives way and comes back from its tokens, to the same bits.
TEST(Pools, PreemptedSamplesGoOnWithTheSameBits) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const TestModel& m = tiny_model(dtype);
    Numbers numbers(43);
    std::vector<Request> requests;
    for (int64_t i = 0; i < 8; i++) {
      requests.push_back({.prompt = random_tokens(numbers, numbers.between(1, 100), 512),
                          .samples = numbers.between(1, 3),
                          .params = {.temperature = i % 2 == 0 ? 1.0 : 0.0},
                          .max_new_tokens = numbers.between(60, 140),
                          .seed = 5,
                          .group_index = i});
    }
    EngineOptions options{.max_running = 8, .page = 16, .max_tokens = 240, .prefill_budget = 64};
    const auto expected = generate(m, options, requests);
    ThreadPool threads(1);
    for (const int64_t drafts : {0, 2}) {
      options.drafts = drafts;
      options.margin = 0;
      options.max_pages = 41;
      Engine engine(m.config, m.weights, options, threads);
      expect_same(engine.generate(requests), expected, fmt::format("{} drafts", drafts));
      EXPECT_GT(engine.stats().preemptions, 5);
      // With everything reserved nothing is preempted.
      options.margin = SchedulerOptions::reserve_all;
      Engine patient(m.config, m.weights, options, threads);
      expect_same(patient.generate(requests), expected, "reserved");
      EXPECT_EQ(patient.stats().preemptions, 0);
      EXPECT_GT(patient.stats().steps, engine.stats().steps);
    }
  }
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
