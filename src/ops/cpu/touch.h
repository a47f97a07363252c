// Bringing in what will be read soon in an order that processors do not foresee.
#pragma once
#include <cstdint>

namespace furlong::cpu::FURLONG_ISA {

// Reads a byte of each line of `bytes` bytes in rising order, which processors do foresee. Loads, because prefetches
// are dropped when many are on their way.
inline void touch(const void* begin, int64_t bytes) {
  constexpr int64_t line = 64;
  const char* p = static_cast<const char*>(begin);
  for (int64_t i = 0; i < bytes; i += line) asm volatile("" ::"r"(p[i]));
}

}  // namespace furlong::cpu::FURLONG_ISA
