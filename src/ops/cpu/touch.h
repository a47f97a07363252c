// Bringing in what will be read soon in an order that processors do not foresee.
#pragma once
#include <cstdint>

namespace furlong::cpu::FURLONG_ISA {

constexpr int64_t line_bytes = 64;  // of a cache

// Reads a byte of each line of `bytes` bytes in rising order, which processors do foresee. Loads, because prefetches
// are dropped when many are on their way.
inline void touch(const void* begin, int64_t bytes) {
  const char* p = static_cast<const char*>(begin);
  for (int64_t i = 0; i < bytes; i += line_bytes) asm volatile("" ::"r"(p[i]));
}

// The same at four places side by side: one core alone then takes more of what memory can send.
inline void touch_in_quarters(const void* begin, int64_t bytes) {
  const int64_t quarter = bytes / (4 * line_bytes) * line_bytes;
  const char* p = static_cast<const char*>(begin);
  for (int64_t i = 0; i < quarter; i += line_bytes) {
    for (int64_t part = 0; part < 4; part++) asm volatile("" ::"r"(p[part * quarter + i]));
  }
  touch(p + 4 * quarter, bytes - 4 * quarter);
}

}  // namespace furlong::cpu::FURLONG_ISA
