#include "ops/cpu/gemm.h"

#include <algorithm>
#include <type_traits>

namespace furlong::cpu::FURLONG_ISA {
namespace {

constexpr int rows_nt = vector_bytes == 64 ? 4 : 2, columns_nt = vector_bytes == 64 ? 4 : (vector_bytes == 32 ? 4 : 2);
constexpr int rows_nn = vector_bytes == 64 ? 6 : 3, vectors_nn = vector_bytes == 64 ? 4 : 3;
// Rows of A that stay in the second-level cache while B streams past, and steps of the sum between two passes of C.
constexpr int64_t row_tile = 64, sum_tile = 256;

template <class C, class S>
void put(C* c, S value, bool accumulate) {
  *c = narrow<C>(accumulate ? widen(*c) + value : value);
}

#if defined(__AVX512F__)
// Sums the lanes of 16 vectors in the order of sum_lanes; quad i of the result holds vectors i, 4+i, 8+i, 12+i.
__m512 sum_lanes_16(const __m512* v) {
  __m512 by_8[8], by_4[4];
  for (int i = 0; i < 8; i++) {
    by_8[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], _MM_SHUFFLE(1, 0, 1, 0)),
                            _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], _MM_SHUFFLE(3, 2, 3, 2)));
  }
  for (int i = 0; i < 4; i++) {
    by_4[i] = _mm512_add_ps(_mm512_shuffle_f32x4(by_8[2 * i], by_8[2 * i + 1], _MM_SHUFFLE(2, 0, 2, 0)),
                            _mm512_shuffle_f32x4(by_8[2 * i], by_8[2 * i + 1], _MM_SHUFFLE(3, 1, 3, 1)));
  }
  __m512 by_2[2];
  for (int i = 0; i < 2; i++) {
    by_2[i] = _mm512_add_ps(_mm512_shuffle_ps(by_4[2 * i], by_4[2 * i + 1], _MM_SHUFFLE(1, 0, 1, 0)),
                            _mm512_shuffle_ps(by_4[2 * i], by_4[2 * i + 1], _MM_SHUFFLE(3, 2, 3, 2)));
  }
  return _mm512_add_ps(_mm512_shuffle_ps(by_2[0], by_2[1], _MM_SHUFFLE(2, 0, 2, 0)),
                       _mm512_shuffle_ps(by_2[0], by_2[1], _MM_SHUFFLE(3, 1, 3, 1)));
}
#endif

template <int MR, int NR, class A, class B, class C>
void block_nt(int64_t k, const A* a, int64_t lda, const B* b, int64_t ldb, C* c, int64_t ldc, bool accumulate) {
  using S = Acc<A>;
  Vec<S> sum[NR][MR] = {};
  int64_t p = 0;
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<A, bf16> && std::is_same_v<B, bf16>) {
    const auto whole = [](const bf16* q) { return std::bit_cast<__m512bh>(_mm512_loadu_si512(q)); };
    for (; p + 32 <= k; p += 32) {
      __m512bh vb[NR];
      for (int j = 0; j < NR; j++) vb[j] = whole(b + j * ldb + p);
      for (int i = 0; i < MR; i++) {
        const __m512bh va = whole(a + i * lda + p);
        for (int j = 0; j < NR; j++) sum[j][i] = _mm512_dpbf16_ps(sum[j][i], va, vb[j]);
      }
    }
    if (p < k) {
      const __mmask32 mask = (1u << (k - p)) - 1u;
      const auto part = [mask](const bf16* q) { return std::bit_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, q)); };
      for (int j = 0; j < NR; j++) {
        const __m512bh vb = part(b + j * ldb + p);
        for (int i = 0; i < MR; i++) sum[j][i] = _mm512_dpbf16_ps(sum[j][i], part(a + i * lda + p), vb);
      }
      p = k;
    }
  }
#endif
  for (; p + width<S> <= k; p += width<S>) {
    Vec<S> vb[NR];
    for (int j = 0; j < NR; j++) vb[j] = load(b + j * ldb + p);
    for (int i = 0; i < MR; i++) {
      const Vec<S> va = load(a + i * lda + p);
      for (int j = 0; j < NR; j++) sum[j][i] = mul_add(va, vb[j], sum[j][i]);
    }
  }
  if (p < k) {
    for (int i = 0; i < MR; i++) {
      const Vec<S> va = load_partial(a + i * lda + p, k - p);
      for (int j = 0; j < NR; j++) sum[j][i] = mul_add(va, load_partial(b + j * ldb + p, k - p), sum[j][i]);
    }
  }
#if defined(__AVX512F__)
  if constexpr (MR == 4 && NR == 4 && std::is_same_v<S, float>) {
    alignas(64) float out[16];
    _mm512_store_ps(out, sum_lanes_16(&sum[0][0]));
    for (int i = 0; i < 4; i++) {
      for (int j = 0; j < 4; j++) put(c + i * ldc + j, out[4 * i + j], accumulate);
    }
    return;
  }
#endif
  for (int i = 0; i < MR; i++) {
    for (int j = 0; j < NR; j++) put(c + i * ldc + j, sum_lanes<S>(sum[j][i]), accumulate);
  }
}

template <int MR, class A, class B, class C>
void row_nt(int64_t n, int64_t k, const A* a, int64_t lda, const B* b, int64_t ldb, C* c, int64_t ldc,
            bool accumulate) {
  int64_t j = 0;
  for (; j + columns_nt <= n; j += columns_nt) {
    block_nt<MR, columns_nt>(k, a, lda, b + j * ldb, ldb, c + j, ldc, accumulate);
  }
  for (; j < n; j++) block_nt<MR, 1>(k, a, lda, b + j * ldb, ldb, c + j, ldc, accumulate);
}

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
  constexpr int w = width<Acc<B>>;
  int64_t j = 0;
  for (; j + vectors_nn * w <= n; j += vectors_nn * w) {
    block_nn<MR, vectors_nn>(vectors_nn * w, k, a, row, column, b + j, ldb, c + j, ldc, accumulate);
  }
  for (; j < n; j += w) {
    block_nn<MR, 1>(std::min<int64_t>(w, n - j), k, a, row, column, b + j, ldb, c + j, ldc, accumulate);
  }
}

}  // namespace

template <class A, class B, class C>
void gemm_nt(int64_t m, int64_t n, int64_t k, const A* a, int64_t lda, const B* b, int64_t ldb, C* c, int64_t ldc,
             bool accumulate) {
  for (int64_t i0 = 0; i0 < m; i0 += row_tile) {
    const int64_t end = std::min(m, i0 + row_tile);
    for (int64_t j0 = 0; j0 < n; j0 += columns_nt) {
      const int64_t columns = std::min<int64_t>(columns_nt, n - j0);
      int64_t i = i0;
      for (; i + rows_nt <= end; i += rows_nt) {
        row_nt<rows_nt>(columns, k, a + i * lda, lda, b + j0 * ldb, ldb, c + i * ldc + j0, ldc, accumulate);
      }
      for (; rows_nt > 2 && i + 2 <= end; i += 2) {
        row_nt<2>(columns, k, a + i * lda, lda, b + j0 * ldb, ldb, c + i * ldc + j0, ldc, accumulate);
      }
      for (; i < end; i++)
        row_nt<1>(columns, k, a + i * lda, lda, b + j0 * ldb, ldb, c + i * ldc + j0, ldc, accumulate);
    }
  }
}

template <class A, class B, class C>
void gemm_nn(int64_t m, int64_t n, int64_t k, const A* a, int64_t row, int64_t column, const B* b, int64_t ldb, C* c,
             int64_t ldc, bool accumulate) {
  // Passing partial sums through C keeps their bits only when C is as wide as the sum.
  const int64_t step = std::is_same_v<C, Acc<C>> ? sum_tile : std::max<int64_t>(k, 1);
  for (int64_t p = 0; p < k || (p == 0 && k == 0); p += step) {
    const int64_t depth = std::min(step, k - p);
    const A* at = a + p * column;
    const B* bt = b + p * ldb;
    const bool add = accumulate || p > 0;
    int64_t i = 0;
    for (; i + rows_nn <= m; i += rows_nn)
      row_nn<rows_nn>(n, depth, at + i * row, row, column, bt, ldb, c + i * ldc, ldc, add);
    for (; rows_nn > 3 && i + 3 <= m; i += 3)
      row_nn<3>(n, depth, at + i * row, row, column, bt, ldb, c + i * ldc, ldc, add);
    for (; i < m; i++) row_nn<1>(n, depth, at + i * row, row, column, bt, ldb, c + i * ldc, ldc, add);
  }
}

template void gemm_nt(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool);
template void gemm_nn(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const bf16*, int64_t, const bf16*, int64_t, bf16*, int64_t, bool);
template void gemm_nn(int64_t, int64_t, int64_t, const bf16*, int64_t, int64_t, const bf16*, int64_t, bf16*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const bf16*, int64_t, const bf16*, int64_t, float*, int64_t, bool);
template void gemm_nn(int64_t, int64_t, int64_t, const bf16*, int64_t, int64_t, const bf16*, int64_t, float*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const float*, int64_t, const bf16*, int64_t, float*, int64_t, bool);
template void gemm_nn(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const bf16*, int64_t, float*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const float*, int64_t, const bf16*, int64_t, bf16*, int64_t, bool);
template void gemm_nn(int64_t, int64_t, int64_t, const float*, int64_t, int64_t, const bf16*, int64_t, bf16*, int64_t,
                      bool);
template void gemm_nt(int64_t, int64_t, int64_t, const bf16*, int64_t, const float*, int64_t, float*, int64_t, bool);
template void gemm_nn(int64_t, int64_t, int64_t, const bf16*, int64_t, int64_t, const float*, int64_t, float*, int64_t,
                      bool);
#if !defined(__AVX2__)
template void gemm_nt(int64_t, int64_t, int64_t, const double*, int64_t, const double*, int64_t, double*, int64_t,
                      bool);
template void gemm_nn(int64_t, int64_t, int64_t, const double*, int64_t, int64_t, const double*, int64_t, double*,
                      int64_t, bool);
#endif

}  // namespace furlong::cpu::FURLONG_ISA
