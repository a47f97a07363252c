// Packing for the matrix kernels (gemm.cpp): a panel holds `panel_depth` steps of a sum for the columns that one block
// of sums spans, step after step, so that a block reads it straight through. Panels live in the calling thread's
// scratch memory for the length of one product: no copy of a weight outlives it.
#pragma once
#include <algorithm>

#include "ops/cpu/simd.h"

namespace furlong::cpu::FURLONG_ISA {

// A block of sums: rows x vectors of columns, as many as the registers hold beside one row of the panel.
constexpr int block_rows = vector_bytes == 16 ? 4 : 6, block_vectors = vector_bytes == 64 ? 4 : 2;
constexpr int64_t panel_depth = 128;
// Numbers of one chain of a sum over columns (gemm_nt): short chains round less.
constexpr int64_t chain = 32;

// Two bf16 numbers that follow each other in a sum, for dot products of pairs.
struct Pair {
  uint16_t first, second;
};

#if defined(__AVX512BF16__)
constexpr bool has_dots = true;
#else
constexpr bool has_dots = false;
#endif

// Calls put(i, word i of each of the given rows) for the words of one vector; `rows` points at one vector each.
#if defined(__AVX512F__)
using Words = __m512i;
inline void store_words(void* p, Words v) { _mm512_storeu_si512(p, v); }
inline Words upper_half(Words v) { return _mm512_slli_epi32(v, 16); }
inline Words lower_cleared(Words v) { return _mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))); }
template <class F>
inline void transpose(const char* const* rows, int64_t offset, F&& put) {
  // Lane l of v[i] has words 4q to 4q+3 of row 4l + i, taken from memory; what is left is within lanes.
  for (int q = 0; q < 4; q++) {
    __m512i v[4];
    for (int i = 0; i < 4; i++) {
      const auto part = [&](int row) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset + 16 * q));
      };
      v[i] = _mm512_castsi128_si512(part(i));
      v[i] = _mm512_inserti32x4(v[i], part(4 + i), 1);
      v[i] = _mm512_inserti32x4(v[i], part(8 + i), 2);
      v[i] = _mm512_inserti32x4(v[i], part(12 + i), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    put(4 * q, _mm512_unpacklo_epi64(a, c));
    put(4 * q + 1, _mm512_unpackhi_epi64(a, c));
    put(4 * q + 2, _mm512_unpacklo_epi64(b, d));
    put(4 * q + 3, _mm512_unpackhi_epi64(b, d));
  }
}
#elif defined(__AVX2__)
using Words = __m256i;
inline void store_words(void* p, Words v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline Words upper_half(Words v) { return _mm256_slli_epi32(v, 16); }
inline Words lower_cleared(Words v) { return _mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))); }
template <class F>
inline void transpose(const char* const* rows, int64_t offset, F&& put) {
  // Lane l of v[i] has words 4q to 4q+3 of row 4l + i.
  for (int q = 0; q < 2; q++) {
    __m256i v[4];
    for (int i = 0; i < 4; i++) {
      const auto part = [&](int row) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + offset + 16 * q));
      };
      v[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(part(i)), part(4 + i), 1);
    }
    const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
    const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
    put(4 * q, _mm256_unpacklo_epi64(a, c));
    put(4 * q + 1, _mm256_unpackhi_epi64(a, c));
    put(4 * q + 2, _mm256_unpacklo_epi64(b, d));
    put(4 * q + 3, _mm256_unpackhi_epi64(b, d));
  }
}
#endif

#if defined(__AVX2__)
// Calls put(word, that word of `columns` rows of b, the last row's beyond them) for `words` words of each row, a
// vector's width of rows at a time, while the next rows are on their way.
template <class B>
struct Columns {
  static constexpr int64_t w = width<float>, of_word = 4 / static_cast<int64_t>(sizeof(B));

  Columns(const B* b, int64_t ldb, int64_t columns, int64_t numbers)
      : numbers_(numbers), next_(w * ldb * static_cast<int64_t>(sizeof(B))) {
    for (int64_t i = 0; i < w; i++) {
      rows_[i] = reinterpret_cast<const char*>(b + std::min(i, columns - 1) * ldb);
      tails_[i] = tail_[i];
    }
  }

  // Calls put(i, word at + i of the rows) for the words of one vector. Beyond the rows' ends, if it is not whole, there
  // are zeros.
  template <bool Whole, class F>
  void words(int64_t at, F&& put) {
    if constexpr (Whole) {
      const char* rows[w];  // of their own, or each store of `put` might have changed them
      for (int64_t i = 0; i < w; i++) rows[i] = rows_[i];
      for (int64_t i = 0; i < w; i++) __builtin_prefetch(rows[i] + next_ + at * 4);
      transpose(rows, at * 4, put);
      return;
    }
    std::memset(tail_, 0, sizeof tail_);
    const auto bytes = static_cast<size_t>(numbers_ - at * of_word) * sizeof(B);
    for (int64_t i = 0; i < w; i++) std::memcpy(tail_[i], rows_[i] + at * 4, bytes);
    transpose(tails_, 0, put);
  }

 private:
  int64_t numbers_, next_;
  const char* rows_[w];
  const char* tails_[w];
  alignas(64) char tail_[w][vector_bytes];
};

template <class B, class F>
[[gnu::always_inline]] inline void columns_by_words(const B* b, int64_t ldb, int64_t numbers, int64_t columns,
                                                    F&& put) {
  Columns<B> of(b, ldb, columns, numbers);
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

// Where entry (step p, column j) of a panel lies: the columns of one vector together, step after step, so that packing
// writes straight on.
template <class E>
inline E* panel_at(E* panel, int64_t p, int64_t j) {
  constexpr int64_t w = width<std::conditional_t<std::is_same_v<E, double>, double, float>>;
  return panel + j / w * (panel_depth * w) + p * w + j % w;
}

// Entry (p,j) = b[j·ldb + p] for p < depth, j < columns; columns up to `wide`, a multiple of the width, hold anything.
template <class S, class B>
void pack_columns(S* panel, int64_t wide, const B* b, int64_t ldb, int64_t depth, int64_t columns) {
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
#if defined(__AVX512BF16__)
// The same in pairs; a last step alone is paired with zero.
inline void pack_columns(Pair* panel, int64_t wide, const bf16* b, int64_t ldb, int64_t depth, int64_t columns) {
  constexpr int64_t w = width<float>;
  for (int64_t j = 0; j < columns; j += w) {
    columns_by_words(b + j * ldb, ldb, depth, std::min(w, columns - j),
                     [=](int64_t word, Words v) { store_words(panel_at(panel, word, j), v); });
  }
}
#endif

// Entry (p,j) = b[p·ldb + j], otherwise as pack_columns.
template <class S, class B>
void pack_rows(S* panel, int64_t wide, const B* b, int64_t ldb, int64_t depth, int64_t columns) {
  constexpr int64_t w = width<S>;
  for (int64_t p = 0; p < depth; p++) {
    const B* from = b + p * ldb;
    int64_t j = 0;
    for (; j + w <= columns; j += w) store(panel_at(panel, p, j), load(from + j));
    for (; j < wide; j++) *panel_at(panel, p, j) = j < columns ? static_cast<S>(widen(from[j])) : S(0);
  }
}
#if defined(__AVX512BF16__)
inline void pack_rows(Pair* panel, int64_t wide, const bf16* b, int64_t ldb, int64_t depth, int64_t columns) {
  for (int64_t p = 0; p < depth; p += 2) {
    const bf16 *one = b + p * ldb, *two = p + 1 < depth ? one + ldb : nullptr;
    int64_t j = 0;
    constexpr int64_t w = width<float>;
    const auto words = [](const bf16* q) {
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)));
    };
    for (; two != nullptr && j + w <= columns; j += w) {
      store_words(panel_at(panel, p / 2, j), _mm512_or_si512(words(one + j), upper_half(words(two + j))));
    }
    for (; j < wide; j++) {
      const bool inside = j < columns;
      *panel_at(panel, p / 2, j) = {inside ? one[j].bits : uint16_t{0},
                                    inside && two != nullptr ? two[j].bits : uint16_t{0}};
    }
  }
}

#endif

}  // namespace furlong::cpu::FURLONG_ISA
