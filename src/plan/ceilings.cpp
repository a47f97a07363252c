#include "plan/ceilings.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ctime>
#include <utility>
#include <vector>

#include "ops/segments.h"
#include "tensor/buffer.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace furlong {
namespace {

typedef float Lanes __attribute__((vector_size(64)));
constexpr int64_t chain_steps = 2'000'000;
constexpr int lanes = 16;
constexpr int runs = 5;

// Independent chains of multiply-adds, enough to hide the latency of one, written out one by one so that they stay in
// registers. The empty asm keeps the loop from being solved on paper.
#if defined(__x86_64__)
template <size_t... I>
__attribute__((target("avx512f"))) float fma_chains_512(std::index_sequence<I...>) {
  __m512 x[] = {_mm512_set1_ps(static_cast<float>(I))...}, a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(1e-3f);
  for (int64_t i = 0; i < chain_steps; i++) {
    asm volatile("" : "+v"(a), "+v"(b));
    ((x[I] = _mm512_fmadd_ps(x[I], a, b)), ...);
  }
  float sum = 0;
  ((sum += _mm512_cvtss_f32(x[I])), ...);
  return sum;
}

template <size_t... I>
__attribute__((target("avx2,fma"))) float fma_chains_256(std::index_sequence<I...>) {
  __m256 x[] = {_mm256_set1_ps(static_cast<float>(I))...}, a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(1e-3f);
  for (int64_t i = 0; i < chain_steps; i++) {
    asm volatile("" : "+x"(a), "+x"(b));
    ((x[I] = _mm256_fmadd_ps(x[I], a, b)), ...);
  }
  float sum = 0;
  ((sum += _mm256_cvtss_f32(x[I])), ...);
  return sum;
}

template <size_t... I>
__attribute__((target("avx512f,avx512bw,avx512bf16"))) float dot_chains_512(std::index_sequence<I...>) {
  __m512 x[] = {_mm512_set1_ps(static_cast<float>(I))...};
  __m512i a = _mm512_set1_epi16(0x3f00), b = _mm512_set1_epi16(0x3a00);  // 0.5 and 2^-11
  for (int64_t i = 0; i < chain_steps; i++) {
    asm volatile("" : "+v"(a), "+v"(b));
    ((x[I] = _mm512_dpbf16_ps(x[I], reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))), ...);
  }
  float sum = 0;
  ((sum += _mm512_cvtss_f32(x[I])), ...);
  return sum;
}
#endif

float chains_plain() {
  Lanes x[4], a = Lanes{} + 0.999f, b = Lanes{} + 1e-3f;
  for (int i = 0; i < 4; i++) x[i] = Lanes{} + static_cast<float>(i);
  for (int64_t i = 0; i < chain_steps; i++) {
    asm volatile("" : "+m"(a), "+m"(b));
    for (auto& v : x) v = v * a + b;
  }
  return x[0][0] + x[1][0] + x[2][0] + x[3][0];
}

// Calls of f on every thread at once per second, the best of several runs.
template <class F>
double calls_per_second(ThreadPool& threads, BenchClock clock, F&& f) {
  volatile float sink = 0;
  double best = 0;
  for (int run = 0; run < runs; run++) {
    const double begin = bench_seconds(clock);
    threads.parallel(threads.size(), [&](int64_t t) { sink = f(t); });
    best = std::max(best, 1 / (bench_seconds(clock) - begin));
  }
  return best;
}

}  // namespace

double bench_seconds(BenchClock clock) {
  timespec at{};
  clock_gettime(clock == BenchClock::wall ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID, &at);
  return static_cast<double>(at.tv_sec) + 1e-9 * static_cast<double>(at.tv_nsec);
}

double read_rate(ThreadPool& threads, BenchClock clock, size_t bytes) {
  const size_t part = std::max<size_t>(bytes / sizeof(float) / static_cast<size_t>(threads.size()) / 64 * 64, 64);
  const size_t numbers = part * static_cast<size_t>(threads.size());
  const Buffer block(numbers * sizeof(float));
  std::fill_n(static_cast<float*>(block.data()), numbers, 1.0f);
  const double all = static_cast<double>(numbers * sizeof(float));
  const int64_t passes = std::max<int64_t>(1, static_cast<int64_t>(3e8 / all));
  const double rate = calls_per_second(threads, clock, [&](int64_t t) {
    const float* p = static_cast<const float*>(block.data()) + static_cast<size_t>(t) * part;
    Lanes sum[4] = {};
    for (int64_t pass = 0; pass < passes; pass++) {
      asm volatile("" : "+r"(p)::"memory");
      for (size_t i = 0; i + 64 <= part; i += 64) {
        Lanes v[4];
        __builtin_memcpy(v, p + i, sizeof v);
        for (int j = 0; j < 4; j++) sum[j] += v[j];
      }
    }
    return sum[0][0] + sum[1][0] + sum[2][0] + sum[3][0];
  });
  return rate * static_cast<double>(passes) * all;
}

Ceilings measure_ceilings(ThreadPool& threads, BenchClock clock) {
  Ceilings c;
  const double work = 2.0 * lanes * chain_steps * threads.size();
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) {
    c.fp32 = 16 * work *
             calls_per_second(threads, clock, [](int64_t) { return fma_chains_512(std::make_index_sequence<16>()); });
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    c.fp32 = 6 * work *
             calls_per_second(threads, clock, [](int64_t) { return fma_chains_256(std::make_index_sequence<12>()); });
  }
  if (__builtin_cpu_supports("avx512bf16")) {
    c.bf16 = 2 * 16 * work *
             calls_per_second(threads, clock, [](int64_t) { return dot_chains_512(std::make_index_sequence<16>()); });
  }
#endif
  if (c.fp32 == 0) c.fp32 = 4 * work * calls_per_second(threads, clock, [](int64_t) { return chains_plain(); });
  c.memory = read_rate(threads, clock, size_t{1} << 29);
  return c;
}

CpuLimits::CpuLimits(const ModelConfig& config, DType dtype, const Ceilings& ceilings, double weights_rate)
    : config_(config),
      dtype_(dtype),
      ceilings_(ceilings),
      cost_(model_cost(config, dtype)),
      weights_rate_(weights_rate),
      peak_(dtype == DType::bf16 ? std::max(ceilings.bf16, ceilings.fp32) : ceilings.fp32) {}

double CpuLimits::operations(double tokens, double length) const {
  return tokens * (cost_.linear_flops + cost_.delta_flops + cost_.attention_flops * length / 2);
}

double CpuLimits::sequence_bytes(int64_t context) const {
  const auto d = [](int64_t x) { return static_cast<double>(x); };
  const double chunk = delta_chunk, heads = d(config_.linear_num_value_heads);
  const double keys = d(config_.linear_num_key_heads * config_.linear_key_head_dim), values = d(config_.value_dim());
  const double row = d(config_.num_delta_layers()) * ((keys + values) * 4 + heads * 8);
  return d(context) * cost_.kv_bytes + cost_.window_bytes + cost_.state_bytes * (1 + 1 / chunk) + (chunk - 1) / 2 * row;
}

double CpuLimits::decode_bytes(int64_t batch, int64_t context) const {
  const double rows = static_cast<double>(batch), experts = static_cast<double>(config_.num_experts);
  const double untouched = std::pow(1 - static_cast<double>(config_.experts_per_token) / experts, rows);
  const double weights = cost_.dense + cost_.head + cost_.expert * experts * (1 - untouched);
  return weights * static_cast<double>(size_of(dtype_)) + rows * sequence_bytes(context);
}

double CpuLimits::decode_block(int64_t batch, int64_t context) const {
  const double weights = (parameters() - cost_.head) * static_cast<double>(size_of(dtype_));
  return weights + static_cast<double>(batch) * sequence_bytes(context);
}

double CpuLimits::decode_step(int64_t batch, int64_t context, double rate) const {
  const double delta = cost_.state_bytes / 4 * 7;
  const double attention = cost_.attention_flops * static_cast<double>(context);
  const double compute = static_cast<double>(batch) *
                         ((cost_.linear_flops + cost_.head_flops + attention) / peak_ + delta / ceilings_.fp32);
  return std::max(decode_bytes(batch, context) / rate, compute);
}

double CpuLimits::prefill(int64_t tokens) const {
  const auto n = static_cast<double>(tokens);
  const double bytes = (parameters() - cost_.head) * static_cast<double>(size_of(dtype_));
  return std::max((operations(n, n) + cost_.head_flops) / peak_, bytes / weights_rate_);
}

double CpuLimits::train_step(int64_t tokens, int64_t length) const {
  constexpr double adam_bytes_of_one = 30;
  const auto n = static_cast<double>(tokens), l = static_cast<double>(length);
  const double core = n * cost_.attention_flops * l / 2;
  const double flops = 3 * (operations(n, l) + n * cost_.head_flops) + 0.5 * core;
  return flops / peak_ + parameters() * adam_bytes_of_one / ceilings_.memory;
}

double CpuLimits::parameters() const {
  return cost_.dense + 2 * cost_.head + cost_.expert * static_cast<double>(config_.num_experts);
}

double CpuLimits::active_parameters() const {
  return cost_.dense + cost_.head + cost_.expert * static_cast<double>(config_.experts_per_token);
}

}  // namespace furlong
