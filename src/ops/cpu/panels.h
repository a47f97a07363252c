// Packing for the matrix kernels (gemm.cpp): a panel holds `panel_depth` steps of a sum for the columns that one block
// of sums spans, step after step, so that a block reads it straight through. Panels live in the calling thread's
// scratch memory for the length of one product, or are those of a whole weight (ops/packs.h).
#pragma once
#include <algorithm>

#include "ops/cpu/simd.h"

namespace furlong::cpu::FURLONG_ISA {

// A block of sums: rows x vectors of columns, as many as the registers hold beside one row of the panel.
constexpr int block_rows = vector_bytes == 16 ? 4 : 6, block_vectors = vector_bytes == 64 ? 4 : 2;
constexpr int64_t panel_depth = 128;
// Numbers of one chain of a sum over columns (gemm_nt): short chains round less.
constexpr int64_t chain = 32;

// Two bf16 numbers that follow each other in a sum: for dot products of pairs, and for packs, which are widened there.
struct Pair {
  uint16_t first, second;
};

#if defined(__AVX512BF16__)
constexpr bool has_dots = true;
#else
constexpr bool has_dots = false;
#endif

#if defined(__AVX512F__)
using Words = __m512i;
inline Words load_words(const void* p) { return _mm512_loadu_si512(p); }
inline void store_words(void* p, Words v) { _mm512_storeu_si512(p, v); }
inline Words upper_half(Words v) { return _mm512_slli_epi32(v, 16); }
inline Words lower_cleared(Words v) { return _mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))); }
#elif defined(__AVX2__)
using Words = __m256i;
inline Words load_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_words(void* p, Words v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline Words upper_half(Words v) { return _mm256_slli_epi32(v, 16); }
inline Words lower_cleared(Words v) { return _mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))); }
#endif

#if defined(__AVX2__)
// out[i] = word i, of the four at `offset` bytes, of each of a vector's width of rows.
template <class Rows>
[[gnu::always_inline]] inline void turn_four(const Rows& rows, int64_t offset, Words* out) {
  // Lane l of v[i] has the words of row 4l + i, taken from memory; what is left is within lanes.
  const auto part = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset)); };
  Words v[4];
  for (int i = 0; i < 4; i++) {
#if defined(__AVX512F__)
    v[i] = _mm512_castsi128_si512(part(i));
    v[i] = _mm512_inserti32x4(v[i], part(4 + i), 1);
    v[i] = _mm512_inserti32x4(v[i], part(8 + i), 2);
    v[i] = _mm512_inserti32x4(v[i], part(12 + i), 3);
#else
    v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(part(i)), part(4 + i), 1);
#endif
  }
#if defined(__AVX512F__)
  const Words a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const Words c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  out[0] = _mm512_unpacklo_epi64(a, c);
  out[1] = _mm512_unpackhi_epi64(a, c);
  out[2] = _mm512_unpacklo_epi64(b, d);
  out[3] = _mm512_unpackhi_epi64(b, d);
#else
  const Words a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const Words c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  out[0] = _mm256_unpacklo_epi64(a, c);
  out[1] = _mm256_unpackhi_epi64(a, c);
  out[2] = _mm256_unpacklo_epi64(b, d);
  out[3] = _mm256_unpackhi_epi64(b, d);
#endif
}

// Rows at equal distances, by few addresses, which stay in registers.
struct RowsApart {
  const char* first[vector_bytes / 16];
  int64_t one, three;

  RowsApart(const char* at, int64_t distance) : one(distance), three(3 * distance) {
    for (int l = 0; l < vector_bytes / 16; l++) first[l] = at + 4 * l * distance;
  }
  const char* operator[](int row) const {
    const char* p = first[row / 4];
    return row % 4 == 0 ? p : row % 4 == 1 ? p + one : row % 4 == 2 ? p + 2 * one : p + three;
  }
};

// A vector's width of rows of b, or fewer, the last of which then stands for those beyond.
template <class B>
struct Columns {
  static constexpr int64_t w = width<float>, of_word = 4 / static_cast<int64_t>(sizeof(B));

  Columns(const B* b, int64_t ldb, int64_t columns, int64_t numbers)
      : b_(reinterpret_cast<const char*>(b)),
        distance_(ldb * static_cast<int64_t>(sizeof(B))),
        columns_(columns),
        numbers_(numbers) {}

  // Calls put(i, word at + i of the rows) for the words of one vector. Beyond the rows' ends, if it is not whole, there
  // are zeros.
  template <bool Whole, class F>
  [[gnu::always_inline]] void words(int64_t at, F&& put) const {
    if (Whole && columns_ == w) {
      const RowsApart rows(b_ + at * 4, distance_);
      ask(at);
      each_four(rows, put);
      return;
    }
    const char* rows[w];
    if constexpr (Whole) {
      for (int64_t i = 0; i < w; i++) rows[i] = b_ + std::min(i, columns_ - 1) * distance_ + at * 4;
      each_four(rows, put);
      return;
    }
    alignas(64) char tail[w][vector_bytes] = {};
    const auto bytes = static_cast<size_t>(numbers_ - at * of_word) * sizeof(B);
    for (int64_t i = 0; i < w; i++) {
      std::memcpy(tail[i], b_ + std::min(i, columns_ - 1) * distance_ + at * 4, bytes);
      rows[i] = tail[i];
    }
    each_four(rows, put);
  }
  // Of whole vectors at two places: calls put(i, word at + i, word other + i), so that two sums go on side by side.
  template <class F>
  [[gnu::always_inline]] void words_of_two(int64_t at, int64_t other, F&& put) const {
    const auto each = [&](const auto& rows) __attribute__((always_inline)) {
      for (int64_t i = 0; i < w; i += 4) {
        Words v[4], u[4];
        turn_four(rows, 4 * i, v);
        turn_four(rows, 4 * (other - at + i), u);
        for (int64_t j = 0; j < 4; j++) put(i + j, v[j], u[j]);
      }
    };
    if (columns_ == w) {
      ask(at);
      ask(other);
      each(RowsApart(b_ + at * 4, distance_));
      return;
    }
    const char* rows[w];
    for (int64_t i = 0; i < w; i++) rows[i] = b_ + std::min(i, columns_ - 1) * distance_ + at * 4;
    each(rows);
  }
  // Asks for the words of one vector of the rows that come after these.
  void ask(int64_t at) const {
    for (int64_t i = 0; i < w; i++) __builtin_prefetch(b_ + (w + i) * distance_ + at * 4);
  }

 private:
  template <class Rows, class F>
  [[gnu::always_inline]] static void each_four(const Rows& rows, F& put) {
    for (int64_t i = 0; i < w; i += 4) {
      Words v[4];
      turn_four(rows, 4 * i, v);
      for (int64_t j = 0; j < 4; j++) put(i + j, v[j]);
    }
  }

  const char* b_;
  int64_t distance_, columns_, numbers_;
};

// Calls put(word, that word of `columns` rows of b) for the words of each row, a vector's width of rows at a time,
// while the next rows are on their way.
template <class B, class F>
[[gnu::always_inline]] inline void columns_by_words(const B* b, int64_t ldb, int64_t numbers, int64_t columns,
                                                    F&& put) {
  const Columns<B> of(b, ldb, columns, numbers);
  int64_t at = 0;
  for (; (at + of.w) * of.of_word <= numbers; at += of.w) {
    of.template words<true>(at, [=](int64_t i, Words v) { put(at + i, v); });
  }
  if (at * of.of_word < numbers) {
    of.template words<false>(at, [&](int64_t i, Words v) {
      if ((at + i) * of.of_word < numbers) put(at + i, v);
    });
  }
}
#endif

// Steps of a panel: numbers of a sum, or pairs of them.
template <class E>
constexpr int64_t panel_steps = std::is_same_v<std::remove_const_t<E>, Pair> ? panel_depth / 2 : panel_depth;

// Where entry (step p, column j) of a panel lies: the columns of one vector together, step after step, so that packing
// writes straight on.
template <class E>
inline E* panel_at(E* panel, int64_t p, int64_t j) {
  constexpr int64_t w = width<std::conditional_t<std::is_same_v<E, double>, double, float>>;
  return panel + j / w * (panel_steps<E> * w) + p * w + j % w;
}

// Entry (p,j) = b[j·ldb + p] for p < depth, j < columns; columns up to `wide`, a multiple of the width, hold anything.
template <class S, class B>
void pack_columns(S* panel, [[maybe_unused]] int64_t wide, const B* b, int64_t ldb, int64_t depth, int64_t columns) {
#if defined(__AVX2__)
  constexpr int64_t w = width<float>;
  for (int64_t j = 0; j < columns; j += w) {
    const int64_t count = std::min(w, columns - j);
    if constexpr (sizeof(B) == 4) {
      columns_by_words(b + j * ldb, ldb, depth, count,
                       [=](int64_t p, Words v) { store_words(panel_at(panel, p, j), v); });
    } else {
      columns_by_words(b + j * ldb, ldb, depth, count, [=](int64_t word, Words v) {
        store_words(panel_at(panel, 2 * word, j), upper_half(v));
        if (2 * word + 1 < depth) store_words(panel_at(panel, 2 * word + 1, j), lower_cleared(v));
      });
    }
  }
#else
  for (int64_t j = 0; j < wide; j++) {
    for (int64_t p = 0; p < depth; p++) {
      *panel_at(panel, p, j) = j < columns ? static_cast<S>(widen(b[j * ldb + p])) : S(0);
    }
  }
#endif
}
#if defined(__AVX2__)
// The same in pairs; a last step alone is paired with zero.
inline void pack_columns(Pair* panel, [[maybe_unused]] int64_t wide, const bf16* b, int64_t ldb, int64_t depth,
                         int64_t columns) {
  constexpr int64_t w = width<float>;
  for (int64_t j = 0; j < columns; j += w) {
    columns_by_words(b + j * ldb, ldb, depth, std::min(w, columns - j),
                     [=](int64_t word, Words v) { store_words(panel_at(panel, word, j), v); });
  }
}
// A panel's first `steps` pairs as numbers, for the first `wide` columns, a multiple of the width.
inline void widen_pairs(float* panel, const Pair* pairs, int64_t steps, int64_t wide) {
  for (int64_t j = 0; j < wide; j += width<float>) {
    for (int64_t p = 0; p < steps; p++) {
      const Words v = load_words(panel_at(pairs, p, j));
      store_words(panel_at(panel, 2 * p, j), upper_half(v));
      store_words(panel_at(panel, 2 * p + 1, j), lower_cleared(v));
    }
  }
}
#endif

// Steps of a sum that are asked for while one is packed, where they lie apart.
constexpr int64_t steps_ahead = 8;
template <class T>
void ask_for(const T* begin, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(begin + i);
}

// Entry (p,j) = b[p·ldb + j], otherwise as pack_columns.
template <class S, class B>
void pack_rows(S* panel, int64_t wide, const B* b, int64_t ldb, int64_t depth, int64_t columns) {
  constexpr int64_t w = width<S>;
  for (int64_t p = 0; p < depth; p++) {
    const B* from = b + p * ldb;
    if (p + steps_ahead < depth) ask_for(from + steps_ahead * ldb, columns);
    int64_t j = 0;
    for (; j + w <= columns; j += w) store(panel_at(panel, p, j), load(from + j));
    for (; j < wide; j++) *panel_at(panel, p, j) = j < columns ? static_cast<S>(widen(from[j])) : S(0);
  }
}
#if defined(__AVX512BF16__)
// n <= width pairs of a number of each; two: or null, for zeros.
inline void store_pairs(Pair* to, const bf16* one, const bf16* two, int64_t n) {
  const __mmask16 lanes = lanes_below(n);
  const auto words = [&](const bf16* q) { return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, q)); };
  Words v = words(one);
  if (two != nullptr) v = _mm512_or_si512(v, upper_half(words(two)));
  if (n == width<float>) {
    store_words(to, v);
  } else {
    _mm512_mask_storeu_epi32(to, lanes, v);
  }
}

inline void pack_rows(Pair* panel, int64_t wide, const bf16* b, int64_t ldb, int64_t depth, int64_t columns) {
  constexpr int64_t w = width<float>;
  for (int64_t p = 0; p < depth; p += 2) {
    const bf16 *one = b + p * ldb, *two = p + 1 < depth ? one + ldb : nullptr;
    if (p + 2 * steps_ahead + 1 < depth) {
      for (const bf16* row : {one, two}) ask_for(row + 2 * steps_ahead * ldb, columns);
    }
    for (int64_t j = 0; j < wide; j += w) {
      Pair* to = panel_at(panel, p / 2, j);
      const int64_t n = std::min(w, columns - j);
      if (n < w) std::fill_n(to, w, Pair{});
      store_pairs(to, one + j, two == nullptr ? nullptr : two + j, n);
    }
  }
}
#endif

}  // namespace furlong::cpu::FURLONG_ISA
