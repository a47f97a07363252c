// The grouped products at the model's shapes: even, random and skewed routing in training, few tokens in decoding.
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>

#include "base/threads.h"
#include "ops/cuda/bodies.h"
#include "tensor/copy.h"
#include "timing.h"

using namespace furlong;

namespace {

constexpr int64_t experts = 256, chosen = 8;
constexpr double tensor_limit = 790e12, copy_limit = 4.3e12;

// Rows of each expert when every token takes `chosen` different ones, by weight 1 / (rank + 1)^skew; skew < 0: exactly
// even.
std::vector<int32_t> route(int64_t tokens, double skew) {
  std::vector<int32_t> rows(experts, static_cast<int32_t>(tokens * chosen / experts));
  if (skew < 0) return rows;
  std::fill(rows.begin(), rows.end(), 0);
  std::vector<double> log_weight(experts);
  for (int64_t e = 0; e < experts; e++) log_weight[static_cast<size_t>(e * 97 % experts)] = -skew * std::log(e + 1.0);
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> uniform(1e-12, 1);
  std::vector<double> key(experts);
  std::vector<int> order(experts);
  for (int64_t t = 0; t < tokens; t++) {
    for (size_t e = 0; e < experts; e++) key[e] = log_weight[e] - std::log(-std::log(uniform(random)));
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + chosen, order.end(), [&](int a, int b) { return key[a] > key[b]; });
    for (int i = 0; i < chosen; i++) rows[order[i]]++;
  }
  return rows;
}

void fill(Stream& stream, const Tensor& t) {
  std::vector<uint16_t> some(size_t{1} << 22);
  std::mt19937 random(3);
  for (auto& v : some) v = static_cast<uint16_t>(0x3c00 | (random() & 0x83ff));
  const auto n = static_cast<int64_t>(some.size());
  for (int64_t at = 0; at < t.numel(); at += n) {
    const int64_t count = std::min(n, t.numel() - at);
    cuda::check(cudaMemcpyAsync(static_cast<char*>(t.data()) + 2 * at, some.data(), static_cast<size_t>(2 * count),
                                cudaMemcpyHostToDevice, stream.queue().stream),
                "cudaMemcpyAsync");
  }
  stream.synchronize();
}

struct Model {
  int64_t k, n;
  OwnedTensor w, dw;
  Model(Stream& stream, int64_t k, int64_t n)
      : k(k), n(n), w(DType::bf16, {experts, n, k}, Device::cuda), dw(DType::f32, {experts, n, k}, Device::cuda) {
    fill(stream, w);
  }
};

void report(const char* op, const char* routing, int64_t tokens, int64_t k, int64_t n, double ms, double flops,
            double bytes) {
  std::printf("%-8s %-7s %6lld tokens %4lld->%-4lld %8.4f ms %6.1f TFLOP/s %6.0f GB/s  %3.0f%% of limit\n", op, routing,
              static_cast<long long>(tokens), static_cast<long long>(k), static_cast<long long>(n), ms,
              flops / ms / 1e9, bytes / ms / 1e6, 1e5 * std::max(flops / tensor_limit, bytes / copy_limit) / ms);
  std::fflush(stdout);
}

void time_case(Stream& stream, const Model& m, int64_t tokens, const char* name, double skew, bool gradients) {
  const int64_t rows = tokens * chosen, k = m.k, n = m.n;
  const auto counts = route(tokens, skew);
  std::vector<int32_t> starts(experts + 1, 0);
  for (size_t e = 0; e < experts; e++) starts[e + 1] = starts[e] + counts[e];
  const OwnedTensor x(DType::bf16, {rows, k}, Device::cuda), y(DType::bf16, {rows, n}, Device::cuda);
  const OwnedTensor offsets(DType::i32, {experts + 1}, Device::cuda);
  fill(stream, x);
  fill(stream, y);
  copy(stream, offsets, Tensor(starts.data(), DType::i32, {experts + 1}));
  const auto touched = static_cast<double>(experts - std::count(counts.begin(), counts.end(), 0));
  const double flops = 2.0 * static_cast<double>(rows * k * n), weights = touched * static_cast<double>(k * n);
  const double sides = 2.0 * static_cast<double>(rows * (k + n));
  report("forward", name, tokens, k, n,
         bench::median_ms(stream, [&] { cuda::grouped_linear(stream, y, x, m.w, offsets); }), flops,
         2 * weights + sides);
  if (!gradients) return;
  report("dx", name, tokens, k, n,
         bench::median_ms(stream, [&] { cuda::grouped_linear_dx(stream, x, y, m.w, offsets); }), flops,
         2 * weights + sides);
  report("dw", name, tokens, k, n,
         bench::median_ms(stream, [&] { cuda::grouped_linear_dw(stream, m.dw, y, x, offsets); }), flops,
         8 * weights + sides);
}

}  // namespace

int main() {
  cuda::open();
  ThreadPool threads(1);
  Stream stream(threads, Device::cuda);
  for (const auto& [k, n] : {std::pair<int64_t, int64_t>{2048, 1024}, {512, 2048}}) {
    const Model m(stream, k, n);
    for (const int64_t tokens : {8192, 32768}) {
      time_case(stream, m, tokens, "even", -1, true);
      time_case(stream, m, tokens, "random", 0, true);
      time_case(stream, m, tokens, "zipf", 1, true);
    }
    for (const int64_t tokens : {1, 8, 64, 256}) time_case(stream, m, tokens, "random", 0, false);
  }
}
