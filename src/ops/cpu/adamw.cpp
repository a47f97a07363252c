#include "ops/adamw.h"

#include "ops/cpu/rows.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// Numbers whose inputs are widened together, few enough to stay in the first-level cache.
constexpr int64_t adam_tile = 512;

template <class S>
Vec<S> root(Vec<S> x) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<S, float>) return _mm256_sqrt_ps(x);
#endif
  for (int i = 0; i < width<S>; i++) x[i] = std::sqrt(x[i]);
  return x;
}

template <class S>
struct Step {
  S keep, blend1, blend2, beta2, eps, rate, root2, scale;

  // One vector, in the order of the usual single-tensor implementation: the moments, then decay and step with the bias
  // corrections folded into scalars that were computed in double.
  void operator()(S* w, S* m, S* v, const S* g) const {
    const Vec<S> gi = load(g) * broadcast<S>(scale);
    Vec<S> mi = load(m);
    mi = mi + (gi - mi) * broadcast<S>(blend1);
    const Vec<S> vi = load(v) * broadcast<S>(beta2) + broadcast<S>(blend2) * gi * gi;
    store(m, mi);
    store(v, vi);
    store(w, load(w) * broadcast<S>(keep) -
                 broadcast<S>(rate) * mi / (root<S>(vi) / broadcast<S>(root2) + broadcast<S>(eps)));
  }
};

// bf16 in 16 bits each, rounded to nearest even as dtype.h does, a vector at a time.
void narrow_to(uint16_t* to, const float* from, int64_t n) {
  typedef uint32_t Words __attribute__((vector_size(vector_bytes)));
  typedef uint16_t Halves __attribute__((vector_size(vector_bytes / 2)));
  int64_t i = 0;
  for (; i + width<float> <= n; i += width<float>) {
    Words u;
    std::memcpy(&u, from + i, sizeof u);
    const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
    const Halves h = __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded, Halves);
    std::memcpy(to + i, &h, sizeof h);
  }
  for (; i < n; i++) to[i] = bf16(from[i]).bits;
}

void widen_to(float* to, const bf16* from, int64_t n) {
  int64_t i = 0;
  for (; i + width<float> <= n; i += width<float>) store(to + i, load(from + i));
  for (; i < n; i++) to[i] = widen(from[i]);
}

// Numbers [at, at + n) of a tensor in S: in place where it is kept so, else widened into a tile and rounded back.
template <class S>
struct Window {
  S tile[adam_tile];
  S* values;

  Window(const Tensor& t, int64_t at, int64_t n) : values(tile) {
    if (t.dtype() == dtype_of<S>) {
      // The last part of a vector is worked on in the tile, so that nothing beyond the tensor is touched.
      if (n % width<S> == 0) {
        values = t.as<S>() + at;
      } else {
        std::memcpy(tile, t.as<S>() + at, static_cast<size_t>(n) * sizeof(S));
      }
    } else if constexpr (std::is_same_v<S, float>) {
      widen_to(tile, t.as<bf16>() + at, n);
    }
    if (values == tile) std::fill(tile + n, tile + std::min(adam_tile, n + width<S>), S{0});
  }
};

// Writes numbers in S to [at, at + n) of a tensor, unless they are there already.
template <class S>
void put_back(const Tensor& t, int64_t at, int64_t n, const S* values) {
  if (t.dtype() == dtype_of<S>) {
    if (values != t.as<S>() + at) std::memcpy(t.as<S>() + at, values, static_cast<size_t>(n) * sizeof(S));
  } else if constexpr (std::is_same_v<S, float>) {
    narrow_to(&t.as<bf16>()[at].bits, values, n);
  }
}

}  // namespace

void adamw(Stream& stream, Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamParams& params) {
  const auto run = [&]<class S>() {
    const double correction1 = 1 - std::pow(params.beta1, static_cast<double>(params.step));
    const double correction2 = 1 - std::pow(params.beta2, static_cast<double>(params.step));
    const Step<S> step{.keep = static_cast<S>(1 - params.lr * params.weight_decay),
                       .blend1 = static_cast<S>(1 - params.beta1),
                       .blend2 = static_cast<S>(1 - params.beta2),
                       .beta2 = static_cast<S>(params.beta2),
                       .eps = static_cast<S>(params.eps),
                       .rate = static_cast<S>(params.lr / correction1),
                       .root2 = static_cast<S>(std::sqrt(correction2)),
                       .scale = static_cast<S>(params.grad_scale)};
    column_blocks(stream, master.numel(), 12, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; at += adam_tile) {
        const int64_t n = std::min(adam_tile, end - at);
        const Window<S> w(master, at, n), mean(m, at, n), square(v, at, n), g(grad, at, n);
        for (int64_t i = 0; i < n; i += width<S>) {
          step(w.values + i, mean.values + i, square.values + i, g.values + i);
        }
        put_back(m, at, n, mean.values);
        put_back(v, at, n, square.values);
        put_back(master, at, n, w.values);
        if (weight.data() != master.data()) put_back(weight, at, n, w.values);
      }
    });
  };
  if (weight.dtype() == DType::f64) {
    if constexpr (has_f64) run.template operator()<double>();
  } else {
    run.template operator()<float>();
  }
}

}  // namespace furlong::cpu::FURLONG_ISA
