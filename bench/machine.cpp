#include "machine.h"

namespace furlong::bench {
namespace {

typedef float Lanes __attribute__((vector_size(64)));

// 12 independent chains of multiply-adds; the compiler keeps them in registers.
__attribute__((target("avx512f,fma"), optimize("O3", "fp-contract=fast"))) double chains_avx512(int64_t steps) {
  Lanes x[12], a = Lanes{} + 0.999f, b = Lanes{} + 1e-3f;
  for (int i = 0; i < 12; i++) x[i] = Lanes{} + static_cast<float>(i);
  for (int64_t i = 0; i < steps; i++) {
    asm volatile("" : "+v"(a), "+v"(b));  // keeps the loop from being solved on paper
    for (auto& v : x) v = v * a + b;
  }
  double sum = 0;
  for (auto& v : x) sum += v[0];
  return sum;
}

__attribute__((optimize("O3"))) double chains_plain(int64_t steps) {
  Lanes x[3], a = Lanes{} + 0.999f, b = Lanes{} + 1e-3f;
  for (int i = 0; i < 3; i++) x[i] = Lanes{} + static_cast<float>(i);
  for (int64_t i = 0; i < steps; i++) {
    asm volatile("" : "+m"(a), "+m"(b));
    for (auto& v : x) v = v * a + b;
  }
  return static_cast<double>(x[0][0] + x[1][0] + x[2][0]);
}

}  // namespace

Limits measure_limits(ThreadPool& threads) {
  Limits limits;
  volatile double sink = 0;
  constexpr int64_t steps = 4'000'000;
#if defined(__x86_64__)
  const bool wide = __builtin_cpu_supports("avx512f");
#else
  const bool wide = false;
#endif
  const auto compute = time_it([&] {
    threads.parallel(threads.size(),
                     [&](int64_t) { sink = sink + (wide ? chains_avx512(steps) : chains_plain(steps)); });
  });
  limits.flops = 2.0 * 16 * (wide ? 12 : 3) * static_cast<double>(steps) * threads.size() / compute.low;
  std::vector<double> block(size_t{1} << 26, 1.0);  // 512 MiB
  const auto read = time_it([&] {
    threads.parallel(threads.size(), [&](int64_t t) {
      const size_t part = block.size() / static_cast<size_t>(threads.size());
      const double* p = block.data() + static_cast<size_t>(t) * part;
      Lanes sum{};
      for (size_t i = 0; i + 32 <= part; i += 32) {
        Lanes v[4];
        __builtin_memcpy(v, p + i, sizeof v);
        sum += v[0] + v[1] + v[2] + v[3];
      }
      sink = sink + static_cast<double>(sum[0]);
    });
  });
  limits.bytes = static_cast<double>(block.size()) * 8 / read.low;
  return limits;
}

}  // namespace furlong::bench
