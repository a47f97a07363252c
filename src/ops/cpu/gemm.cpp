#include "ops/cpu/gemm.h"

#include <algorithm>
#include <type_traits>

#include "ops/cpu/panels.h"
#include "ops/cpu/scratch.h"
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
// Columns packed together, rows of A that meet them together (all, if there are few), and rows of fp32 sums kept where
// C is narrower.
constexpr int64_t panel_columns = 256, row_tile = 24, few_rows = 32, kept_rows = 480;
// Whether blocks ask for the panel after theirs, which they then find in a cache. With long vectors a block takes a
// panel for about as long as memory takes to send the next.
constexpr bool asks_ahead = vector_bytes == 32;

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

// What the two sides hold in a block, and a block's arithmetic: numbers in S, or pairs of bf16.
template <class S>
Vec<S> of_all(const S* x) {
  return broadcast(*x);
}
template <class S>
Vec<S> vector_of(const S* x) {
  return load(x);
}
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

// What a block asks for meanwhile: `lines` lines of memory at each chain's begin.
struct Ahead {
  const char* at = nullptr;
  int64_t lines = 0;
};

// C (MR, NV vectors): the sum over the panel's steps, begun from C (`carries`), or in chains begun from 0 and added to
// C.
template <int MR, int NV, class E, class S>
void block(int64_t depth, const E* a, int64_t row, int64_t column, const E* panel, S* c, int64_t ldc, bool carries,
           bool adds, [[maybe_unused]] Ahead ahead) {
  constexpr int w = width<S>;
  const int64_t piece = carries ? depth : chain / (std::is_same_v<E, S> ? 1 : 2);
  int64_t p = 0;
  do {
    if constexpr (asks_ahead) {
      for (int64_t l = 0; l < ahead.lines; l++) __builtin_prefetch(ahead.at + l * line_bytes, 0, 2);
      ahead.at += ahead.lines * line_bytes;
    }
    Vec<S> sum[MR][NV] = {};
    if (carries && adds) {
      for (int i = 0; i < MR; i++) {
        for (int v = 0; v < NV; v++) sum[i][v] = load(c + i * ldc + v * w);
      }
    }
    for (const int64_t end = std::min(depth, p + piece); p < end; p++) {
      decltype(vector_of(panel)) b[NV];
      for (int v = 0; v < NV; v++) b[v] = vector_of(panel + (v * panel_steps<E> + p) * w);
      for (int i = 0; i < MR; i++) {
        const auto x = of_all(a + i * row + p * column);
        for (int v = 0; v < NV; v++) {
          if constexpr (std::is_same_v<E, S>) {
            sum[i][v] = mul_add(x, b[v], sum[i][v]);
          } else {
            sum[i][v] = multiply_add(x, b[v], sum[i][v]);
          }
        }
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

template <class E, class S>
using Block = void (*)(int64_t, const E*, int64_t, int64_t, const E*, S*, int64_t, bool, bool, Ahead);
template <int NV, class E, class S>
Block<E, S> block_of_rows(int64_t rows) {
  static_assert(block_rows <= 6);
  switch (rows) {
    case 1: return block<1, NV, E, S>;
    case 2: return block<2, NV, E, S>;
    case 3: return block<3, NV, E, S>;
    case 4: return block<4, NV, E, S>;
    case 5: return block<std::min(5, block_rows), NV, E, S>;
    default: return block<std::min(6, block_rows), NV, E, S>;
  }
}
template <class E, class S>
Block<E, S> block_for(int64_t rows, int64_t vectors) {
  static_assert(block_vectors <= 4);
  switch (vectors) {
    case 1: return block_of_rows<1, E, S>(rows);
    case 2: return block_of_rows<2, E, S>(rows);
    case 3: return block_of_rows<std::min(3, block_vectors), E, S>(rows);
    default: return block_of_rows<std::min(4, block_vectors), E, S>(rows);
  }
}

// Rows of A as blocks read them: element (i,p) at at[i·row + p·column].
template <class E>
struct Side {
  const E* at;
  int64_t row, column;
};

template <class S, class A>
Side<S> side(const A* a, int64_t row, int64_t column, int64_t rows, int64_t depth) {
  if constexpr (std::is_same_v<S, A>) {
    return {a, row, column};
  } else if (column == 1) {
    S* to = scratch<S, Scratch::side>(few_rows * panel_depth);
    for (int64_t i = 0; i < rows; i++) {
      for (int64_t p = 0; p < depth; p++) to[i * panel_depth + p] = widen(a[i * row + p]);
    }
    return {to, panel_depth, 1};
  } else {
    S* to = scratch<S, Scratch::side>(few_rows * panel_depth);
    for (int64_t p = 0; p < depth; p++) {
      for (int64_t i = 0; i < rows; i++) to[p * few_rows + i] = widen(a[i * row + p * column]);
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

template <class E>
constexpr int64_t panel_wide = block_vectors* width<std::conditional_t<std::is_same_v<E, double>, double, float>>;
// Numbers or pairs of a panel, and of the panels of one column.
template <class E>
constexpr int64_t panel_size = panel_wide<E>* panel_steps<E>;
template <class E>
int64_t column_size(int64_t k) {
  return (k + panel_depth - 1) / panel_depth * panel_steps<E>;
}

// One panel's columns of C, which is S here, for the rows of a side. next: the panel that is wanted after it, or null.
template <class E, class S>
void panel_product(const Side<E>& a, int64_t rows, int64_t steps, const E* panel, int64_t wide, S* c, int64_t ldc,
                   int64_t columns, bool carries, bool adds, const E* next) {
  constexpr int w = width<S>;
  const int64_t blocks = (rows + block_rows - 1) / block_rows, chains = blocks * (panel_depth / chain);
  constexpr int64_t panel_lines = panel_size<E> * sizeof(E) / line_bytes;
  const int64_t lines = next == nullptr ? 0 : (panel_lines + chains - 1) / chains;
  S tile[block_rows * block_vectors * w];
  for (int64_t n = 0; n < blocks; n++) {
    const int64_t i = rows * n / blocks, count = rows * (n + 1) / blocks - i;
    const auto f = block_for<E, S>(count, wide / w);
    const Ahead ahead{reinterpret_cast<const char*>(next) + n * (panel_depth / chain) * lines * line_bytes, lines};
    if (columns == wide) {
      f(steps, a.at + i * a.row, a.row, a.column, panel, c + i * ldc, ldc, carries, adds, ahead);
      continue;
    }
    for (int64_t r = 0; adds && r < count; r++) {
      std::copy_n(c + (i + r) * ldc, columns, tile + r * wide);
      std::fill(tile + r * wide + columns, tile + (r + 1) * wide, S(0));
    }
    f(steps, a.at + i * a.row, a.row, a.column, panel, tile, wide, carries, adds, ahead);
    for (int64_t r = 0; r < count; r++) std::copy_n(tile + r * wide, columns, c + (i + r) * ldc);
  }
}

// C (M,N), kept in S, [+]= A · B with B packed. Transposed: B is (N,K), and each panel's part of a sum begins from 0;
// otherwise (K,N), and a sum goes on from panel to panel. whole: panels of all of B from its first column on, the
// depths of the first ones after each other, or null.
template <bool Transposed, class E, class S, class A, class B>
void packed(int64_t m, int64_t n, int64_t k, const A* a, int64_t row, int64_t column, const B* b, int64_t ldb, S* c,
            int64_t ldc, bool accumulate, [[maybe_unused]] const E* whole = nullptr) {
  constexpr int64_t of_step = std::is_same_v<E, Pair> ? 2 : 1, wide = panel_wide<E>, w = width<S>;
  const bool few = m <= few_rows;
  const int64_t tile = few ? few_rows : row_tile, together = few ? wide : panel_columns / wide * wide;
  E* panels = whole != nullptr
                  ? nullptr
                  : scratch<E, Scratch::panels>(std::min(together, (n + wide - 1) / wide * wide) * panel_steps<E>);
  for (int64_t j0 = 0; j0 < n; j0 += together) {
    const int64_t j1 = std::min(n, j0 + together);
    const auto width_at = [&](int64_t j) { return std::min(wide, (j1 - j + w - 1) / w * w); };
    for (int64_t p0 = 0; p0 < k || p0 == 0; p0 += panel_depth) {
      const int64_t depth = std::min(panel_depth, k - p0), steps = (depth + of_step - 1) / of_step;
      const auto panel_of = [&](int64_t j) { return panels + (j - j0) * panel_steps<E>; };
      for (int64_t j = j0; whole == nullptr && j < j1; j += wide) {
        const int64_t columns = std::min(wide, j1 - j);
        if constexpr (Transposed) {
          pack_columns(panel_of(j), width_at(j), b + j * ldb + p0, ldb, depth, columns);
        } else {
          pack_rows(panel_of(j), width_at(j), b + p0 * ldb + j, ldb, depth, columns);
        }
      }
      for (int64_t i = 0; i < m; i += tile) {
        const int64_t rows = std::min(tile, m - i);
        const Side<E> rows_of_a = side<E>(a + i * row + p0 * column, row, column, rows, depth);
        for (int64_t j = j0; j < j1; j += wide) {
          const E* panel =
              whole != nullptr ? whole + j * column_size<E>(k) + p0 / panel_depth * panel_size<E> : panel_of(j);
          const E* next = asks_ahead && whole != nullptr && few ? panel + panel_size<E> : nullptr;
          panel_product(rows_of_a, rows, steps, panel, width_at(j), c + i * ldc + j, ldc, std::min(wide, j1 - j),
                        !Transposed, accumulate || p0 > 0, next);
        }
      }
    }
  }
}

// What is multiplied: pairs where the instruction set has their dot products, otherwise single numbers.
template <class A, class B, class C>
using Element = std::conditional_t<has_dots && std::is_same_v<A, bf16> && std::is_same_v<B, bf16>, Pair, Acc<C>>;

// The same with C of any type: sums are kept in S until they are whole.
template <bool Transposed, class A, class B, class C>
void multiply(int64_t m, int64_t n, int64_t k, const A* a, int64_t row, int64_t column, const B* b, int64_t ldb, C* c,
              int64_t ldc, bool accumulate, const void* whole = nullptr) {
  using S = Acc<C>;
  using E = Element<A, B, C>;
  const E* panels = static_cast<const E*>(whole);
  if constexpr (std::is_same_v<C, S>) {
    packed<Transposed, E, S>(m, n, k, a, row, column, b, ldb, c, ldc, accumulate, panels);
  } else {
    for (int64_t j0 = 0; j0 < n; j0 += panel_columns) {
      const int64_t columns = std::min(panel_columns, n - j0);
      const B* bj = b + (Transposed ? j0 * ldb : j0);
      for (int64_t i0 = 0; i0 < m; i0 += kept_rows) {
        const int64_t rows = std::min(kept_rows, m - i0);
        S* sums = scratch<S, Scratch::sums>(rows * columns);
        C* to = c + i0 * ldc + j0;
        for (int64_t i = 0; accumulate && i < rows; i++) {
          for (int64_t j = 0; j < columns; j++) sums[i * columns + j] = widen(to[i * ldc + j]);
        }
        packed<Transposed, E, S>(rows, columns, k, a + i0 * row, row, column, bj, ldb, sums, columns, accumulate,
                                 panels == nullptr ? nullptr : panels + j0 * column_size<E>(k));
        for (int64_t i = 0; i < rows; i++) {
          for (int64_t j = 0; j < columns; j++) to[i * ldc + j] = narrow<C>(sums[i * columns + j]);
        }
      }
    }
  }
}

#if defined(__AVX2__)
// C (MR rows, `columns` <= the width) [+]= A · Bᵀ, in the order of `block`: chains begun from 0 and added up.
template <int MR, class E, class B, class C>
void turned_columns(int64_t k, const E* a, const B* b, int64_t ldb, C* c, int64_t ldc, int64_t columns,
                    bool accumulate) {
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
  for (; MR <= rows_of_two && columns == w && p + 2 * chain <= k; p += 2 * chain) {
    Vec<float> one[MR] = {}, two[MR] = {};
    for (int64_t q = p; q < p + chain; q += w * of_word) {
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

template <class E, class A, class B, class C>
void turned(int64_t m, int64_t n, int64_t k, const A* a, int64_t lda, const B* b, int64_t ldb, C* c, int64_t ldc,
            bool accumulate) {
  constexpr int64_t w = width<float>;
  const E* rows = steps_of_rows<E>(a, lda, m, k);
  rows_of<rows_turned>(m, [&]<int MR>() {
    for (int64_t j = 0; j < n; j += w) {
      turned_columns<MR>(k, rows, b + j * ldb, ldb, c + j, ldc, std::min(w, n - j), accumulate);
    }
  });
}
#endif

}  // namespace

template <class A, class B, class C>
void gemm_nt(int64_t m, int64_t n, int64_t k, const A* a, int64_t lda, const B* b, int64_t ldb, C* c, int64_t ldc,
             bool accumulate, const void* packed) {
#if defined(__AVX2__)
  if (packed == nullptr && m <= rows_turned) {
    turned<Element<A, B, C>>(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
    return;
  }
#endif
  multiply<true>(m, n, k, a, lda, 1, b, ldb, c, ldc, accumulate, packed);
}

template <class B>
int64_t packed_size(int64_t n, int64_t k) {
  using E = Element<B, B, Acc<B>>;
  constexpr bool widened = std::is_same_v<B, bf16> && !std::is_same_v<E, Pair>;
  constexpr int64_t wide = panel_wide<E>, bytes = sizeof(E);
  return widened ? 0 : (n + wide - 1) / wide * wide * column_size<E>(k) * bytes;
}

template <class B>
void pack_nt(void* to, const B* b, int64_t k, int64_t begin, int64_t end) {
  using E = Element<B, B, Acc<B>>;
  constexpr int64_t wide = panel_wide<E>, w = width<Acc<B>>;
  for (int64_t j = begin; j < end; j += wide) {
    const int64_t columns = std::min(wide, end - j);
    E* panel = static_cast<E*>(to) + j * column_size<E>(k);
    for (int64_t p = 0; p < k; p += panel_depth, panel += panel_size<E>) {
      pack_columns(panel, (columns + w - 1) / w * w, b + j * k + p, k, std::min(panel_depth, k - p), columns);
    }
  }
}

template <class B>
const void* packed_columns(const void* packed, int64_t k, int64_t begin) {
  using E = Element<B, B, Acc<B>>;
  return static_cast<const E*>(packed) + begin * column_size<E>(k);
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
                      const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const bf16*, int64_t, const bf16*, int64_t, bf16*, int64_t, bool,
                      const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const bf16*, int64_t, int64_t, const bf16*, int64_t, bf16*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const bf16*, int64_t, const bf16*, int64_t, float*, int64_t, bool,
                      const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const bf16*, int64_t, int64_t, const bf16*, int64_t, float*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const float*, int64_t, const bf16*, int64_t, float*, int64_t, bool,
                      const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const bf16*, int64_t, float*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const float*, int64_t, const bf16*, int64_t, bf16*, int64_t, bool,
                      const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const bf16*, int64_t, bf16*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const bf16*, int64_t, const float*, int64_t, float*, int64_t, bool,
                      const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const bf16*, int64_t, int64_t, const float*, int64_t, float*, int64_t,
                      bool);
#if !defined(__AVX2__)
template int64_t packed_size<double>(int64_t, int64_t);
template void pack_nt(void*, const double*, int64_t, int64_t, int64_t);
template const void* packed_columns<double>(const void*, int64_t, int64_t);
template void gemm_nt(int64_t, int64_t, int64_t, const double*, int64_t, const double*, int64_t, double*, int64_t, bool,
                      const void*);
template void gemm_nn(int64_t, int64_t, int64_t, const double*, int64_t, int64_t, const double*, int64_t, double*,
                      int64_t, bool);
#endif

}  // namespace furlong::cpu::FURLONG_ISA
