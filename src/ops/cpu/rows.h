// How the row-wise bodies split their work and read small operands.
#pragma once
#include <algorithm>
#include <vector>

#include "ops/cpu/bodies.h"

namespace furlong::cpu::FURLONG_ISA {

// Numbers that a row-wise body handles at a time in a local array, small enough for the first-level cache.
constexpr int64_t column_tile = 256;

// Work worth a block of its own: less than of products, because a number of a row takes several times as long as one of
// a sum.
constexpr int64_t serial_row_work = serial_work / 4;

// Calls f(begin, end) over [0, n), one block a thread where the work (in multiply-adds) pays for it. Blocks begin at
// multiples of `align`. What f does for one item must not depend on its block.
template <class F>
void blocks(Stream& stream, int64_t n, int64_t work_per_item, F&& f, int64_t align = 1) {
  const int64_t groups = (n + align - 1) / align;
  const int64_t tasks = std::min({int64_t{stream.threads().size()}, groups, n * work_per_item / serial_row_work});
  if (tasks <= 1) {
    f(int64_t{0}, n);
    return;
  }
  stream.threads().parallel(tasks, [&](int64_t i) {
    const int64_t begin = groups * i / tasks * align, end = std::min(n, groups * (i + 1) / tasks * align);
    if (begin < end) f(begin, end);
  });
}

// Columns split at whole cache lines of fp32.
template <class F>
void column_blocks(Stream& stream, int64_t columns, int64_t work_per_column, F&& f) {
  blocks(stream, columns, work_per_column, f, 16);
}

// Entry i of a contiguous tensor kept in bf16 or in S.
template <class S>
S read_at(const Tensor& t, int64_t i) {
  if (t.dtype() == DType::bf16) return static_cast<S>(widen(t.as<bf16>()[i]));
  return t.as<S>()[i];
}
template <class S>
void write_at(const Tensor& t, int64_t i, S x) {
  if (t.dtype() == DType::bf16) {
    t.as<bf16>()[i] = bf16(static_cast<float>(x));
  } else {
    t.as<S>()[i] = x;
  }
}

// w + offset in S, for small weights.
template <class S>
std::vector<S> widened(const Tensor& w, S offset) {
  std::vector<S> out(static_cast<size_t>(w.numel()));
  for (int64_t i = 0; i < w.numel(); i++) out[static_cast<size_t>(i)] = offset + read_at<S>(w, i);
  return out;
}

}  // namespace furlong::cpu::FURLONG_ISA
