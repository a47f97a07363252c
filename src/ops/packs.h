// Weights in the order in which products on the CPU read them. A product with y = x Wᵀ otherwise brings the columns of
// W into that order each time, which costs more than the product itself where x has few rows. Bits are the same.
#pragma once
#include <span>
#include <unordered_map>

#include "tensor/stream.h"

namespace furlong {

// Bytes of a weight (N,K) or (E,N,K) in that order: N up to a multiple of a vector's width, K of 128. 0 where nothing
// is gained: on a GPU, and for bf16 without AVX2. w: contiguous, f32, bf16 or f64; anything else is a failed CHECK, as
// it is to pack what is not packed.
size_t packed_bytes(const Tensor& w);
// to: packed_bytes(w) > 0 bytes, 64-byte aligned.
void pack_weight(Stream&, void* to, Tensor w);

// Of some weights, to be given to a stream (Stream::use_packs) while they do not change.
class WeightPacks {
 public:
  static size_t bytes(std::span<const Tensor> weights);
  // memory: bytes(weights), 64-byte aligned. Borrowed, as the weights are.
  WeightPacks(std::span<const Tensor> weights, void* memory);
  // To be called before use, and when the weights or the memory have changed.
  void fill(Stream&) const;
  // Of exactly this tensor (address and shape), as pack_weight made it; null: there is none. Any thread may ask.
  const void* find(const Tensor& w) const;

 private:
  struct Pack {
    Tensor weight;
    char* at;
  };
  std::unordered_map<const void*, Pack> packs_;
};

}  // namespace furlong
