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
          .memory = memory,
          .expert_rows = {},
          .routes = {}};
}

Batch placed(Exec& exec, const Batch& host) {
  if (exec.stream.device() == Device::cpu) return host;
  const auto place = [&](const char* name, const Tensor& t) { return on_device(exec.stream, exec.arena, name, t); };
  return {.tokens = place("batch.tokens", host.tokens),
          .segments = {.starts = place("batch.starts", host.segments.starts),
                       .positions = place("batch.positions", host.segments.positions),
                       .chunks = delta_chunks(host.segments)},
          .memory = host.memory,
          .expert_rows = host.expert_rows,
          .routes = host.routes};
}

Batch with_expert_rows(Exec& exec, const Batch& batch) {
  Group& group = exec.mesh.experts();
  if (exec.mesh.dispatcher() != Dispatcher::flex || group.size() == 1 || !batch.expert_rows.empty()) return batch;
  Batch known = batch;
  if (exec.stream.is_dry()) {
    known.expert_rows.assign(static_cast<size_t>(group.size()), most_rows_here(exec.mesh, batch.rows()));
    known.expert_rows[static_cast<size_t>(group.rank())] = rows_here(exec.mesh, batch.rows()).size();
    return known;
  }
  for (const std::string& rows : group.gather_bytes(std::to_string(rows_here(exec.mesh, batch.rows()).size()))) {
    known.expert_rows.push_back(std::stoll(rows));
  }
  return known;
}

}  // namespace furlong
