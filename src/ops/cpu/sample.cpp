#include <algorithm>
#include <bit>
#include <vector>

#include "ops/cpu/softmax_row.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// Tokens scanned by one task.
constexpr int64_t scan_block = 8192;

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
  for (int64_t i = 0; i < n; i++) {
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

// The larger of `best` and l/T + G over tokens [begin, end) at least as good as `last`. Noise is computed only where it
// could win: G <= -log(v) with v >= 2^-(z+1), z the leading zeros of the word.
template <class S>
Entry<S> scan(const S* l, int64_t begin, int64_t end, S temperature, const RngKey& key, const Entry<S>& last,
              Entry<S> best) {
  constexpr S most_noise = S(22.9), log_2_above = S(0.694);
  for (int64_t i = begin; i < end; i += 4) {
    const int64_t stop = std::min(end, i + 4);
    S largest = l[i];
    for (int64_t j = i + 1; j < stop; j++) largest = l[j] > largest ? l[j] : largest;
    if (largest / temperature + most_noise < best.value) continue;
    const auto words = random_block(key, static_cast<uint32_t>(i / 4));
    for (int64_t j = i; j < stop; j++) {
      if (last.better_than({l[j], j})) continue;
      const S z = l[j] / temperature;
      const uint32_t word = words[static_cast<size_t>(j - i)];
      if (z + log_2_above * static_cast<S>(std::countl_zero(word) + 1) < best.value) continue;
      const Entry<S> entry{z + static_cast<S>(gumbel(word)), j};
      if (entry.better_than(best)) best = entry;
    }
  }
  return best;
}

template <class S>
int64_t draw(Stream& stream, const S* l, int64_t n, const SampleRow& row) {
  const auto top = likeliest(l, n);
  if (row.params.temperature == 0) return top.id;
  const S temperature = static_cast<S>(row.params.temperature);
  const bool all = (row.params.top_k <= 0 || row.params.top_k >= n) && row.params.top_p >= 1;
  const Entry<S> last = all ? Entry<S>{-INFINITY, n} : last_kept(l, n, row.params, temperature);
  // The likeliest token is always kept; its noisy value is where the others have to start.
  const Entry<S> first{top.value / temperature + static_cast<S>(gumbel(random_word(row.key, static_cast<uint32_t>(top.id)))),
                       top.id};
  const int64_t parts = (n + scan_block - 1) / scan_block;
  std::vector<Entry<S>> best(static_cast<size_t>(parts));
  stream.threads().parallel(parts, [&](int64_t p) {
    best[static_cast<size_t>(p)] =
        scan(l, p * scan_block, std::min(n, (p + 1) * scan_block), temperature, row.key, last, first);
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
    each_row(stream, logits.rows(), [&](int64_t r) {
      const S* row = l + r * logits.row_stride();
      const SampleRow& how = rows[static_cast<size_t>(r)];
      const int64_t token = draw(stream, row, n, how);
      out[r] = static_cast<int32_t>(token);
      if (!log_probs.defined()) return;
      const S temperature = how.params.temperature == 0 ? S(1) : static_cast<S>(how.params.temperature);
      log_probs.as<S>()[r] = row_softmax(stream, row, n, temperature).log_prob(row[token], temperature);
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
