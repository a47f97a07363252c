#include "model/batch.h"

#include "ops/delta_rule.h"
#include "tensor/copy.h"

namespace furlong {

void BatchBuilder::add(const int32_t* tokens, int64_t count, int64_t position) {
  tokens_.insert(tokens_.end(), tokens, tokens + count);
  for (int64_t i = 0; i < count; i++) positions_.push_back(static_cast<int32_t>(position + i));
  starts_.push_back(static_cast<int32_t>(tokens_.size()));
}

void BatchBuilder::clear() {
  tokens_.clear();
  positions_.clear();
  starts_ = {0};
}

Batch BatchBuilder::batch(const MemoryView* memory) {
  return {.tokens = Tensor(tokens_.data(), DType::i32, {rows()}),
          .segments = {Tensor(starts_.data(), DType::i32, {segments() + 1}),
                       Tensor(positions_.data(), DType::i32, {rows()}), -1},
          .memory = memory};
}

Batch placed(Exec& exec, const Batch& host) {
  if (exec.stream.device() == Device::cpu) return host;
  const auto place = [&](const char* name, const Tensor& t) { return on_device(exec.stream, exec.arena, name, t); };
  return {.tokens = place("batch.tokens", host.tokens),
          .segments = {.starts = place("batch.starts", host.segments.starts),
                       .positions = place("batch.positions", host.segments.positions),
                       .chunks = delta_chunks(host.segments)},
          .memory = host.memory};
}

}  // namespace furlong
