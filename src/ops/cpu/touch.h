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

// Memory that will be wanted soon, asked for a few lines at a time by work that needs none: many at once are dropped.
class Ahead {
 public:
  explicit Ahead(const void* begin) : at_(static_cast<const char*>(begin)) {}  // null asks for nothing
  [[gnu::always_inline]] void ask(int64_t lines) {
    if (at_ == nullptr) return;
    for (int64_t i = 0; i < lines; i++) __builtin_prefetch(at_ + i * line_bytes, 0, 2);
    at_ += lines * line_bytes;
  }

 private:
  const char* at_;
};

}  // namespace furlong::cpu::FURLONG_ISA
