// Times the convolution and the delta rule at the released models' shapes.
#include <fmt/format.h>

#include <cstdio>
#include <functional>
#include <random>

#include "ops/table.h"
#include "tensor/copy.h"
#include "timing.h"

namespace furlong::bench {
namespace {

constexpr DeltaShape shape{16, 32, 128, 128};
constexpr int64_t channels = 8192, drafts = 2, ring = delta_chunk + drafts, window = 3 + drafts;
constexpr double copy_limit = 4.3e12;

// Device memory filled with numbers of one distribution.
struct Numbers {
  Buffer buffer;
  Tensor view;
  Numbers(Stream& stream, DType dtype, const std::vector<int64_t>& dims, double low = 0, double high = 0) {
    int64_t n = 1;
    for (const int64_t d : dims) n *= d;
    buffer = Buffer(static_cast<size_t>(n) * size_of(dtype), Device::cuda);
    view = Tensor(buffer.data(), dtype, dims.data(), static_cast<int>(dims.size()), Device::cuda);
    cuda::check(cudaMemsetAsync(buffer.data(), 0, view.bytes(), stream.queue().stream), "cudaMemsetAsync");
    if (low == high) return;
    // One megabyte of random numbers, repeated.
    std::mt19937 engine(5);
    const int64_t some = std::min<int64_t>(n, 1 << 20);
    std::vector<float> f(static_cast<size_t>(some));
    for (auto& v : f) v = static_cast<float>(low + (high - low) * (static_cast<double>(engine()) / 4294967296.0));
    std::vector<bf16> h(f.size());
    for (size_t i = 0; i < f.size(); i++) h[i] = bf16(f[i]);
    void* from = dtype == DType::bf16 ? static_cast<void*>(h.data()) : static_cast<void*>(f.data());
    for (int64_t at = 0; at < n; at += some) {
      const int64_t m = std::min(some, n - at);
      copy(stream, Tensor(static_cast<char*>(buffer.data()) + at * size_of(dtype), dtype, {m}, Device::cuda),
           Tensor(from, dtype, {m}));
    }
    stream.synchronize();
  }
  operator Tensor() const { return view; }
};

struct Indices {
  Buffer buffer;
  Tensor view;
  Indices(Stream& stream, std::vector<int32_t> values) {
    const auto n = static_cast<int64_t>(values.size());
    buffer = Buffer(values.size() * 4, Device::cuda);
    view = Tensor(buffer.data(), DType::i32, {n}, Device::cuda);
    copy(stream, view, Tensor(values.data(), DType::i32, {n}));
    stream.synchronize();
  }
  operator Tensor() const { return view; }
};

void report(const std::string& what, double ms, double flops, double bytes) {
  fmt::print("{:34} {:8.3f} ms  {:7.1f} TFLOP/s  {:7.0f} GB/s  {:5.1f}% of copy\n", what, ms, flops / ms * 1e-9,
             bytes / ms * 1e-6, 100 * bytes / ms * 1e3 / copy_limit);
  std::fflush(stdout);
}

void training(Stream& stream, int64_t sequences, int64_t length) {
  const OpTable& ops = cuda::ops();
  const int64_t T = sequences * length, kd = shape.key_heads * 128, vd = shape.value_heads * 128, heads = 32;
  std::vector<int32_t> starts, positions;
  for (int64_t s = 0; s <= sequences; s++) starts.push_back(static_cast<int32_t>(s * length));
  for (int64_t t = 0; t < T; t++) positions.push_back(static_cast<int32_t>(t % length));
  const Indices st(stream, starts), po(stream, positions);
  const Segments segments{st, po};
  const int64_t chunks = sequences * ((length + 63) / 64);
  const DType h = DType::bf16, f = DType::f32;
  const Numbers x(stream, h, {T, channels}, -1, 1), y(stream, h, {T, channels}), w(stream, h, {channels, 1, 4}, -1, 1);
  const Numbers dw(stream, f, {channels, 1, 4}), g(stream, f, {T, heads}, -0.2, -0.001),
      beta(stream, f, {T, heads}, 0, 1);
  const Numbers o(stream, h, {T, vd}), dout(stream, h, {T, vd}, -1, 1), dx(stream, h, {T, channels});
  const Numbers q(stream, f, {T, 16, 128}), k(stream, f, {T, 16, 128}), qr(stream, f, {T, 16}), kr(stream, f, {T, 16});
  const Numbers u(stream, f, {T, heads, 128}), gamma(stream, DType::f64, {T, heads});
  const Numbers states(stream, f, {chunks, heads, 128, 128}), dg(stream, f, {T, heads}), db(stream, f, {T, heads});
  const DeltaSaved saved{q, k, qr, kr, u, gamma, states}, scoring{q, k, qr, kr, u, gamma, {}};
  const std::string name = fmt::format("{}x{}", sequences, length);
  const double dt = static_cast<double>(T);
  // Per chunk and head: six products of 64x128x128 and 64x64x128 kind forward, about 2.6 times as many backward.
  const double forward = dt / 64 * heads * 2 * (4.0 * 64 * 64 * 128 + 3.0 * 64 * 128 * 128);
  const double moved = dt * (channels + vd) * 2,
               saves = dt * (2.0 * kd + vd) * 4 + static_cast<double>(chunks) * heads * 65536;
  report("conv forward " + name, median_ms(stream, [&] { ops.conv_silu(stream, y, x, w, segments, {}); }), 0,
         dt * channels * 4);
  report("conv backward " + name, median_ms(stream, [&] { ops.conv_silu_backward(stream, dx, dw, y, x, w, segments); }),
         0, dt * channels * 6);
  report("delta forward " + name,
         median_ms(stream, [&] { ops.delta_rule(stream, o, x, g, beta, {}, {}, segments, {}, saved, shape); }), forward,
         moved + saves);
  report("delta forward, no states " + name,
         median_ms(stream, [&] { ops.delta_rule(stream, o, x, g, beta, {}, {}, segments, {}, scoring, shape); }),
         forward, moved + dt * (2.0 * kd + vd) * 4);
  report(
      "delta backward " + name,
      median_ms(stream,
                [&] { ops.delta_rule_backward(stream, dx, dg, db, {}, dout, {}, x, g, beta, segments, saved, shape); }),
      2.6 * forward, 2 * moved + saves);
}

void decode(Stream& stream, int64_t sequences, int64_t rows) {
  const OpTable& ops = cuda::ops();
  const int64_t T = sequences * rows, heads = 32, vd = 4096;
  std::vector<int32_t> starts, positions, slots, speculative;
  double held = 0;
  for (int64_t s = 0; s <= sequences; s++) starts.push_back(static_cast<int32_t>(s * rows));
  for (int64_t s = 0; s < sequences; s++) {
    const int64_t at = 1000 + s * 37 % 61;  // rows of the chunk so far: any
    held += static_cast<double>(at % 64);
    for (int64_t i = 0; i < rows; i++)
      positions.push_back(static_cast<int32_t>(at / 64 * 64 + std::min<int64_t>(at % 64, 60) + i));
    slots.push_back(static_cast<int32_t>(s + 1));
    speculative.push_back(rows > 1);
  }
  const Indices st(stream, starts), po(stream, positions), sl(stream, slots), sp(stream, speculative);
  const Segments segments{st, po};
  const DType h = DType::bf16, f = DType::f32;
  const Numbers state(stream, f, {sequences + 1, heads, 128, 128}, -1, 1),
      rk(stream, h, {sequences + 1, ring, 16, 128}, -0.1, 0.1);
  const Numbers ru(stream, h, {sequences + 1, ring, heads, 128}, -1, 1),
      rb(stream, f, {sequences + 1, ring, heads}, 0, 1), rg(stream, DType::f64, {sequences + 1, ring, heads});
  const Numbers win(stream, h, {sequences + 1, window, channels}, -1, 1);
  const Numbers x(stream, h, {T, channels}, -1, 1), y(stream, h, {T, channels}), w(stream, h, {channels, 1, 4}, -1, 1);
  const Numbers g(stream, f, {T, heads}, -0.2, -0.001), beta(stream, f, {T, heads}, 0, 1), o(stream, h, {T, vd});
  const Numbers q(stream, f, {T, 16, 128}), k(stream, f, {T, 16, 128}), qr(stream, f, {T, 16}), kr(stream, f, {T, 16});
  const Numbers u(stream, f, {T, heads, 128}), gamma(stream, DType::f64, {T, heads});
  const DeltaSaved saved{q, k, qr, kr, u, gamma, {}};
  const DeltaSlots memory{state, rk, ru, rg, win, sl, sp, rb};
  const std::string name = fmt::format("B={} of {}", sequences, rows);
  const double n = static_cast<double>(sequences);
  report("conv decode " + name, median_ms(stream, [&] { ops.conv_silu(stream, y, x, w, segments, memory); }), 0,
         static_cast<double>(T) * channels * 6 + n * 3 * channels * 2);
  report("delta decode " + name,
         median_ms(stream, [&] { ops.delta_rule(stream, o, x, g, beta, {}, {}, segments, memory, saved, shape); }), 0,
         n * heads * 65536 + held * (16 + 32) * 256);
  const Numbers qkv(stream, h, {T, channels}, -1, 1), z(stream, h, {T, vd}, -1, 1), a(stream, h, {T, heads}, -1, 1),
      b(stream, h, {T, heads}, -1, 1), A_log(stream, f, {heads}, -1, 1), bias(stream, h, {heads}, -1, 1),
      norm(stream, f, {128}, 0.5, 1.5), o_r(stream, f, {T * heads}), out(stream, h, {T, vd});
  const DeltaCore core{qkv, z, a, b, w, A_log, bias, norm, 1e-6, y, g, beta, o, o_r};
  report("delta core " + name,
         median_ms(stream, [&] { ops.delta_core(stream, out, core, segments, memory, saved, shape); }), 0,
         n * heads * 65536 + held * (16 + 32) * 256);
  const Indices before(stream, std::vector<int32_t>(static_cast<size_t>(sequences), 10)),
      after(stream, std::vector<int32_t>(static_cast<size_t>(sequences), 12));
  report("delta commit of none " + name,
         median_ms(stream, [&] { ops.delta_commit(stream, {memory}, sl, before, after, shape); }), 0, 0);
}

}  // namespace
}  // namespace furlong::bench

// bench_cuda_delta [decode SEQUENCES ROWS]
int main(int argc, char** argv) {
  using namespace furlong;
  cuda::open();
  ThreadPool threads(1);
  Stream stream(threads, Device::cuda);
  if (argc == 4) {
    bench::decode(stream, std::atoll(argv[2]), std::atoll(argv[3]));
    return 0;
  }
  for (const auto& [n, length] : {std::pair{1, 8192}, {4, 2048}, {8, 1024}}) bench::training(stream, n, length);
  for (const int n : {1, 64, 200, 256}) {
    for (const int rows : {1, 3}) bench::decode(stream, n, rows);
  }
}
