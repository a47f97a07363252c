#include "ops/packs.h"

#include "ops/front.h"

namespace furlong {
namespace {

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

size_t packed_bytes(const Tensor& w) {
  front::expect((w.rank() == 2 || w.rank() == 3) && w.contiguous(), "packed_bytes", "w (N,K) or (E,N,K) wanted", {w});
  return w.device() == Device::cpu ? front::body(w).packed_bytes(w) : 0;
}

void pack_weight(Stream& stream, void* to, Tensor w) {
  CHECK(packed_bytes(w) > 0, "{} is not packed", w.describe());
  if (front::skip(stream, w)) return;
  front::body(w).pack_weight(stream, to, w);
}

size_t WeightPacks::bytes(std::span<const Tensor> weights) {
  size_t sum = 0;
  for (const Tensor& w : weights) sum += aligned(packed_bytes(w));
  return sum;
}

WeightPacks::WeightPacks(std::span<const Tensor> weights, void* memory) {
  char* at = static_cast<char*>(memory);
  for (const Tensor& w : weights) {
    const size_t size = packed_bytes(w);
    if (size == 0) continue;
    packs_[w.data()] = {w, at};
    at += aligned(size);
  }
}

void WeightPacks::fill(Stream& stream) const {
  for (const auto& [data, pack] : packs_) pack_weight(stream, pack.at, pack.weight);
}

const void* WeightPacks::find(const Tensor& w) const {
  const auto found = packs_.find(w.data());
  if (found == packs_.end() || found->second.weight.rank() != w.rank()) return nullptr;
  for (int d = 0; d < w.rank(); d++) {
    if (found->second.weight.dim(d) != w.dim(d)) return nullptr;
  }
  return found->second.at;
}

}  // namespace furlong
