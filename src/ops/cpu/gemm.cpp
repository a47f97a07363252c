#include "ops/cpu/gemm.h"

#include <algorithm>
#include <type_traits>

#include "ops/cpu/blocks.h"
#include "ops/cpu/touch.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

constexpr int rows_nn = vector_bytes == 64 ? 6 : 3, vectors_nn = vector_bytes == 64 ? 4 : 3;
// Fewer rows than this multiply B as it lies: to pack it would cost as much.
constexpr int64_t rows_in_place = 8, rows_in_place_fp32 = 48;
// As few rows multiply columns of B as these are turned, in registers.
constexpr int rows_turned = vector_bytes == 64 ? 8 : 4;
// So few have registers for two chains each.
constexpr int rows_of_two = vector_bytes == 64 ? 8 : 2;
// Columns packed together, rows of A that meet them together (all, if there are few), rows of Aᵀ turned together, and
// rows of fp32 sums kept where C is narrower.
constexpr int64_t panel_columns = 256, row_tile = 24, row_chunk = 384, kept_rows = 480;
constexpr int64_t page_bytes = 4096;
static_assert(row_tile <= few_rows);

template <int MR, int NV, class A, class B, class C>
void block_nn(int64_t n, int64_t k, const A* a, int64_t row, int64_t column, const B* b, int64_t ldb, C* c, int64_t ldc,
              bool accumulate) {
  using S = Acc<B>;
  Vec<S> sum[MR][NV] = {};
  constexpr int w = width<S>;
  const int64_t tail = n - (NV - 1) * w;  // numbers in the last vector
  const bool partial = tail < w;
  if (accumulate) {
    for (int i = 0; i < MR; i++) {
      for (int v = 0; v < NV; v++) {
        const C* p = c + i * ldc + v * w;
        sum[i][v] = partial && v == NV - 1 ? load_partial(p, tail) : load(p);
      }
    }
  }
  for (int64_t p = 0; p < k; p++) {
    Vec<S> vb[NV];
    for (int v = 0; v < NV; v++) {
      const B* q = b + p * ldb + v * w;
      vb[v] = partial && v == NV - 1 ? load_partial(q, tail) : load(q);
    }
    for (int i = 0; i < MR; i++) {
      const Vec<S> va = broadcast(static_cast<S>(widen(a[i * row + p * column])));
      for (int v = 0; v < NV; v++) sum[i][v] = mul_add(va, vb[v], sum[i][v]);
    }
  }
  for (int i = 0; i < MR; i++) {
    for (int v = 0; v < NV; v++) {
      C* p = c + i * ldc + v * w;
      if (partial && v == NV - 1) {
        store_partial(p, sum[i][v], tail);
      } else {
        store(p, sum[i][v]);
      }
    }
  }
}

template <int MR, class A, class B, class C>
void row_nn(int64_t n, int64_t k, const A* a, int64_t row, int64_t column, const B* b, int64_t ldb, C* c, int64_t ldc,
            bool accumulate) {
  constexpr int w = width<Acc<B>>, vectors = MR <= 2 && vector_bytes == 64 ? 2 * vectors_nn : vectors_nn;
  int64_t j = 0;
  for (; j + vectors * w <= n; j += vectors * w) {
    block_nn<MR, vectors>(vectors * w, k, a, row, column, b + j, ldb, c + j, ldc, accumulate);
  }
  for (; vectors != vectors_nn && j + vectors_nn * w <= n; j += vectors_nn * w) {
    block_nn<MR, vectors_nn>(vectors_nn * w, k, a, row, column, b + j, ldb, c + j, ldc, accumulate);
  }
  for (; j < n; j += w) {
    block_nn<MR, 1>(std::min<int64_t>(w, n - j), k, a, row, column, b + j, ldb, c + j, ldc, accumulate);
  }
}

// Calls f<rows>(), rows <= Most.
template <int Most, class F>
void rows_of(int64_t rows, F&& f) {
  if constexpr (Most > 1) {
    if (rows < Most) return rows_of<Most - 1>(rows, f);
  }
  f.template operator()<Most>();
}

#if defined(__AVX2__)
// to[p·rows + i] = word p of row i, for the first p, a multiple of four, of `words`; returns how many. What follows
// them in `to` may be overwritten, by eight words at most.
inline int64_t steps_of_words(uint32_t* to, const void* from, int64_t distance, int64_t rows, int64_t words) {
  const auto load_four = [&](int64_t i, int64_t p) {
    return i < rows ? _mm_loadu_si128(
                          reinterpret_cast<const __m128i*>(static_cast<const char*>(from) + i * distance + p * 4))
                    : _mm_setzero_si128();
  };
  int64_t p = 0;
  for (; p + 4 <= words; p += 4) {
    // A step's last words run into the next step, which is written after it.
    __m128i step[4][2];
    for (int64_t half = 0; half < (rows > 4 ? 2 : 1); half++) {
      const __m128i a = load_four(4 * half, p), b = load_four(4 * half + 1, p), c = load_four(4 * half + 2, p),
                    d = load_four(4 * half + 3, p);
      const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d), AB = _mm_unpackhi_epi32(a, b),
                    CD = _mm_unpackhi_epi32(c, d);
      step[0][half] = _mm_unpacklo_epi64(ab, cd);
      step[1][half] = _mm_unpackhi_epi64(ab, cd);
      step[2][half] = _mm_unpacklo_epi64(AB, CD);
      step[3][half] = _mm_unpackhi_epi64(AB, CD);
    }
    for (int64_t j = 0; j < 4; j++) {
      uint32_t* at = to + (p + j) * rows;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), step[j][0]);
      if (rows > 4) _mm_storeu_si128(reinterpret_cast<__m128i*>(at + 4), step[j][1]);
    }
  }
  return p;
}
#endif

// A few rows of A at whole length, step after step, widened or in pairs where they are not so already.
template <class E, class A>
const E* steps_of_rows(const A* a, int64_t lda, int64_t rows, int64_t depth) {
  if constexpr (std::is_same_v<E, A>) {
    if (rows == 1) return a;
  }
  constexpr int64_t of_step = std::is_same_v<E, Pair> ? 2 : 1;
  const int64_t steps = (depth + of_step - 1) / of_step;
  E* to = scratch<E, Scratch::side>(std::max(rows * steps + 8, few_rows * panel_depth));
  int64_t done = 0;
#if defined(__AVX2__)
  if constexpr (std::is_same_v<E, A> || of_step == 2) {
    done = steps_of_words(reinterpret_cast<uint32_t*>(to), a, lda * static_cast<int64_t>(sizeof(A)), rows,
                          depth / of_step);
  }
#endif
  for (int64_t i = 0; i < rows; i++) {
    const A* from = a + i * lda;
    for (int64_t p = done; p < steps; p++) {
      if constexpr (std::is_same_v<E, Pair>) {
        to[p * rows + i] = {from[2 * p].bits, 2 * p + 1 < depth ? from[2 * p + 1].bits : uint16_t{0}};
      } else {
        to[p * rows + i] = widen(from[p]);
      }
    }
  }
  return to;
}

// Rows of A of which each step's numbers follow each other (a transpose), as tiles of row_tile rows, step after step.
// Steps lie pages apart, which processors do not foresee: those to come are asked for.
template <class E, class A>
const E* tiles_of_steps(const A* a, int64_t column, int64_t rows, int64_t depth) {
  const int64_t steps = (depth + of_step<E> - 1) / of_step<E>, whole = (rows + row_tile - 1) / row_tile * row_tile;
  E* to = scratch<E, Scratch::side>(std::max(whole * panel_steps<E>, few_rows * panel_depth));
  for (int64_t s = 0; s < steps; s++) {
    const A* step = a + s * of_step<E> * column;
    if (s + steps_ahead < steps) {
      for (int64_t q = 0; q < of_step<E>; q++) ask_for(step + (steps_ahead * of_step<E> + q) * column, rows);
    }
    for (int64_t i = 0; i < rows; i += row_tile) {
      E* at = to + i * steps + s * row_tile;
      const int64_t count = std::min(row_tile, rows - i);
      for (int64_t r = 0; r < count; r += width<float>) {
        const int64_t n = std::min<int64_t>(count - r, width<float>);
        if constexpr (std::is_same_v<E, Pair>) {
          store_pairs(at + r, step + i + r, 2 * s + 1 < depth ? step + i + r + column : nullptr, n);
        } else if (n == width<E>) {
          store(at + r, load(step + i + r));
        } else {
          store_partial(at + r, load_partial(step + i + r, n), n);
        }
      }
    }
  }
  return to;
}

// C (M,N), kept in S, [+]= A · B with B packed here. Transposed: B is (N,K), and each panel's part of a sum begins from
// 0; otherwise (K,N), and a sum goes on from panel to panel.
template <bool Transposed, class E, class S, class A, class B>
void packed(int64_t m, int64_t n, int64_t k, const A* a, int64_t row, int64_t column, const B* b, int64_t ldb, S* c,
            int64_t ldc, bool accumulate) {
  constexpr int64_t wide = panel_wide<E>, w = width<S>;
  const bool few = m <= few_rows;
  const int64_t tile = few ? few_rows : row_tile, together = few ? wide : panel_columns / wide * wide;
  E* panels = scratch<E, Scratch::panels>(std::min(together, (n + wide - 1) / wide * wide) * panel_steps<E>);
  // Aᵀ in chunks of rows, for which C stays in a cache from one panel to the next. Numbers that are multiplied as they
  // are stored are read where they lie, unless each step's are on another page.
  const bool apart = !std::is_same_v<E, A> || column * static_cast<int64_t>(sizeof(A)) >= page_bytes;
  const bool turns = vector_bytes == 64 && !Transposed && row == 1 && column != 1 && !few && apart;
  const int64_t chunk = turns ? row_chunk : std::max<int64_t>(m, 1);
  for (int64_t j0 = 0; j0 < n; j0 += together) {
    const int64_t j1 = std::min(n, j0 + together);
    const auto width_at = [&](int64_t j) { return std::min(wide, (j1 - j + w - 1) / w * w); };
    for (int64_t i0 = 0; i0 < m; i0 += chunk) {
      const int64_t i1 = std::min(m, i0 + chunk);
      for (int64_t p0 = 0; p0 < k || p0 == 0; p0 += panel_depth) {
        const int64_t depth = std::min(panel_depth, k - p0), steps = (depth + of_step<E> - 1) / of_step<E>;
        const auto panel_of = [&](int64_t j) { return panels + (j - j0) * panel_steps<E>; };
        for (int64_t j = j0; j < j1; j += wide) {
          const int64_t columns = std::min(wide, j1 - j);
          if constexpr (Transposed) {
            pack_columns(panel_of(j), width_at(j), b + j * ldb + p0, ldb, depth, columns);
          } else {
            pack_rows(panel_of(j), width_at(j), b + p0 * ldb + j, ldb, depth, columns);
          }
        }
        const E* turned = turns ? tiles_of_steps<E>(a + i0 + p0 * column, column, i1 - i0, depth) : nullptr;
        for (int64_t i = i0; i < i1; i += tile) {
          const int64_t rows = std::min(tile, i1 - i);
          const Side<E> rows_of_a = turns ? Side<E>{turned + (i - i0) * steps, 1, row_tile}
                                          : side<E>(a + i * row + p0 * column, row, column, rows, depth);
          for (int64_t j = j0; j < j1; j += wide) {
            panel_product<E, E, S>(rows_of_a, rows, steps, panel_of(j), width_at(j), c + i * ldc + j, ldc,
                                   std::min(wide, j1 - j), !Transposed, accumulate || p0 > 0, nullptr);
          }
        }
      }
    }
  }
}

// The same, transposed, with the panels of B from pack_nt: the depths of the first columns after each other.
template <class E, class P, class S, class A>
void product_of_packs(int64_t m, int64_t n, int64_t k, const A* a, int64_t lda, const P* packs, S* c, int64_t ldc,
                      bool accumulate, const P* after) {
  constexpr int64_t wide = panel_wide<E>, w = width<S>;
  const bool few = m <= few_rows;
  const int64_t tile = few ? few_rows : row_tile, together = few ? wide : panel_columns / wide * wide;
  // Where numbers are widened: those of a few rows once, one panel's depth of them after the other, and panels for many
  // rows together.
  constexpr bool widens = !std::is_same_v<E, P>;
  const E* once = nullptr;
  E* panels = nullptr;
  if constexpr (widens) {
    if (!few) {
      panels = scratch<E, Scratch::panels>(together * panel_depth);
    } else {
      E* to = scratch<E, Scratch::side>(few_rows * (k + panel_depth));
      for (int64_t p0 = 0; p0 < k; p0 += panel_depth) {
        widened(to + p0 * m, a + p0, lda, m, std::min(panel_depth, k - p0));
      }
      once = to;
    }
  }
  for (int64_t j0 = 0; j0 < n; j0 += together) {
    const int64_t j1 = std::min(n, j0 + together);
    for (int64_t p0 = 0; p0 < k || p0 == 0; p0 += panel_depth) {
      const int64_t depth = std::min(panel_depth, k - p0), steps = (depth + of_step<P> - 1) / of_step<P>;
      const auto panel_of = [&](int64_t j) { return packs + j * column_size<P>(k) + p0 / panel_depth * panel_size<P>; };
      if constexpr (widens) {
        for (int64_t j = j0; panels != nullptr && j < j1; j += wide) {
          widen_pairs(panels + (j - j0) * panel_depth, panel_of(j), steps, std::min(wide, (j1 - j + w - 1) / w * w));
        }
      }
      for (int64_t i = 0; i < m; i += tile) {
        const int64_t rows = std::min(tile, m - i);
        const Side<E> rows_of_a =
            once != nullptr ? Side<E>{once + p0 * m, panel_depth, 1} : side<E>(a + i * lda + p0, lda, 1, rows, depth);
        for (int64_t j = j0; j < j1; j += wide) {
          const int64_t columns = std::min(wide, j1 - j), covered = (columns + w - 1) / w * w;
          S* to = c + i * ldc + j;
          if (widens && panels != nullptr) {
            panel_product<E, E, S>(rows_of_a, rows, depth, panels + (j - j0) * panel_depth, covered, to, ldc, columns,
                                   false, accumulate || p0 > 0, nullptr);
          } else {
            const bool last = j1 == n && p0 + panel_depth >= k;
            const P* next = !few ? nullptr : last ? after : panel_of(j) + panel_size<P>;
            panel_product<E, P, S>(rows_of_a, rows, steps, panel_of(j), covered, to, ldc, columns, false,
                                   accumulate || p0 > 0, next);
          }
        }
      }
    }
  }
}

// What is multiplied: pairs where the instruction set has their dot products, otherwise single numbers.
template <class A, class B, class C>
using Element = std::conditional_t<has_dots && std::is_same_v<A, bf16> && std::is_same_v<B, bf16>, Pair, Acc<C>>;
// What packs hold: pairs of bf16 always (as large as the weight), where vectors widen them.
template <class B>
using Stored = std::conditional_t<vector_bytes != 16 && std::is_same_v<B, bf16>, Pair, Acc<B>>;

// Both with C of any type: sums are kept in S until they are whole. packs: of B, from its first column on, or null; A
// is of its type then.
template <bool Transposed, class A, class B, class C>
void multiply(int64_t m, int64_t n, int64_t k, const A* a, int64_t row, int64_t column, const B* b, int64_t ldb, C* c,
              int64_t ldc, bool accumulate, const void* packs = nullptr, const void* after = nullptr) {
  using S = Acc<C>;
  using E = Element<A, B, C>;
  // Rows from i0, columns from j0 of the product into sums.
  const auto part = [&](int64_t i0, int64_t j0, int64_t rows, int64_t columns, S* sums, int64_t ld) {
    if constexpr (Transposed && std::is_same_v<A, B>) {
      if (packs != nullptr) {
        using P = Stored<B>;
        const P *all = static_cast<const P*>(packs), *own = all + j0 * column_size<P>(k);
        const P* next = j0 + columns < n ? own + columns * column_size<P>(k) : static_cast<const P*>(after);
        product_of_packs<E, P, S>(rows, columns, k, a + i0 * row, row, own, sums, ld, accumulate, next);
        return;
      }
    }
    packed<Transposed, E, S>(rows, columns, k, a + i0 * row, row, column, b + (Transposed ? j0 * ldb : j0), ldb, sums,
                             ld, accumulate);
  };
  if constexpr (std::is_same_v<C, S>) {
    part(0, 0, m, n, c, ldc);
  } else {
    for (int64_t j0 = 0; j0 < n; j0 += panel_columns) {
      const int64_t columns = std::min(panel_columns, n - j0);
      for (int64_t i0 = 0; i0 < m; i0 += kept_rows) {
        const int64_t rows = std::min(kept_rows, m - i0);
        S* sums = scratch<S, Scratch::sums>(rows * columns);
        C* to = c + i0 * ldc + j0;
        for (int64_t i = 0; accumulate && i < rows; i++) {
          for (int64_t j = 0; j < columns; j++) sums[i * columns + j] = widen(to[i * ldc + j]);
        }
        part(i0, j0, rows, columns, sums, columns);
        for (int64_t i = 0; i < rows; i++) {
          for (int64_t j = 0; j < columns; j++) to[i * ldc + j] = narrow<C>(sums[i * columns + j]);
        }
      }
    }
  }
}

#if defined(__AVX2__)
// C (MR rows, `columns` <= the width) [+]= A · Bᵀ, in the order of `block`: chains begun from 0 and added up. Meanwhile
// as many lines are asked for as are read.
template <int MR, class E, class B, class C>
void turned_columns(int64_t k, const E* a, const B* b, int64_t ldb, C* c, int64_t ldc, int64_t columns, bool accumulate,
                    Ahead& ahead) {
  constexpr int64_t w = width<float>, of_word = Columns<B>::of_word, step = std::is_same_v<E, float> ? 1 : 2;
  const Columns<B> of(b, ldb, columns, k);
  Vec<float> total[MR] = {};
  for (int i = 0; accumulate && i < MR; i++) total[i] = load_partial(c + i * ldc, columns);
  const auto add = [&](Vec<float> * sum, int64_t at, Words v) __attribute__((always_inline)) {
    if constexpr (std::is_same_v<E, float>) {
      for (int i = 0; i < MR; i++) sum[i] = mul_add(broadcast(a[at * MR + i]), std::bit_cast<Vec<float>>(v), sum[i]);
    } else {
#if defined(__AVX512BF16__)
      for (int i = 0; i < MR; i++) sum[i] = multiply_add(of_all(a + at / 2 * MR + i), Pairs{v}, sum[i]);
#endif
    }
  };
  int64_t p = 0;
  // Two chains at a time: one alone waits for its own multiply-adds.
  for (; MR <= rows_of_two && p + 2 * chain <= k; p += 2 * chain) {
    Vec<float> one[MR] = {}, two[MR] = {};
    for (int64_t q = p; q < p + chain; q += w * of_word) {
      ahead.ask(2 * columns * vector_bytes / line_bytes);
      of.words_of_two(
          q / of_word, (q + chain) / of_word, [&](int64_t i, Words v, Words u) __attribute__((always_inline)) {
            const int64_t at = q + i * of_word, other = at + chain;
            if constexpr (of_word == step) {
              add(one, at, v);
              add(two, other, u);
            } else {
              add(one, at, upper_half(v));
              add(two, other, upper_half(u));
              add(one, at + 1, lower_cleared(v));
              add(two, other + 1, lower_cleared(u));
            }
          });
    }
    for (int i = 0; i < MR; i++) total[i] = (accumulate || p > 0 ? total[i] + one[i] : one[i]) + two[i];
  }
  for (; p < k; p += chain) {
    Vec<float> sum[MR] = {};
    for (int64_t q = p; q < std::min(k, p + chain); q += w * of_word) {
      const int64_t left = k - q;
      ahead.ask(columns * vector_bytes / line_bytes);
      const auto words = [&]<bool Whole>() __attribute__((always_inline)) {
        of.template words<Whole>(
            q / of_word, [&](int64_t i, Words v) __attribute__((always_inline)) {
              if constexpr (of_word == step) {
                if (Whole || i * step < left) add(sum, q + i * step, v);
              } else {
                if (Whole || 2 * i < left) add(sum, q + 2 * i, upper_half(v));
                if (Whole || 2 * i + 1 < left) add(sum, q + 2 * i + 1, lower_cleared(v));
              }
            });
      };
      if (left >= w * of_word) {
        words.template operator()<true>();
      } else {
        words.template operator()<false>();
      }
    }
    for (int i = 0; i < MR; i++) total[i] = accumulate || p > 0 ? total[i] + sum[i] : sum[i];
  }
  for (int i = 0; i < MR; i++) {
    if (columns == w) {
      store(c + i * ldc, total[i]);
    } else {
      store_partial(c + i * ldc, total[i], columns);
    }
  }
}

// rows: steps_of_rows of A.
template <class E, class B, class C>
void turned(int64_t m, int64_t n, int64_t k, const E* rows, const B* b, int64_t ldb, C* c, int64_t ldc, bool accumulate,
            const void* after) {
  constexpr int64_t w = width<float>;
  Ahead ahead(after);
  rows_of<rows_turned>(m, [&]<int MR>() {
    for (int64_t j = 0; j < n; j += w) {
      turned_columns<MR>(k, rows, b + j * ldb, ldb, c + j, ldc, std::min(w, n - j), accumulate, ahead);
    }
  });
}
#endif

}  // namespace

template <class A, class B, class C>
void gemm_nt(int64_t m, int64_t n, int64_t k, const A* a, int64_t lda, const B* b, int64_t ldb, C* c, int64_t ldc,
             bool accumulate, const void* packed, const void* after) {
#if defined(__AVX2__)
  if (packed == nullptr && m <= rows_turned) {
    using E = Element<A, B, C>;
    turned(m, n, k, steps_of_rows<E>(a, lda, m, k), b, ldb, c, ldc, accumulate, after);
    return;
  }
#endif
  multiply<true>(m, n, k, a, lda, 1, b, ldb, c, ldc, accumulate, packed, after);
}

template <class A, class C>
RowsNt<A, C>::RowsNt(int64_t m, int64_t k, const A* a, int64_t lda) : m_(m), k_(k), lda_(lda), a_(a) {
#if defined(__AVX2__)
  if (m <= rows_turned) turned_ = steps_of_rows<Element<A, A, C>>(a, lda, m, k);
#endif
}

template <class A, class C>
void RowsNt<A, C>::times(int64_t n, const A* b, int64_t ldb, C* c, int64_t ldc,
                         [[maybe_unused]] const void* after) const {
#if defined(__AVX2__)
  if (turned_ != nullptr) {
    turned(m_, n, k_, static_cast<const Element<A, A, C>*>(turned_), b, ldb, c, ldc, false, after);
    return;
  }
#endif
  multiply<true>(m_, n, k_, a_, lda_, 1, b, ldb, c, ldc, false);
}

template <class B>
int64_t packed_size(int64_t n, int64_t k) {
  using P = Stored<B>;
  constexpr bool doubles = std::is_same_v<B, bf16> && !std::is_same_v<P, Pair>;  // its bytes
  constexpr int64_t wide = panel_wide<P>, bytes = sizeof(P);
  return doubles ? 0 : (n + wide - 1) / wide * wide * column_size<P>(k) * bytes;
}

template <class B>
void pack_nt(void* to, const B* b, int64_t k, int64_t begin, int64_t end) {
  using P = Stored<B>;
  constexpr int64_t wide = panel_wide<P>, w = width<Acc<B>>;
  for (int64_t j = begin; j < end; j += wide) {
    const int64_t columns = std::min(wide, end - j);
    P* panel = static_cast<P*>(to) + j * column_size<P>(k);
    for (int64_t p = 0; p < k; p += panel_depth, panel += panel_size<P>) {
      pack_columns(panel, (columns + w - 1) / w * w, b + j * k + p, k, std::min(panel_depth, k - p), columns);
    }
  }
}

template <class B>
const void* packed_columns(const void* packed, int64_t k, int64_t begin) {
  using P = Stored<B>;
  return static_cast<const P*>(packed) + begin * column_size<P>(k);
}

template int64_t packed_size<float>(int64_t, int64_t);
template int64_t packed_size<bf16>(int64_t, int64_t);
template void pack_nt(void*, const float*, int64_t, int64_t, int64_t);
template void pack_nt(void*, const bf16*, int64_t, int64_t, int64_t);
template const void* packed_columns<float>(const void*, int64_t, int64_t);
template const void* packed_columns<bf16>(const void*, int64_t, int64_t);

template <class A, class B, class C>
void gemm_nn(int64_t m, int64_t n, int64_t k, const A* a, int64_t row, int64_t column, const B* b, int64_t ldb, C* c,
             int64_t ldc, bool accumulate) {
  constexpr bool dots = has_dots && std::is_same_v<A, bf16> && std::is_same_v<B, bf16>;
  const int64_t least = std::is_same_v<A, B> && !std::is_same_v<A, bf16> ? rows_in_place_fp32 : rows_in_place;
  if (dots || m >= least) {
    multiply<false>(m, n, k, a, row, column, b, ldb, c, ldc, accumulate);
    return;
  }
  // Two rows meet whole lines of B, which then comes straight from memory.
  const bool wide = vector_bytes == 64 && m <= 4 && n >= 2 * vectors_nn * width<Acc<B>>;
  const int64_t parts = wide ? (m + 1) / 2 : (m + rows_nn - 1) / rows_nn;
  for (int64_t part = 0; part < parts; part++) {
    const int64_t i = m * part / parts;
    rows_of<rows_nn>(m * (part + 1) / parts - i, [&]<int MR>() {
      row_nn<MR>(n, k, a + i * row, row, column, b, ldb, c + i * ldc, ldc, accumulate);
    });
  }
}

template void gemm_nt(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool,
                      const void*, const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const bf16*, int64_t, const bf16*, int64_t, bf16*, int64_t, bool,
                      const void*, const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const bf16*, int64_t, int64_t, const bf16*, int64_t, bf16*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const bf16*, int64_t, const bf16*, int64_t, float*, int64_t, bool,
                      const void*, const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const bf16*, int64_t, int64_t, const bf16*, int64_t, float*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const float*, int64_t, const bf16*, int64_t, float*, int64_t, bool,
                      const void*, const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const bf16*, int64_t, float*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const float*, int64_t, const bf16*, int64_t, bf16*, int64_t, bool,
                      const void*, const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const bf16*, int64_t, bf16*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const bf16*, int64_t, const float*, int64_t, float*, int64_t, bool,
                      const void*, const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const bf16*, int64_t, int64_t, const float*, int64_t, float*, int64_t,
                      bool);
template class RowsNt<float, float>;
template class RowsNt<bf16, float>;
#if !defined(__AVX2__)
template class RowsNt<double, double>;
template int64_t packed_size<double>(int64_t, int64_t);
template void pack_nt(void*, const double*, int64_t, int64_t, int64_t);
template const void* packed_columns<double>(const void*, int64_t, int64_t);
template void gemm_nt(int64_t, int64_t, int64_t, const double*, int64_t, const double*, int64_t, double*, int64_t, bool,
                      const void*, const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const double*, int64_t, int64_t, const double*, int64_t, double*,
                      int64_t, bool);
#endif

}  // namespace furlong::cpu::FURLONG_ISA
