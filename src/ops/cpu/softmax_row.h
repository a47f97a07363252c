// One row of logits to its log-sum-exp and entropy, in one fixed order, for the loss and for sampling alike: the
// log-prob recorded when a token is drawn is bit-equal to the one computed from the same logits later.
#pragma once
#include <algorithm>
#include <vector>

#include "ops/cpu/bodies.h"

namespace furlong::cpu::FURLONG_ISA {

// Columns summed as one part. The parts are added in order, whichever thread summed them.
constexpr int64_t softmax_block = 8192;

template <class S>
struct RowSoftmax {
  S max;      // of the logits over the temperature
  S log_sum;  // log Σ exp(l/T - max)
  S entropy;  // nats

  S lse() const { return max + log_sum; }
  S log_prob(S logit, S temperature) const { return (logit / temperature - max) - log_sum; }
};

// Calls f(scaled), scaled(l) = l/T. Nothing is divided by a temperature of 1, the usual one.
template <class S, class F>
auto over_temperature(S temperature, F&& f) {
  if (temperature == S(1)) return f([](S l) { return l; });
  return f([=](S l) { return l / temperature; });
}

// Σ e^d and Σ e^d d with d = l/T - max, lanes first. An e^d of 0 adds nothing, also where d is -infinity.
template <class S>
void softmax_part(const S* l, int64_t n, S temperature, S max, S& sum, S& weighted) {
  constexpr int w = width<S>;
  constexpr int64_t tile = 16 * w;
  Vec<S> lane_sum{}, lane_weighted{};
  over_temperature(temperature, [&](const auto& scaled) {
    for (int64_t i = 0; i < n; i += tile) {
      const int64_t count = std::min(tile, n - i);
      S e[tile], ed[tile];
      for (int64_t j = 0; j < count; j++) {
        const S d = scaled(l[i + j]) - max;
        e[j] = exp_fast(d);
        ed[j] = e[j] == S(0) ? S(0) : e[j] * d;
      }
      for (int64_t j = count; j < (count + w - 1) / w * w; j++) e[j] = ed[j] = 0;
      for (int64_t j = 0; j < count; j += w) {
        lane_sum += load(e + j);
        lane_weighted += load(ed + j);
      }
    }
  });
  sum = sum_lanes<S>(lane_sum);
  weighted = sum_lanes<S>(lane_weighted);
}

template <class S>
S row_max(const S* l, int64_t n) {
  constexpr int w = width<S>;
  Vec<S> lanes = broadcast(l[0]);
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    const Vec<S> v = load(l + i);
    lanes = v > lanes ? v : lanes;
  }
  S top = l[0];
  for (; i < n; i++) top = l[i] > top ? l[i] : top;
  for (int j = 0; j < w; j++) top = lanes[j] > top ? lanes[j] : top;
  return top;
}

// Called from one task for its own row, or from outside any task, when the parts are spread over the threads.
template <class S>
RowSoftmax<S> row_softmax(Stream& stream, const S* l, int64_t n, S temperature) {
  const int64_t parts = (n + softmax_block - 1) / softmax_block;
  const auto length = [&](int64_t p) { return std::min(softmax_block, n - p * softmax_block); };
  std::vector<S> scratch(static_cast<size_t>(3 * parts));
  S *max = scratch.data(), *sum = max + parts, *weighted = sum + parts;
  stream.threads().parallel(parts, [&](int64_t p) { max[p] = row_max(l + p * softmax_block, length(p)); });
  // Division by a positive temperature keeps the order, so the largest quotient is the quotient of the largest.
  const S top = row_max(max, parts) / temperature;
  stream.threads().parallel(
      parts, [&](int64_t p) { softmax_part(l + p * softmax_block, length(p), temperature, top, sum[p], weighted[p]); });
  S all = 0, all_weighted = 0;
  for (int64_t p = 0; p < parts; p++) {
    all += sum[p];
    all_weighted += weighted[p];
  }
  const S log_sum = std::log(all);
  return {top, log_sum, log_sum - all_weighted / all};
}

// Calls f(row) for each row: rows over the threads, or, when there are fewer, one by one with f free to use them.
template <class F>
void each_row(Stream& stream, int64_t rows, F&& f) {
  if (rows < stream.threads().size()) {
    for (int64_t r = 0; r < rows; r++) f(r);
  } else {
    stream.threads().parallel(rows, f);
  }
}

}  // namespace furlong::cpu::FURLONG_ISA
