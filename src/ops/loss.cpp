#include "ops/loss.h"

#include "ops/front.h"

namespace furlong {
namespace {

void check(const char* op, const Tensor& logits, const Tensor& targets, double temperature,
           std::initializer_list<Tensor> per_row) {
  front::expect(logits.rank() == 2 && (logits.dtype() == DType::f32 || logits.dtype() == DType::f64) &&
                    targets.numel() == logits.rows() && targets.dtype() == DType::i32 && targets.contiguous(),
                op, "logits (R,V) in fp32 and targets (R) i32 wanted", {logits, targets});
  CHECK(temperature > 0, "{}: temperature {}", op, temperature);
  for (const auto& t : per_row) {
    front::expect(!t.defined() || (t.numel() == logits.rows() && t.contiguous() && t.dtype() == logits.dtype()), op,
                  "one number per row of logits wanted, in their dtype", {logits, t});
  }
}

}  // namespace

void log_prob(Stream& stream, Tensor log_prob, Tensor lse, Tensor entropy, Tensor logits, Tensor targets,
              double temperature) {
  check("log_prob", logits, targets, temperature, {log_prob, lse, entropy});
  if (front::skip(stream, logits)) return;
  front::body(logits).log_prob(stream, log_prob, lse, entropy, logits, targets, temperature);
}

void log_prob_backward(Stream& stream, Tensor logits, Tensor d_log_prob, Tensor d_entropy, Tensor lse, Tensor entropy,
                       Tensor targets, double temperature) {
  check("log_prob_backward", logits, targets, temperature, {d_log_prob, d_entropy, lse, entropy});
  front::expect(!d_entropy.defined() || entropy.defined(), "log_prob_backward", "the entropy wanted for its gradient",
                {d_entropy, entropy});
  if (front::skip(stream, logits)) return;
  front::body(logits).log_prob_backward(stream, logits, d_log_prob, d_entropy, lse, entropy, targets, temperature);
}

}  // namespace furlong
