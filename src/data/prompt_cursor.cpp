// The order in which prompts are drawn (prompts.h).
#include <bit>
#include <numeric>
#include <random>

#include "base/check.h"
#include "base/error.h"
#include "data/prompts.h"

namespace furlong {
namespace {

// A seed sequence that fills MT19937's state by the generator's init_by_array rule from the key words. All arithmetic
// is modulo 2^32.
struct ArraySeed {
  using result_type = uint32_t;
  std::vector<uint32_t> key;

  template <class Iterator>
  void generate(Iterator begin, Iterator end) const {
    constexpr size_t n = 624;
    CHECK(static_cast<size_t>(end - begin) == n, "the engine asks for {} words", end - begin);
    std::vector<uint32_t> s(n);
    s[0] = 19650218u;
    for (size_t i = 1; i < n; i++) s[i] = 1812433253u * (s[i - 1] ^ (s[i - 1] >> 30)) + static_cast<uint32_t>(i);
    size_t i = 1, j = 0;
    const auto advance = [&] {
      if (++i == n) {
        s[0] = s[n - 1];
        i = 1;
      }
    };
    for (size_t k = std::max(n, key.size()); k > 0; k--) {
      s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1664525u)) + key[j] + static_cast<uint32_t>(j);
      advance();
      if (++j == key.size()) j = 0;
    }
    for (size_t k = n - 1; k > 0; k--) {
      s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1566083941u)) - static_cast<uint32_t>(i);
      advance();
    }
    s[0] = 0x80000000u;
    std::copy(s.begin(), s.end(), begin);
  }
};

std::mt19937 python_generator(int64_t seed) {
  uint64_t magnitude = seed < 0 ? uint64_t{0} - static_cast<uint64_t>(seed) : static_cast<uint64_t>(seed);
  ArraySeed words;
  do {
    words.key.push_back(static_cast<uint32_t>(magnitude));
    magnitude >>= 32;
  } while (magnitude != 0);
  return std::mt19937(words);
}

}  // namespace

std::vector<int64_t> python_shuffle(int64_t n, int64_t seed) {
  CHECK(n >= 0 && n < (int64_t{1} << 32), "{} items to shuffle", n);
  std::mt19937 generator = python_generator(seed);
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (uint64_t bound = order.size(); bound > 1; bound--) {
    // Uniform below `bound`: the top bits of one word, as many as `bound` has, drawn again until below it.
    const int bits = std::bit_width(bound);
    uint64_t draw;
    do {
      draw = (generator() & 0xFFFFFFFFu) >> (32 - bits);
    } while (draw >= bound);
    std::swap(order[bound - 1], order[draw]);
  }
  return order;
}

PromptCursor::PromptCursor(int64_t n, bool shuffle, int64_t seed) : shuffle_(shuffle), seed_(seed) {
  CHECK(n > 0, "a cursor over {} prompts", n);
  state_.prompts = n;
  start_epoch();
}

void PromptCursor::start_epoch() {
  // Two's complement addition: a seed near the end of int64 wraps and stays deterministic.
  const auto seed = static_cast<int64_t>(static_cast<uint64_t>(seed_) + static_cast<uint64_t>(state_.epoch));
  if (shuffle_) order_ = python_shuffle(state_.prompts, seed);
}

PromptCursor::Draw PromptCursor::next(int64_t n_samples) {
  CHECK(n_samples > 0, "{} samples of a prompt", n_samples);
  if (state_.offset == state_.prompts) {
    state_.epoch++;
    state_.offset = 0;
    start_epoch();
  }
  const int64_t place = state_.offset++;
  const Draw draw{shuffle_ ? order_[static_cast<size_t>(place)] : place, state_.group_index, state_.index,
                  state_.epoch};
  state_.group_index++;
  state_.index += n_samples;
  return draw;
}

void PromptCursor::restore(const PromptCursorState& state) {
  const int64_t n = state_.prompts;
  if ((state.prompts != 0 && state.prompts != n) || state.offset > n) {
    fail(Exit::input,
         "the checkpoint stands at prompt {} of {}, but the prompt set now has {}: the order would not continue. "
         "Resume with the same --prompt-data and length limits, or start a new run from the weights",
         state.offset, state.prompts, n);
  }
  if (state.epoch < 0 || state.offset < 0 || state.group_index < 0 || state.index < 0) {
    fail(Exit::input, "the checkpoint's place in the prompts is damaged: epoch {}, offset {}, group {}, sample {}",
         state.epoch, state.offset, state.group_index, state.index);
  }
  state_ = state;
  state_.prompts = n;
  start_epoch();
}

}  // namespace furlong
