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

// Two bf16 numbers that follow each other in a sum, for dot products of pairs.
struct Pair {
  uint16_t first, second;
};

#if defined(__AVX512BF16__)
constexpr bool has_dots = true;
#else
constexpr bool has_dots = false;
#endif

#if defined(__AVX512F__)
// Row i of the result holds entry i of each of the 16 given rows of 32-bit entries.
inline void transpose(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}
using Words = __m512i;
inline Words load_words(const void* p) { return _mm512_loadu_si512(p); }
inline void store_words(void* p, Words v) { _mm512_storeu_si512(p, v); }
inline Words upper_half(Words v) { return _mm512_slli_epi32(v, 16); }
inline Words lower_cleared(Words v) { return _mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))); }
#elif defined(__AVX2__)
inline void transpose(__m256i* r) {
  __m256i t[8];
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; i++) {
    r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2x128_si256(r[i], r[4 + i], 0x20);
    t[4 + i] = _mm256_permute2x128_si256(r[i], r[4 + i], 0x31);
  }
  for (int i = 0; i < 8; i++) r[i] = t[i];
}
using Words = __m256i;
inline Words load_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_words(void* p, Words v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline Words upper_half(Words v) { return _mm256_slli_epi32(v, 16); }
inline Words lower_cleared(Words v) { return _mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))); }
#endif

// Entry (p,j) = b[j·ldb + p] for p < depth, j < columns, zero for columns up to `wide`, a multiple of the width.
template <class S, class B>
void pack_columns(S* panel, int64_t wide, const B* b, int64_t ldb, int64_t depth, int64_t columns) {
  int64_t j = 0;
#if defined(__AVX2__)
  constexpr int64_t w = width<float>;
  constexpr int64_t of_word = 4 / static_cast<int64_t>(sizeof(B));  // numbers of b in 32 bits
  for (; j + w <= columns; j += w) {
    int64_t p = 0;
    for (; p + of_word * w <= depth; p += of_word * w) {
      Words r[w];
      for (int i = 0; i < w; i++) r[i] = load_words(b + (j + i) * ldb + p);
      transpose(r);
      for (int i = 0; i < w; i++) {
        S* to = panel + (p + of_word * i) * wide + j;
        if constexpr (of_word == 1) {
          store_words(to, r[i]);
        } else {
          store_words(to, upper_half(r[i]));
          store_words(to + wide, lower_cleared(r[i]));
        }
      }
    }
    for (; p < depth; p++) {
      for (int i = 0; i < w; i++) panel[p * wide + j + i] = widen(b[(j + i) * ldb + p]);
    }
  }
#endif
  for (; j < wide; j++) {
    for (int64_t p = 0; p < depth; p++)
      panel[p * wide + j] = j < columns ? static_cast<S>(widen(b[j * ldb + p])) : S(0);
  }
}
// The same in pairs; a last step alone is paired with zero.
inline void pack_columns(Pair* panel, int64_t wide, const bf16* b, int64_t ldb, int64_t depth, int64_t columns) {
  int64_t j = 0;
#if defined(__AVX512F__)
  constexpr int64_t w = width<float>;
  for (; j + w <= columns; j += w) {
    int64_t p = 0;
    for (; p + 2 * w <= depth; p += 2 * w) {
      Words r[w];
      for (int i = 0; i < w; i++) r[i] = load_words(b + (j + i) * ldb + p);
      transpose(r);
      for (int i = 0; i < w; i++) store_words(panel + (p / 2 + i) * wide + j, r[i]);
    }
    for (; p < depth; p += 2) {
      for (int64_t i = j; i < j + w; i++) {
        const bf16* at = b + i * ldb + p;
        panel[p / 2 * wide + i] = {at[0].bits, p + 1 < depth ? at[1].bits : uint16_t{0}};
      }
    }
  }
#endif
  for (; j < wide; j++) {
    for (int64_t p = 0; p < depth; p += 2) {
      const bf16* at = b + j * ldb + p;
      panel[p / 2 * wide + j] = j < columns ? Pair{at[0].bits, p + 1 < depth ? at[1].bits : uint16_t{0}} : Pair{0, 0};
    }
  }
}

// Entry (p,j) = b[p·ldb + j], otherwise as pack_columns.
template <class S, class B>
void pack_rows(S* panel, int64_t wide, const B* b, int64_t ldb, int64_t depth, int64_t columns) {
  constexpr int64_t w = width<S>;
  for (int64_t p = 0; p < depth; p++) {
    const B* from = b + p * ldb;
    S* to = panel + p * wide;
    int64_t j = 0;
    for (; j + w <= columns; j += w) store(to + j, load(from + j));
    for (; j < wide; j++) to[j] = j < columns ? static_cast<S>(widen(from[j])) : S(0);
  }
}
inline void pack_rows(Pair* panel, int64_t wide, const bf16* b, int64_t ldb, int64_t depth, int64_t columns) {
  for (int64_t p = 0; p < depth; p += 2) {
    const bf16 *one = b + p * ldb, *two = p + 1 < depth ? one + ldb : nullptr;
    Pair* to = panel + p / 2 * wide;
    int64_t j = 0;
#if defined(__AVX512F__)
    constexpr int64_t w = width<float>;
    const auto words = [](const bf16* q) {
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)));
    };
    for (; two != nullptr && j + w <= columns; j += w) {
      store_words(to + j, _mm512_or_si512(words(one + j), upper_half(words(two + j))));
    }
#endif
    for (; j < wide; j++) {
      const bool inside = j < columns;
      to[j] = {inside ? one[j].bits : uint16_t{0}, inside && two != nullptr ? two[j].bits : uint16_t{0}};
    }
  }
}

}  // namespace furlong::cpu::FURLONG_ISA
