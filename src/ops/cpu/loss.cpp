#include <algorithm>

#include "ops/cpu/softmax_row.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// The row's target; -1: not among these logits.
int32_t target(const Tensor& targets, int64_t row, int64_t vocabulary) {
  const int32_t y = targets.as<int32_t>()[row];
  CHECK(y >= -1 && y < vocabulary, "target {} at row {} of {} logits", y, row, vocabulary);
  return y;
}

}  // namespace

void log_prob(Stream& stream, Tensor log_prob, Tensor lse, Tensor entropy, Tensor logits, Tensor targets,
              double temperature) {
  dispatch(logits.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = logits.dim(1);
    const S temp = static_cast<S>(temperature);
    const S* l = logits.as<S>();
    each_row(stream, logits.rows(), [&](int64_t r) {
      const S* row = l + r * logits.row_stride();
      const auto softmax = row_softmax(stream, row, n, temp);
      const int32_t y = target(targets, r, n);
      log_prob.as<S>()[r] = softmax.log_prob(y < 0 ? S(0) : row[y], temp);
      lse.as<S>()[r] = softmax.lse();
      if (entropy.defined()) entropy.as<S>()[r] = softmax.entropy;
    });
  });
}

void log_prob_backward(Stream& stream, Tensor logits, Tensor d_log_prob, Tensor d_entropy, Tensor lse, Tensor entropy,
                       Tensor targets, double temperature) {
  dispatch(logits.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = logits.dim(1), parts = (n + softmax_block - 1) / softmax_block;
    const S temp = static_cast<S>(temperature);
    S* l = logits.as<S>();
    each_row(stream, logits.rows(), [&](int64_t r) {
      S* row = l + r * logits.row_stride();
      const S d = d_log_prob.as<S>()[r], top = lse.as<S>()[r];
      const S de = d_entropy.defined() ? d_entropy.as<S>()[r] : S(0);
      const S h = d_entropy.defined() ? entropy.as<S>()[r] : S(0);
      over_temperature(temp, [&](const auto& scaled) {
        stream.threads().parallel(parts, [&](int64_t part) {
          const int64_t begin = part * softmax_block, end = std::min(n, begin + softmax_block);
          for (int64_t i = begin; i < end; i++) {
            const S log_p = scaled(row[i]) - top, p = exp_fast(log_p);
            const S slope = p == S(0) ? S(0) : p * (log_p + h);
            row[i] = scaled(-(d * p + de * slope));
          }
        });
      });
      if (const int32_t y = target(targets, r, n); y >= 0) row[y] += d / temp;
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
