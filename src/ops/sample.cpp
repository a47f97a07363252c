#include "ops/sample.h"

#include "ops/front.h"

namespace furlong {

void sample(Stream& stream, Tensor tokens, Tensor log_probs, Tensor logits, const std::vector<SampleRow>& rows) {
  front::expect(logits.rank() == 2 && (logits.dtype() == DType::f32 || logits.dtype() == DType::f64) &&
                    logits.dim(1) > 0 && tokens.numel() == logits.rows() && tokens.dtype() == DType::i32 &&
                    tokens.contiguous() && static_cast<int64_t>(rows.size()) == logits.rows(),
                "sample", "logits (R,V) in fp32, tokens (R) i32 and a description per row wanted", {logits, tokens});
  front::expect(!log_probs.defined() || (log_probs.numel() == logits.rows() && log_probs.contiguous() &&
                                         log_probs.dtype() == logits.dtype()),
                "sample", "log_probs (R) in fp32 wanted", {logits, log_probs});
  for (const auto& row : rows) CHECK(row.params.temperature >= 0, "sample: temperature {}", row.params.temperature);
  if (front::skip(stream, logits)) return;
  front::body(logits).sample(stream, tokens, log_probs, logits, rows);
}

}  // namespace furlong
