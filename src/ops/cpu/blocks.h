// Blocks of a product: a few rows of A by one panel of B (panels.h), with the sums in registers.
#pragma once
#include <algorithm>
#include <type_traits>

#include "ops/cpu/panels.h"
#include "ops/cpu/scratch.h"

namespace furlong::cpu::FURLONG_ISA {

// Most rows of a side.
constexpr int64_t few_rows = 32;
// What the two sides hold in a block, and a block's arithmetic: numbers in S, pairs of bf16, or pairs in the panel that
// are widened for numbers.
template <class S>
Vec<S> of_all(const S* x) {
  return broadcast(*x);
}
template <class S>
Vec<S> vector_of(const S* x) {
  return load(x);
}
template <class V>
V multiply_add(V a, V b, V c) {
  return mul_add(a, b, c);
}
#if defined(__AVX2__)
inline Vec<float> firsts(const Pair* x) { return std::bit_cast<Vec<float>>(upper_half(load_words(x))); }
inline Vec<float> seconds(const Pair* x) { return std::bit_cast<Vec<float>>(lower_cleared(load_words(x))); }
#endif
#if defined(__AVX512BF16__)
struct Pairs {
  __m512i bits;
};
inline Pairs of_all(const Pair* x) {
  int32_t word;
  std::memcpy(&word, x, sizeof word);
  return {_mm512_set1_epi32(word)};
}
inline Pairs vector_of(const Pair* x) { return {_mm512_loadu_si512(x)}; }
inline Vec<float> multiply_add(Pairs a, Pairs b, Vec<float> c) {
  return _mm512_dpbf16_ps(c, std::bit_cast<__m512bh>(a.bits), std::bit_cast<__m512bh>(b.bits));
}
#endif

template <class P>
constexpr int64_t panel_wide = block_vectors* width<std::conditional_t<std::is_same_v<P, double>, double, float>>;
// Numbers or pairs of a panel, and of the panels of one column.
template <class P>
constexpr int64_t panel_size = panel_wide<P>* panel_steps<P>;
template <class P>
int64_t column_size(int64_t k) {
  return (k + panel_depth - 1) / panel_depth * panel_steps<P>;
}

// Where `rows` rows meet a panel in `blocks` blocks, each block asks for so many vectors a step of the panel that is
// wanted after it, which they then find in a cache. Spread over the steps, because what is asked for in one go is
// dropped or holds up others. One row only waits for memory, and processors foresee that; short vectors gain nothing.
inline int64_t asked_vectors(int64_t rows, int64_t blocks) {
  if (rows == 1 || vector_bytes == 16) return 0;
  const int64_t vectors = (block_vectors + blocks - 1) / blocks;
  return vectors == 3 ? 4 : vectors;
}

// Numbers of a sum in one step of a panel.
template <class P>
constexpr int64_t of_step = std::is_same_v<P, Pair> ? 2 : 1;

// C (MR, NV vectors): the sum over the panel's steps, begun from C (`carries`), or in chains begun from 0 and added to
// C. next: the first of AV vectors of the panel that is wanted next.
template <int AV, int MR, int NV, class E, class P, class S>
void block(int64_t depth, const E* a, int64_t row, int64_t column, const P* panel, S* c, int64_t ldc, bool carries,
           bool adds, [[maybe_unused]] const P* next) {
  constexpr int w = width<S>;
  const int64_t piece = carries ? depth : chain / of_step<P>;
  int64_t p = 0;
  do {
    Vec<S> sum[MR][NV] = {};
    if (carries && adds) {
      for (int i = 0; i < MR; i++) {
        for (int v = 0; v < NV; v++) sum[i][v] = load(c + i * ldc + v * w);
      }
    }
    const auto add = [&](int64_t at, auto&& number_of) __attribute__((always_inline)) {
      decltype(number_of(panel)) b[NV];
      for (int v = 0; v < NV; v++) b[v] = number_of(panel + (v * panel_steps<P> + p) * w);
      for (int i = 0; i < MR; i++) {
        const auto x = of_all(a + i * row + at * column);
        for (int v = 0; v < NV; v++) sum[i][v] = multiply_add(x, b[v], sum[i][v]);
      }
    };
    for (const int64_t end = std::min(depth, p + piece); p < end; p++) {
      for (int v = 0; v < AV; v++) __builtin_prefetch(next + (v * panel_steps<P> + p) * w, 0, 2);
      if constexpr (std::is_same_v<E, P>) {
        add(p, [](const P* q) { return vector_of(q); });
      } else {
        add(2 * p, [](const P* q) { return firsts(q); });
        add(2 * p + 1, [](const P* q) { return seconds(q); });
      }
    }
    for (int i = 0; i < MR; i++) {
      for (int v = 0; v < NV; v++) {
        S* to = c + i * ldc + v * w;
        store(to, !carries && adds ? load(to) + sum[i][v] : sum[i][v]);
      }
    }
    adds = true;
  } while (p < depth);
}

template <class E, class P, class S>
using Block = void (*)(int64_t, const E*, int64_t, int64_t, const P*, S*, int64_t, bool, bool, const P*);
template <int AV, int NV, class E, class P, class S>
Block<E, P, S> block_of_rows(int64_t rows) {
  static_assert(block_rows <= 6);
  switch (rows) {
    case 1: return block<AV, 1, NV, E, P, S>;
    case 2: return block<AV, 2, NV, E, P, S>;
    case 3: return block<AV, 3, NV, E, P, S>;
    case 4: return block<AV, 4, NV, E, P, S>;
    case 5: return block<AV, std::min(5, block_rows), NV, E, P, S>;
    default: return block<AV, std::min(6, block_rows), NV, E, P, S>;
  }
}
// Only blocks of a whole panel's width ask.
template <class E, class P, class S>
Block<E, P, S> block_for(int64_t rows, int64_t vectors, int64_t asked) {
  static_assert(block_vectors <= 4);
  constexpr int all = block_vectors;
  switch (vectors) {
    case 1: return block_of_rows<0, 1, E, P, S>(rows);
    case 2:
      if constexpr (all > 2) return block_of_rows<0, 2, E, P, S>(rows);
      break;
    case 3: return block_of_rows<0, std::min(3, all), E, P, S>(rows);
    default: break;
  }
  switch (asked) {
    case 0: return block_of_rows<0, all, E, P, S>(rows);
    case 1: return block_of_rows<1, all, E, P, S>(rows);
    case 2: return block_of_rows<2, all, E, P, S>(rows);
    default: return block_of_rows<all, all, E, P, S>(rows);
  }
}

// Rows of A as blocks read them: element (i,p) at at[i·row + p·column].
template <class E>
struct Side {
  const E* at;
  int64_t row, column;
};

// Rows of one panel's depth, in `to`, and zero after an odd last number.
template <class S, class A>
Side<S> widened(S* to, const A* a, int64_t row, int64_t rows, int64_t depth) {
  for (int64_t i = 0; i < rows; i++) {
    const A* from = a + i * row;
    S* at = to + i * panel_depth;
    int64_t p = 0;
    for (; p + width<S> <= depth; p += width<S>) store(at + p, load(from + p));
    for (; p < depth; p++) at[p] = widen(from[p]);
    if (p % 2 != 0) at[p] = S(0);
  }
  return {to, panel_depth, 1};
}

template <class S, class A>
Side<S> side(const A* a, int64_t row, int64_t column, int64_t rows, int64_t depth) {
  if constexpr (std::is_same_v<S, A>) {
    return {a, row, column};
  } else if (column == 1) {
    return widened(scratch<S, Scratch::side>(few_rows * panel_depth), a, row, rows, depth);
  } else {
    S* to = scratch<S, Scratch::side>(few_rows * panel_depth);
    for (int64_t p = 0; p < depth; p++) {
      int64_t i = 0;
      for (; row == 1 && i + width<S> <= rows; i += width<S>) store(to + p * few_rows + i, load(a + i + p * column));
      for (; i < rows; i++) to[p * few_rows + i] = widen(a[i * row + p * column]);
    }
    return {to, 1, few_rows};
  }
}
#if defined(__AVX512BF16__)
template <>
Side<Pair> side(const bf16* a, int64_t row, int64_t column, int64_t rows, int64_t depth) {
  if (column == 1 && row % 2 == 0 && depth % 2 == 0) return {reinterpret_cast<const Pair*>(a), row / 2, 1};
  Pair* to = scratch<Pair, Scratch::side>(few_rows * panel_depth);
  for (int64_t p = 0; p < depth; p += 2) {
    for (int64_t i = 0; i < rows; i++) {
      const bf16* at = a + i * row + p * column;
      to[p / 2 * few_rows + i] = {at[0].bits, p + 1 < depth ? at[column].bits : uint16_t{0}};
    }
  }
  return {to, 1, few_rows};
}
#endif

// One panel's columns of C, which is S here, for the rows of a side. next: the panel that is wanted after it, or null.
template <class E, class P, class S>
void panel_product(const Side<E>& a, int64_t rows, int64_t steps, const P* panel, int64_t wide, S* c, int64_t ldc,
                   int64_t columns, bool carries, bool adds, const P* next) {
  constexpr int w = width<S>;
  const int64_t blocks = (rows + block_rows - 1) / block_rows, vectors = asked_vectors(rows, blocks);
  S tile[block_rows * block_vectors * w];
  for (int64_t n = 0; n < blocks; n++) {
    const int64_t i = rows * n / blocks, count = rows * (n + 1) / blocks - i;
    const int64_t asked = next == nullptr || n * vectors >= block_vectors ? 0 : vectors;
    const P* ask = asked == 0 ? nullptr : next + n * vectors * panel_steps<P> * w;
    const auto f = block_for<E, P, S>(count, wide / w, asked);
    if (columns == wide) {
      f(steps, a.at + i * a.row, a.row, a.column, panel, c + i * ldc, ldc, carries, adds, ask);
      continue;
    }
    for (int64_t r = 0; adds && r < count; r++) {
      std::copy_n(c + (i + r) * ldc, columns, tile + r * wide);
      std::fill(tile + r * wide + columns, tile + (r + 1) * wide, S(0));
    }
    f(steps, a.at + i * a.row, a.row, a.column, panel, tile, wide, carries, adds, ask);
    for (int64_t r = 0; r < count; r++) std::copy_n(tile + r * wide, columns, c + (i + r) * ldc);
  }
}

}  // namespace furlong::cpu::FURLONG_ISA
