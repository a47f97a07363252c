// The matrix products beside the machine's limit and, in the same run, beside OpenBLAS (fp32) and oneDNN (bf16).
#include <cstdio>
#include <cstdlib>

#include "base/rng.h"
#include "machine.h"
#include "ops/linear.h"
#include "ops/ops.h"
#include "tensor/buffer.h"

#ifdef WITH_OPENBLAS
#include <cblas.h>
#endif
#ifdef WITH_DNNL
// Exported by oneDNN without a public declaration.
extern "C" int dnnl_gemm_bf16bf16f32(char transa, char transb, int64_t m, int64_t n, int64_t k, float alpha,
                                     const void* a, int64_t lda, const void* b, int64_t ldb, float beta, float* c,
                                     int64_t ldc);
#endif

namespace furlong::bench {
namespace {

struct Shape {
  int64_t rows, out, in;
};

void fill(const Tensor& t, uint32_t salt) {
  for (int64_t i = 0; i < t.numel(); i++) {
    const float x = open_uniform(random_word({.seed = salt}, static_cast<uint32_t>(i))) - 0.5f;
    if (t.dtype() == DType::bf16) {
      t.as<bf16>()[i] = bf16(x);
    } else {
      t.as<float>()[i] = x;
    }
  }
}

void run(ThreadPool& threads, const Limits& limits, const Shape& s) {
  Stream stream(threads);
  const double flops = 2.0 * static_cast<double>(s.rows * s.out * s.in);
  const auto rate = [&](const Figure& f) { return flops / f.median / 1e9; };
  OwnedTensor x(DType::f32, {s.rows, s.in}), w(DType::f32, {s.out, s.in}), y(DType::f32, {s.rows, s.out});
  OwnedTensor dw(DType::f32, {s.out, s.in}), dx(DType::f32, {s.rows, s.in});
  OwnedTensor xh(DType::bf16, {s.rows, s.in}), wh(DType::bf16, {s.out, s.in}), yh(DType::bf16, {s.rows, s.out});
  OwnedTensor dxh(DType::bf16, {s.rows, s.in});
  fill(x, 1);
  fill(w, 2);
  fill(xh, 1);
  fill(wh, 2);
  const auto ours = time_it([&] { linear(stream, y, x, w); });
  const auto back_x = time_it([&] { linear_dx(stream, dx, y, w, false); });
  const auto back_w = time_it([&] { linear_dw(stream, dw, y, x); });
  const auto half = time_it([&] { linear(stream, yh, xh, wh); });
  const auto half_x = time_it([&] { linear_dx(stream, dxh, yh, wh, false); });
  const auto half_w = time_it([&] { linear_dw(stream, dw, yh, xh); });
  std::printf("%6ld %6ld %6ld | %7.0f %4.0f%% %7.0f %7.0f", s.rows, s.out, s.in, rate(ours),
              100 * flops / ours.median / limits.flops, rate(back_x), rate(back_w));
#ifdef WITH_OPENBLAS
  const auto blas = time_it([&] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(s.rows), static_cast<int>(s.out),
                static_cast<int>(s.in), 1.0f, x.view().as<float>(), static_cast<int>(s.in), w.view().as<float>(),
                static_cast<int>(s.in), 0.0f, y.view().as<float>(), static_cast<int>(s.out));
  });
  std::printf(" %7.0f %5.2fx", rate(blas), blas.median / ours.median);
#endif
  std::printf(" | %7.0f %7.0f %7.0f", rate(half), rate(half_x), rate(half_w));
#ifdef WITH_DNNL
  const auto dnnl = time_it([&] {
    dnnl_gemm_bf16bf16f32('N', 'T', s.rows, s.out, s.in, 1.0f, xh.view().data(), s.in, wh.view().data(), s.in, 0.0f,
                          y.view().as<float>(), s.out);
  });
  std::printf(" %7.0f %5.2fx", rate(dnnl), dnnl.median / half.median);
#endif
  std::printf("\n");
}

}  // namespace
}  // namespace furlong::bench

int main() {
  using namespace furlong;
  using namespace furlong::bench;
  ThreadPool threads(0);
  const Limits limits = measure_limits(threads);
  std::printf("%d threads, %s; measured limits: %.0f GFLOP/s fp32 from registers, %.1f GB/s read\n", threads.size(),
              ops::isa_name().c_str(), limits.flops / 1e9, limits.bytes / 1e9);
  std::printf("GFLOP/s, medians; ratio = peer's time / ours\n");
  std::printf(
      "  rows    out     in | fp32 y  of limit     dx      dw OpenBLAS ratio | bf16 y      dx      dw  oneDNN ratio\n");
  for (const Shape& s : {Shape{1, 512, 2048}, Shape{4, 512, 2048}, Shape{16, 512, 2048}, Shape{64, 512, 2048},
                         Shape{1, 2048, 2048}, Shape{1024, 1024, 1024}, Shape{2048, 2048, 2048}, Shape{4096, 128, 128},
                         Shape{256, 264, 128}, Shape{4096, 1024, 256}, Shape{1024, 8192, 2048}, Shape{1024, 2048, 4096},
                         Shape{512, 1024, 2048}, Shape{512, 2048, 512}}) {
    run(threads, limits, s);
  }
  return 0;
}
