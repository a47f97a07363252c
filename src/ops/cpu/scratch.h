// Working memory of a thread.
#pragma once
#include <cstdlib>
#include <memory>

#include "base/check.h"
#include "ops/cpu/simd.h"

namespace furlong::cpu::FURLONG_ISA {

// Who uses it, so that users within one another have their own.
enum class Scratch {
  panels,
  side,
  sums,
  delta_rows,
  delta_products,
  delta_raw,
  delta_decayed,
  delta_sums,
  delta_states,
  delta_scaled,
  delta_chunk_backward,
  delta_head_backward,
  delta_rows_backward,
  attention_scores,
  attention_sums,
  taps,
  inputs
};

// Room for `count` numbers, as large as the largest asked for so far. What was in it is lost when it grows, and when
// the same user asks again later on the same thread.
template <class T, Scratch>
T* scratch(int64_t count) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  static thread_local std::unique_ptr<void, Free> memory;
  static thread_local int64_t size = 0;
  if (size < count) {
    memory.reset(std::aligned_alloc(64, (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64));
    size = memory ? count : 0;
    CHECK(memory != nullptr, "no memory for {} numbers", count);
  }
  return static_cast<T*>(memory.get());
}

}  // namespace furlong::cpu::FURLONG_ISA
