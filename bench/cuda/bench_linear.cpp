// Dense products and the movement of rows to experts at the model's shapes.
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

#include "cuda/timing.h"
#include "ops/cuda/bodies.h"

namespace furlong::bench {
namespace {

constexpr double flops_limit = 790e12, bytes_limit = 4.3e12;

void report(const std::string& name, double ms, double bytes, double flops = 0) {
  const double floor = std::max(bytes / bytes_limit, flops / flops_limit) * 1e3;
  std::printf("%-46s %9.4f ms  %7.1f TFLOP/s  %7.0f GB/s  %5.1f %% of limit\n", name.c_str(), ms, flops / ms * 1e-9,
              bytes / ms * 1e-6, 100 * floor / ms);
  std::fflush(stdout);
}

// Device memory filled with one run of small random numbers again and again.
struct Random : OwnedTensor {
  Random(DType dtype, std::initializer_list<int64_t> shape) : OwnedTensor(dtype, shape, Device::cuda) {
    static const std::vector<uint8_t> floats = bits(DType::f32), halves = bits(DType::bf16);
    const auto& from = dtype == DType::bf16 ? halves : floats;
    const size_t bytes = view().bytes();
    for (size_t at = 0; at < bytes; at += from.size()) {
      cuda::check(cudaMemcpy(static_cast<char*>(view().data()) + at, from.data(), std::min(from.size(), bytes - at),
                             cudaMemcpyHostToDevice),
                  "filling");
    }
  }
  static std::vector<uint8_t> bits(DType dtype) {
    std::mt19937 engine(1);
    std::vector<uint8_t> out(size_t{4099} * 4096);
    for (size_t i = 0; i < out.size() / size_of(dtype); i++) {
      const float x = static_cast<float>(static_cast<int32_t>(engine())) * 4.6e-10f;
      if (dtype == DType::bf16) {
        const bf16 h(x);
        std::memcpy(&out[i * 2], &h, 2);
      } else {
        std::memcpy(&out[i * 4], &x, 4);
      }
    }
    return out;
  }
};

std::vector<uint8_t> fetch(Stream& stream, const Tensor& t) {
  stream.synchronize();
  std::vector<uint8_t> out(t.bytes());
  cuda::check(cudaMemcpy(out.data(), t.data(), out.size(), cudaMemcpyDeviceToHost), "fetching");
  return out;
}

double size(const Tensor& t) { return static_cast<double>(t.bytes()); }

void forward(Stream& stream, int64_t m, int64_t k, int64_t n, DType out = DType::bf16) {
  const Random x(DType::bf16, {m, k}), w(DType::bf16, {n, k});
  const OwnedTensor y(out, {m, n}, Device::cuda);
  const double ms = median_ms(
      stream, [&] { cuda::linear(stream, y, x, w); }, 9);
  report("linear " + std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n), ms,
         size(x.view()) + size(w.view()) + size(y.view()), 2.0 * m * n * k);
}

void backward(Stream& stream, int64_t m, int64_t k, int64_t n, DType grad = DType::bf16) {
  const Random x(DType::bf16, {m, k}), w(DType::bf16, {n, k}), dy(grad, {m, n});
  const OwnedTensor dx(DType::bf16, {m, k}, Device::cuda), dw(DType::f32, {n, k}, Device::cuda);
  const std::string shape = std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n);
  double ms = median_ms(
      stream, [&] { cuda::linear_dx(stream, dx, dy, w, false); }, 7);
  report("dx " + shape, ms, size(dx.view()) + size(w.view()) + size(dy.view()), 2.0 * m * n * k);
  ms = median_ms(
      stream, [&] { cuda::linear_dw(stream, dw, dy, x); }, 7);
  report("dw " + shape, ms, 2 * size(dw.view()) + size(x.view()) + size(dy.view()), 2.0 * m * n * k);
}

// As in decoding: one product after another, each with a weight that is not in the cache.
void forward_in_turn(Stream& stream, int64_t m, int64_t k, int64_t n) {
  const int64_t count = (int64_t{1} << 30) / (k * n * 2);
  const Random x(DType::bf16, {m, k}), w(DType::bf16, {count, n, k});
  const OwnedTensor y(DType::bf16, {m, n}, Device::cuda);
  const double ms = median_ms(
                        stream,
                        [&] {
                          for (int64_t i = 0; i < count; i++) cuda::linear(stream, y, x, w.view().at(i));
                        },
                        7) /
                    static_cast<double>(count);
  report("linear in turn " + std::to_string(m) + "x" + std::to_string(k) + "x" + std::to_string(n), ms,
         size(x.view()) + size(y.view()) + 2.0 * k * n, 2.0 * m * n * k);
}

// How many numbers of a row change with the rows computed beside it.
void alike(Stream& stream, int64_t k, int64_t n, DType dtype) {
  constexpr int64_t most = 4096;
  const Random x(dtype, {most, k}), w(dtype, {n, k});
  const OwnedTensor y(DType::f32, {most, n}, Device::cuda);
  std::printf("rows alike, %s %ld->%ld, against %ld rows:", name_of(dtype), k, n, most);
  cuda::linear(stream, y, x, w);
  const auto whole = fetch(stream, y.view().rows(0, 1));
  for (const int64_t m : {1, 3, 8, 9, 16, 17, 24, 32, 48, 64, 96, 128, 200, 256, 512, 1024, 2047}) {
    cuda::linear(stream, y.view().rows(0, m), x.view().rows(0, m), w);
    const auto part = fetch(stream, y.view().rows(0, 1));
    int different = 0;
    for (size_t i = 0; i < part.size(); i += 4) different += std::memcmp(&part[i], &whole[i], 4) != 0;
    std::printf(" %ld:%d", m, different);
  }
  std::printf("\n");
}

void dense(Stream& stream) {
  for (const int64_t m : {1, 8, 64, 256}) {
    forward_in_turn(stream, m, 2048, 8192);
    forward_in_turn(stream, m, 2048, 4096);
    forward_in_turn(stream, m, 4096, 2048);
    forward_in_turn(stream, m, 2048, 512);
    forward_in_turn(stream, m, 512, 2048);
    forward_in_turn(stream, m, 2048, 256);
    forward_in_turn(stream, m, 2048, 32);
  }
  for (const int64_t m : {1, 64, 8192}) {
    forward(stream, m, 2048, 8192);
    forward(stream, m, 2048, 4096);
    forward(stream, m, 4096, 2048);
    forward(stream, m, 2048, 512);
    forward(stream, m, 512, 2048);
    forward(stream, m, 2048, 256, DType::f32);
    forward(stream, m, 2048, 32);
    forward(stream, m, 2048, 1, DType::f32);
    forward(stream, m > 256 ? 2048 : m, 2048, 248320, DType::f32);
  }
  backward(stream, 8192, 2048, 8192);
  backward(stream, 8192, 2048, 4096);
  backward(stream, 8192, 4096, 2048);
  backward(stream, 8192, 2048, 512);
  backward(stream, 8192, 512, 2048);
  backward(stream, 8192, 2048, 256, DType::f32);
  backward(stream, 8192, 2048, 32);
  backward(stream, 8192, 2048, 1, DType::f32);
  backward(stream, 2048, 2048, 248320, DType::f32);
  backward(stream, 4096, 2048, 248320, DType::f32);
  backward(stream, 2048, 2048, 248320);
}

void experts(Stream& stream, int64_t tokens) {
  constexpr int64_t experts = 256, k = 8, hidden = 2048, width = 512;
  std::printf("%ld tokens\n", tokens);
  const Random logits(DType::f32, {tokens, experts}), x(DType::bf16, {tokens, hidden}),
      shared(DType::bf16, {tokens, hidden});
  const Random rows(DType::bf16, {tokens * k, hidden}), a(DType::bf16, {tokens * k, width}),
      da(DType::bf16, {tokens * k, width});
  const Random logit(DType::f32, {tokens, 1});
  const auto ints = [](std::initializer_list<int64_t> s) { return OwnedTensor(DType::i32, s, Device::cuda); };
  const OwnedTensor ids = ints({tokens, k}), offsets = ints({experts + 1}), row_of = ints({tokens, k}),
                    token_of = ints({tokens * k});
  const OwnedTensor weights(DType::f32, {tokens, k}, Device::cuda), dweights(DType::f32, {tokens, k}, Device::cuda);
  const OwnedTensor dlogits(DType::f32, {tokens, experts}, Device::cuda),
      y(DType::bf16, {tokens, hidden}, Device::cuda);
  const OwnedTensor dlogit(DType::f32, {tokens, 1}, Device::cuda);
  const Routing r{ids, weights, offsets, row_of, token_of};
  const double all = size(rows.view()), one = size(x.view()), act = size(a.view());
  const auto line = [&](const char* name, double bytes, auto&& f) { report(name, median_ms(stream, f, 15), bytes); };
  line("route", size(logits.view()), [&] { cuda::route(stream, r, logits); });
  line("sort_by_expert", 12.0 * tokens * k, [&] { cuda::sort_by_expert(stream, r, 0, experts); });
  line("route_backward", size(dlogits.view()), [&] { cuda::route_backward(stream, dlogits, dweights, r); });
  line("gather_rows", one + all, [&] { cuda::gather_rows(stream, rows, x, r); });
  line("gather_rows_backward", 2 * one + all, [&] { cuda::gather_rows_backward(stream, y, rows, r); });
  line("combine", 2 * one + all, [&] { cuda::combine(stream, y, rows, shared, logit, {}, r); });
  line("combine_backward", 3 * one, [&] { cuda::combine_backward(stream, y, dlogit, x, shared, logit); });
  line("routing_weight_gradient", 2 * act, [&] { cuda::routing_weight_gradient(stream, dweights, da, a, r); });
  line("scale_rows", 2 * all, [&] { cuda::scale_rows(stream, rows, r); });
  line("scale_rows, 512 wide", 2 * act, [&] { cuda::scale_rows(stream, a, r); });
}

}  // namespace
}  // namespace furlong::bench

int main() {
  using namespace furlong;
  cuda::open();
  ThreadPool threads(1);
  Stream stream(threads, Device::cuda);
  bench::alike(stream, 2048, 8192, DType::bf16);
  bench::alike(stream, 4096, 2048, DType::bf16);
  bench::alike(stream, 2048, 512, DType::bf16);
  bench::alike(stream, 2048, 256, DType::bf16);
  bench::alike(stream, 2048, 32, DType::bf16);
  bench::alike(stream, 2048, 12304, DType::bf16);
  bench::alike(stream, 2048, 1000, DType::bf16);
  bench::alike(stream, 2048, 8192, DType::f32);
  bench::alike(stream, 256, 96, DType::f32);
  for (const DType t : {DType::bf16, DType::f32}) {
    bench::alike(stream, 64, 96, t);
    bench::alike(stream, 256, 512, t);
    bench::alike(stream, 64, 130, t);
    bench::alike(stream, 32, 4, t);
    bench::alike(stream, 2048, 1, t);
    bench::alike(stream, 512, 2048, t);
  }
  bench::experts(stream, 1);
  bench::experts(stream, 256);
  bench::experts(stream, 8192);
  bench::dense(stream);
}
