// Verifying rows and accepting some of them leaves the memory as that many single decodes do.
#include <cstring>

#include "model/model.h"
#include "rollout/fixture.h"

namespace furlong {
namespace {

constexpr int64_t drafts = 3;

// One model with a memory, run a segment at a time.
class Driver {
 public:
  explicit Driver(const TestModel& m)
      : m_(m),
        threads_(1),
        stream_(threads_),
        arena_(size_t{64} << 20),
        memory(m.config, m.weights.dtype(), {.page = 16, .pages = 32, .slots = 4, .draft_rows = 1 + drafts}) {}

  // The hidden rows of `tokens` at the end of the sequence, as bytes.
  std::string run(const SequenceMemory& s, const std::vector<int32_t>& tokens, bool speculative) {
    const Arena::Scope scope(arena_);
    BatchBuilder builder;
    builder.add(tokens.data(), static_cast<int64_t>(tokens.size()), s.length);
    const SequenceMemory* sequences[] = {&s};
    const uint8_t flags[] = {static_cast<uint8_t>(speculative)};
    const Batch batch = builder.batch(&memory.view(sequences, flags));
    Exec exec{stream_, arena_};
    const Tensor hidden = model_forward(exec, m_.config, m_.weights, batch, nullptr);
    return {static_cast<const char*>(hidden.data()), hidden.bytes()};
  }
  SequenceMemory prefill(const std::vector<int32_t>& prompt) {
    SequenceMemory s = memory.reserve(200);
    run(s, prompt, false);
    s.length = static_cast<int64_t>(prompt.size());
    return s;
  }
  void accept(SequenceMemory& s, int64_t rows) {
    SequenceMemory* sequences[] = {&s};
    const int64_t lengths[] = {s.length + rows};
    memory.commit(stream_, sequences, lengths);
  }
  // Everything later rows can read of a sequence: states, ring entries since the chunk's start, the convolution's last
  // inputs, keys and values of committed rows.
  std::string contents(const SequenceMemory& s) {
    std::string out;
    const auto add = [&](const Tensor& t, int64_t i) {
      const Tensor entry = t.at(i);
      out.append(static_cast<const char*>(entry.data()), entry.bytes());
    };
    const SequenceMemory* sequences[] = {&s};
    const uint8_t flags[] = {1};
    const MemoryView& view = memory.view(sequences, flags);
    for (const auto& d : view.delta) {
      add(d.state, s.slot);
      const Tensor k = d.ring_k.at(s.slot), u = d.ring_u.at(s.slot), g = d.ring_g.at(s.slot), w = d.window.at(s.slot);
      for (int64_t p = s.length / delta_chunk * delta_chunk; p < s.length; p++) {
        for (const Tensor& ring : {k, u, g}) add(ring, p % ring.rows());
      }
      for (int64_t p = std::max<int64_t>(0, s.length - (m_.config.conv_kernel - 1)); p < s.length; p++) {
        add(w, p % w.rows());
      }
    }
    for (const auto& pages : view.attention) {
      for (int64_t p = 0; p < s.length; p++) {
        const int32_t page = s.pages[static_cast<size_t>(p / memory.options().page)];
        add(pages.k.at(page), p % memory.options().page);
        add(pages.v.at(page), p % memory.options().page);
      }
    }
    return out;
  }

 private:
  const TestModel& m_;
  ThreadPool threads_;
  Stream stream_;
  Arena arena_;

 public:
  RolloutMemory memory;
};

void check_rollback(const TestModel& m, int64_t length, int64_t accepted) {
  SCOPED_TRACE(fmt::format("{} accepted behind position {}", accepted, length));
  Numbers numbers(static_cast<uint64_t>(length));
  const auto prompt = random_tokens(numbers, length, m.config.vocab_size);
  const auto rows = random_tokens(numbers, 1 + drafts, m.config.vocab_size);
  const auto later = random_tokens(numbers, 1 + drafts, m.config.vocab_size);

  Driver single(m), verified(m);
  SequenceMemory a = single.prefill(prompt), b = verified.prefill(prompt);
  ASSERT_EQ(single.contents(a), verified.contents(b));
  std::string one_by_one;
  for (int64_t i = 0; i < accepted; i++) {
    one_by_one += single.run(a, {rows[static_cast<size_t>(i)]}, true);
    single.accept(a, 1);
  }
  const std::string together = verified.run(b, rows, true);
  EXPECT_EQ(together.substr(0, one_by_one.size()), one_by_one);
  verified.accept(b, accepted);
  EXPECT_EQ(a.length, b.length);
  EXPECT_EQ(single.contents(a), verified.contents(b));
  // And what comes after it, again with rejected rows in between.
  for (int round = 0; round < 2; round++) {
    EXPECT_EQ(single.run(a, later, true), verified.run(b, later, true));
    single.accept(a, 1 + round);
    verified.accept(b, 1 + round);
    EXPECT_EQ(single.contents(a), verified.contents(b));
  }
}

TEST(Rollback, LeavesTheStateOfSingleDecodes) {
  for (int64_t length = 58; length <= 70; length++) {
    for (int64_t accepted = 1; accepted <= 1 + drafts; accepted++) check_rollback(tiny_model(), length, accepted);
  }
}

TEST(Rollback, NearTheStartAndAtTheSecondChunk) {
  for (const int64_t length : {1, 2, 5, 125, 126, 127, 128, 129}) {
    for (int64_t accepted = 1; accepted <= 1 + drafts; accepted++) check_rollback(tiny_model(), length, accepted);
  }
}

TEST(Rollback, Bf16) {
  for (const int64_t length : {60, 61, 62, 63, 64}) check_rollback(tiny_model(DType::bf16), length, 1 + length % 4);
}

// The same rows in one speculative segment, in single decodes and in a prefill piece: the same state.
TEST(Rollback, PrefillAndDecodeAgree) {
  const TestModel& m = tiny_model();
  Numbers numbers(31);
  const auto tokens = random_tokens(numbers, 140, m.config.vocab_size);
  Driver prefilled(m), decoded(m);
  const SequenceMemory a = prefilled.prefill(tokens);
  SequenceMemory b = decoded.memory.reserve(200);
  for (const int32_t token : tokens) {
    decoded.run(b, {token}, true);
    decoded.accept(b, 1);
  }
  EXPECT_EQ(prefilled.contents(a), decoded.contents(b));
}

}  // namespace
}  // namespace furlong
