#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "ops/cpu/softmax_row.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// Fewest tokens worth a task of their own.
constexpr int64_t scan_block = 8192;

// Tokens looked at in one go.
constexpr int64_t tile = 16;
template <class F>
bool any_of_tile(F&& is) {
  uint32_t any = 0;
#pragma GCC unroll 1  // unrolled, it would not be vectorised
  for (int64_t j = 0; j < tile; j++) any |= is(j) ? 1u : 0u;
  return any != 0;
}

// A token and its value; the better of two is the larger, at equal values the lower id.
template <class S>
struct Entry {
  S value;
  int64_t id;

  bool better_than(const Entry& other) const { return value > other.value || (value == other.value && id < other.id); }
};

template <class S>
Entry<S> likeliest(const S* l, int64_t n) {
  const S top = row_max(l, n);
  int64_t first = 0;
  while (first + tile <= n && !any_of_tile([&](int64_t j) { return l[first + j] == top; })) first += tile;
  for (int64_t i = first; i < n; i++) {
    if (l[i] == top) return {top, i};
  }
  return {top, 0};  // only for a row of NaN
}

// The last of the kept tokens in falling order of likelihood: those at least as good as it are kept. First the top_k
// likeliest; then, of their renormalised distribution, the shortest run of likeliest tokens whose probability reaches
// top_p. At least one token is kept.
template <class S>
Entry<S> last_kept(const S* l, int64_t n, const SampleParams& params, S temperature) {
  std::vector<Entry<S>> order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) order[static_cast<size_t>(i)] = {l[i], i};
  const auto better = [](const Entry<S>& a, const Entry<S>& b) { return a.better_than(b); };
  int64_t kept = n;
  if (params.top_k > 0 && params.top_k < n) {
    kept = params.top_k;
    std::nth_element(order.begin(), order.begin() + (kept - 1), order.end(), better);
    if (params.top_p >= 1) return order[static_cast<size_t>(kept - 1)];
  }
  const S top = row_max(l, n) / temperature;
  const auto weight = [&](const Entry<S>& e) { return static_cast<double>(exp_fast(e.value / temperature - top)); };
  // Summed by id, so that the total does not depend on how nth_element left the order.
  double total = 0;
  if (kept == n) {
    for (int64_t i = 0; i < n; i++) total += weight({l[i], i});
  } else {
    std::sort(order.begin(), order.begin() + kept, better);
    for (int64_t i = 0; i < kept; i++) total += weight(order[static_cast<size_t>(i)]);
  }
  const double wanted = params.top_p * total;
  double sum = 0;
  int64_t sorted = kept == n ? 0 : kept;
  for (int64_t i = 0; i < kept; i++) {
    if (i == sorted) {  // sort a longer run of the likeliest, four times as long each time
      sorted = std::min(kept, std::max<int64_t>(64, 4 * sorted));
      std::partial_sort(order.begin() + i, order.begin() + sorted, order.end(), better);
    }
    sum += weight(order[static_cast<size_t>(i)]);
    if (sum >= wanted) return order[static_cast<size_t>(i)];
  }
  return order[static_cast<size_t>(kept - 1)];
}

// Tokens whose noise is drawn together.
constexpr int64_t group = 128;

#if defined(__AVX2__)
// A number of 32 bits of each of several blocks; what else its lanes hold, products do not read.
constexpr int64_t lanes = vector_bytes / 8;
using Lanes = uint64_t __attribute__((vector_size(vector_bytes)));

inline Lanes product(Lanes a, uint32_t b) {
#if defined(__AVX512F__)
  return std::bit_cast<Lanes>(_mm512_mul_epu32(std::bit_cast<__m512i>(a), _mm512_set1_epi64(b)));
#else
  return std::bit_cast<Lanes>(_mm256_mul_epu32(std::bit_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#endif
}

// words[i] = random_word(key, first + i), first a multiple of 4: random_block's rounds over the lanes of a vector.
void random_words(const RngKey& key, uint32_t first, uint32_t* words) {
  const uint64_t mixed = key.seed * 0x9E3779B97F4A7C15ull + static_cast<uint32_t>(key.purpose);
  // Even lanes of two vectors side by side have the first half of the blocks, odd ones the second.
  Lanes block{}, even{}, odd{};
  for (int64_t j = 0; j < lanes; j++) {
    block[j] = static_cast<uint64_t>(j / 2 + j % 2 * (lanes / 2));
    even[j] = static_cast<uint64_t>(j / 2 * 2 + j % 2 * lanes);
    odd[j] = even[j] + 1;
  }
  for (int64_t i = 0; i < group / 4; i += lanes) {
    Lanes c0 = block + (first / 4 + static_cast<uint64_t>(i)), c1 = Lanes{} + key.position, c2 = Lanes{} + key.sample,
          c3 = Lanes{} + key.group;
    uint32_t k0 = static_cast<uint32_t>(mixed), k1 = static_cast<uint32_t>(mixed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
      const Lanes p0 = product(c0, philox::multiplier0), p1 = product(c2, philox::multiplier1);
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c1 = p1;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c3 = p0;
      k0 += philox::weyl0;
      k1 += philox::weyl1;
    }
    const Lanes a = (c0 & 0xffffffffu) | c1 << 32, b = (c2 & 0xffffffffu) | c3 << 32;
    const Lanes ab[] = {__builtin_shuffle(a, b, even), __builtin_shuffle(a, b, odd)};
    std::memcpy(words + 4 * i, ab, sizeof ab);
  }
}
#else
// words[i] = random_word(key, first + i), first a multiple of 4.
void random_words(const RngKey& key, uint32_t first, uint32_t* words) {
  for (int64_t i = 0; i < group; i += 4) {
    const auto block = random_block(key, (first + static_cast<uint32_t>(i)) / 4);
    std::copy(block.begin(), block.end(), words + i);
  }
}
#endif

// No less than gumbel(word), which is <= -log(v) with v >= 2^-(z+1), z the leading zeros of the word.
template <class S>
S noise_bound(uint32_t word) {
  return S(0.694) * static_cast<S>(std::countl_zero(word) + 1);
}

// Whether the noise may lift one of a tile's tokens to `best`. Its bound for a whole vector: 8 + the exponent of the
// upper 24 bits, which a float holds, is 31 - z; of no bits the exponent is that of 0, and the bound large.
template <class S, class F>
bool may_win(const S* l, const uint32_t* words, const F& scaled, S best) {
  return any_of_tile([&](int64_t j) {
    const auto upper = static_cast<float>(static_cast<int32_t>(words[j] >> 8));
    const auto z = 31 + 127 - 8 - static_cast<int32_t>(std::bit_cast<uint32_t>(upper) >> 23);
    return scaled(l[j]) + S(0.694) * static_cast<S>(z + 1) >= best;
  });
}

// The larger of `best` and scaled(l) + G over tokens [begin, end) at least as good as `last`. The bound on the noise
// passes over groups, tiles and tokens that cannot win, so that the result is exact and few logarithms are taken.
template <class S, class F>
Entry<S> scan(const S* l, int64_t begin, int64_t end, const F& scaled, const RngKey& key, const Entry<S>& last,
              Entry<S> best) {
  uint32_t words[group];
  for (int64_t i = begin; i < end; i += group) {
    const int64_t count = std::min(group, end - i);
    const S largest = row_max(l + i, count);
    if (last.value > largest || scaled(largest) + noise_bound<S>(0) < best.value) continue;
    random_words(key, static_cast<uint32_t>(i), words);
    uint32_t smallest = words[0];
    for (int64_t j = 0; j < group; j++) smallest = std::min(smallest, words[j]);
    if (scaled(largest) + noise_bound<S>(smallest) < best.value) continue;
    for (int64_t t = 0; t < count; t += tile) {
      if (t + tile <= count && !may_win(l + i + t, words + t, scaled, best.value)) continue;
      for (int64_t j = t; j < std::min(count, t + tile); j++) {
        const S z = scaled(l[i + j]);
        if (last.better_than({l[i + j], i + j}) || z + noise_bound<S>(words[j]) < best.value) continue;
        const Entry<S> entry{z + static_cast<S>(gumbel(words[j])), i + j};
        if (entry.better_than(best)) best = entry;
      }
    }
  }
  return best;
}

// The drawn token, found by at most `tasks` tasks.
template <class S>
int64_t draw(Stream& stream, int64_t tasks, const S* l, int64_t n, const SampleRow& row) {
  const auto top = likeliest(l, n);
  if (row.params.temperature == 0) return top.id;
  const S temperature = static_cast<S>(row.params.temperature);
  const bool all = (row.params.top_k <= 0 || row.params.top_k >= n) && row.params.top_p >= 1;
  const Entry<S> last = all ? Entry<S>{-INFINITY, n} : last_kept(l, n, row.params, temperature);
  // The likeliest token is always kept; its noisy value is where the others have to start.
  const Entry<S> first{
      top.value / temperature + static_cast<S>(gumbel(random_word(row.key, static_cast<uint32_t>(top.id)))), top.id};
  const int64_t parts = std::clamp<int64_t>(n / scan_block, 1, tasks), groups = (n + group - 1) / group;
  std::vector<Entry<S>> best(static_cast<size_t>(parts));
  over_temperature(temperature, [&](const auto& scaled) {
    stream.threads().parallel(parts, [&](int64_t p) {
      const int64_t begin = groups * p / parts * group, end = std::min(n, groups * (p + 1) / parts * group);
      best[static_cast<size_t>(p)] = scan(l, begin, end, scaled, row.key, last, first);
    });
  });
  Entry<S> winner = first;
  for (const auto& entry : best) {
    if (entry.better_than(winner)) winner = entry;
  }
  return winner.id;
}

}  // namespace

void sample(Stream& stream, Tensor tokens, Tensor log_probs, Tensor logits, const std::vector<SampleRow>& rows) {
  dispatch(logits.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = logits.dim(1);
    const S* l = logits.as<S>();
    int32_t* out = tokens.as<int32_t>();
    const int64_t tasks = logits.rows() < stream.threads().size() ? stream.threads().size() : 1;
    each_row(stream, logits.rows(), [&](int64_t r) {
      const S* row = l + r * logits.row_stride();
      const SampleRow& how = rows[static_cast<size_t>(r)];
      const int64_t token = draw(stream, tasks, row, n, how);
      out[r] = static_cast<int32_t>(token);
      if (!log_probs.defined()) return;
      const S temperature = how.params.temperature == 0 ? S(1) : static_cast<S>(how.params.temperature);
      log_probs.as<S>()[r] = row_softmax(stream, row, n, temperature).log_prob(row[token], temperature);
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
