// Vectors of one instruction set. Every file of ops/cpu is compiled once per set, with FURLONG_ISA naming its
// namespace; the source is the same, only the width and the fused multiply-add differ.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "tensor/dtype.h"

namespace furlong::cpu::FURLONG_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif
constexpr bool has_fma =
#if defined(__FMA__)
    true;
#else
    false;
#endif
// float64 serves gradient checks only; one instruction set carries it.
constexpr bool has_f64 = vector_bytes == 16;

// The type sums are kept in: double for double, float for everything else.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class S>
struct VectorOf {
  static constexpr int width = vector_bytes / static_cast<int>(sizeof(S));
  typedef S type __attribute__((vector_size(vector_bytes)));
};
template <class S>
using Vec = typename VectorOf<S>::type;
template <class S>
constexpr int width = VectorOf<S>::width;

// a * b + c with one rounding where the instruction set has it; the vector and the scalar form give the same bits.
inline float mul_add(float a, float b, float c) {
  if constexpr (has_fma) return __builtin_fmaf(a, b, c);
  return a * b + c;
}
inline double mul_add(double a, double b, double c) {
  if constexpr (has_fma) return __builtin_fma(a, b, c);
  return a * b + c;
}
inline Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
inline Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

template <class S>
inline Vec<S> broadcast(S x) {
  return x - Vec<S>{};
}

// One number, widened to what it is summed in.
inline float widen(float x) { return x; }
inline float widen(bf16 x) { return static_cast<float>(x); }
inline double widen(double x) { return x; }
template <class T>
inline T narrow(Acc<T> x) {
  return static_cast<T>(x);
}

#if defined(__AVX512F__)
// The first n lanes; all of them from 16 on.
inline __mmask16 lanes_below(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << static_cast<unsigned>(n)) - 1);
}
#endif

inline Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vec<float> load(const bf16* p) {
#if defined(__AVX512F__)
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
#elif defined(__AVX2__)
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
#else
  Vec<float> v;
  for (int i = 0; i < width<float>; i++) v[i] = static_cast<float>(p[i]);
  return v;
#endif
}
// The first n < width numbers, zeros after them.
template <class T>
inline Vec<Acc<T>> load_partial(const T* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_loadu_ps(lanes_below(n), p);
  if constexpr (std::is_same_v<T, bf16>) {
    const __m256i halves = _mm256_maskz_loadu_epi16(lanes_below(n), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
#endif
  T full[width<Acc<T>>] = {};
  std::memcpy(full, p, static_cast<size_t>(n) * sizeof(T));
  return load(full);
}

inline void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }
inline void store(bf16* p, Vec<float> v) {
  for (int i = 0; i < width<float>; i++) p[i] = bf16(v[i]);
}
template <class T>
inline void store_partial(T* p, Vec<Acc<T>> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, lanes_below(n), v);
#endif
  T full[width<Acc<T>>];
  store(full, v);
  std::memcpy(p, full, static_cast<size_t>(n) * sizeof(T));
}

// Sum of the lanes by halving: lane i with lane i + width/2, and so on.
template <class S>
inline S sum_lanes(Vec<S> v) {
  S lanes[width<S>];
  std::memcpy(lanes, &v, sizeof v);
  for (int half = width<S> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}
#if defined(__AVX512F__)
template <>
inline float sum_lanes<float>(Vec<float> v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
#endif

// Σ a[i]·b[i], lanes first, then sum_lanes: the order of every dot product over contiguous numbers.
template <class A, class B>
inline Acc<A> dot(const A* a, const B* b, int64_t n) {
  using S = Acc<A>;
  Vec<S> sum{};
  int64_t i = 0;
  for (; i + width<S> <= n; i += width<S>) sum = mul_add(load(a + i), load(b + i), sum);
  if (i < n) sum = mul_add(load_partial(a + i, n - i), load_partial(b + i, n - i), sum);
  return sum_lanes<S>(sum);
}

// e^x within 2 units in the last place; 0 below -87.3, so that it also serves masked scores of -infinity. Plain
// arithmetic without branches, so that loops over it vectorise. Cody–Waite reduction, degree-6 polynomial.
inline float exp_fast(float x) {
  const float clamped = x < -87.3f ? -87.3f : (x > 88.3f ? 88.3f : x);
  constexpr float round_magic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer
  const float n = (clamped * 1.44269504088896341f + round_magic) - round_magic;
  float r = mul_add(n, -0.693359375f, clamped);
  r = mul_add(n, 2.12194440e-4f, r);
  float p = 1.3981999507e-3f;
  p = mul_add(p, r, 8.3334519073e-3f);
  p = mul_add(p, r, 4.1665795894e-2f);
  p = mul_add(p, r, 1.6666665459e-1f);
  p = mul_add(p, r, 5.0000001201e-1f);
  p = mul_add(p * r, r, r) + 1.0f;
  const float scale = std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  const float y = p * scale;
  return x < -87.3f ? 0.0f : (x != x ? x : (x > 88.7f ? INFINITY : y));
}
inline double exp_fast(double x) { return std::exp(x); }
template <class S>
inline S sigmoid(S x) {
  return S(1) / (S(1) + exp_fast(-x));
}
template <class S>
inline S silu(S x) {
  return x * sigmoid(x);
}

}  // namespace furlong::cpu::FURLONG_ISA
