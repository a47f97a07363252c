// One row of logits to its log-sum-exp and entropy, in one fixed order, for the loss and for sampling alike: the log-prob
// recorded when a token is drawn is bit-equal to the one computed from the same logits later.
#pragma once
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

// Σ e^d and Σ e^d d with d = l/T - max, lanes first. An e^d of 0 adds nothing, also where d is -infinity.
template <class S>
void softmax_part(const S* l, int64_t n, S temperature, S max, S& sum, S& weighted) {
  constexpr int w = width<S>;
  S lane_sum[w] = {}, lane_weighted[w] = {};
  int64_t i = 0;
  const auto lanes = [&](int count) {
    for (int j = 0; j < count; j++) {
      const S d = l[i + j] / temperature - max;
      const S e = exp_fast(d);
      lane_sum[j] += e;
      lane_weighted[j] += e == S(0) ? S(0) : e * d;
    }
  };
  for (; i + w <= n; i += w) lanes(w);
  lanes(static_cast<int>(n - i));
  Vec<S> a, b;
  std::memcpy(&a, lane_sum, sizeof a);
  std::memcpy(&b, lane_weighted, sizeof b);
  sum = sum_lanes<S>(a);
  weighted = sum_lanes<S>(b);
}

template <class S>
S row_max(const S* l, int64_t n) {
  constexpr int w = width<S>;
  S lane[w];
  for (int j = 0; j < w; j++) lane[j] = l[0];
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    for (int j = 0; j < w; j++) lane[j] = l[i + j] > lane[j] ? l[i + j] : lane[j];
  }
  for (; i < n; i++) lane[0] = l[i] > lane[0] ? l[i] : lane[0];
  for (int j = 1; j < w; j++) lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
  return lane[0];
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
  stream.threads().parallel(parts, [&](int64_t p) {
    softmax_part(l + p * softmax_block, length(p), temperature, top, sum[p], weighted[p]);
  });
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
