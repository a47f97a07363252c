// Attention at the model's true shapes, beside the GPU's limits.
#include <fmt/format.h>

#include <random>

#include "cuda/timing.h"
#include "ops/table.h"
#include "tensor/copy.h"

namespace furlong::bench {
namespace {

constexpr AttentionShape shape{16, 2, 256};
constexpr double peak_tflops = 790, peak_gbytes = 4300;

struct Data {
  Data(Stream& stream, int64_t rows, int64_t columns) : device(DType::bf16, {rows, columns}, Device::cuda) {
    std::vector<bf16> values(static_cast<size_t>(rows * columns));
    std::mt19937 random(7);
    for (auto& x : values) x = bf16((static_cast<float>(random()) / 4294967296.0f - 0.5f) * 3.4f);
    copy(stream, device, Tensor(values.data(), DType::bf16, {rows, columns}));
  }
  OwnedTensor device;
};

struct Integers {
  Integers(Stream& stream, const std::vector<int32_t>& values, int64_t rows, int64_t columns)
      : device(columns == 0 ? OwnedTensor(DType::i32, {rows}, Device::cuda)
                            : OwnedTensor(DType::i32, {rows, columns}, Device::cuda)) {
    copy(stream, device.view().reshape({rows * std::max<int64_t>(columns, 1)}),
         Tensor(const_cast<int32_t*>(values.data()), DType::i32, {static_cast<int64_t>(values.size())}));
  }
  OwnedTensor device;
};

void packed(Stream& stream, const std::vector<int32_t>& lengths, bool backward) {
  std::vector<int32_t> starts{0}, positions;
  double flops = 0;
  for (const int32_t n : lengths) {
    starts.push_back(starts.back() + n);
    for (int32_t i = 0; i < n; i++) positions.push_back(i);
    flops += 2.0 * n * n * shape.heads * shape.head_dim;  // half of all pairs, two products
  }
  const int64_t rows = starts.back(), queries = shape.heads * shape.head_dim, keys = shape.kv_heads * shape.head_dim;
  const Data q(stream, rows, queries), k(stream, rows, keys), v(stream, rows, keys), grad(stream, rows, queries);
  const Data o(stream, rows, queries), dq(stream, rows, queries), dk(stream, rows, keys), dv(stream, rows, keys);
  const OwnedTensor lse(DType::f32, {rows, shape.heads}, Device::cuda);
  const Integers s(stream, starts, static_cast<int64_t>(starts.size()), 0), p(stream, positions, rows, 0);
  const Segments segments{s.device, p.device};
  const auto report = [&](const char* name, double ms, double work) {
    fmt::print("{:9s} {} x {:6d} rows: {:7.3f} ms, {:6.1f} TFLOP/s, {:4.1f} % of {}\n", name, lengths.size(),
               lengths.front(), ms, work / ms * 1e-9, 100 * work / ms * 1e-9 / peak_tflops, peak_tflops);
  };
  report("forward",
         median_ms(
             stream,
             [&] { cuda::ops().attention(stream, o.device, lse, q.device, k.device, v.device, segments, {}, shape); }),
         flops);
  if (!backward) return;
  report("backward",
         median_ms(
             stream,
             [&] {
               cuda::ops().attention_backward(stream, dq.device, dk.device, dv.device, grad.device, q.device, k.device,
                                              v.device, o.device, lse, segments, shape);
             },
             10),
         2.5 * flops);
}

// `segments` sequences of `rows` new rows each after `context` earlier ones, in pages of 32.
void paged(Stream& stream, int64_t count, int32_t rows, int32_t context, int64_t page_slots) {
  constexpr int64_t page = 32;
  const int64_t used = (context + rows + page - 1) / page, keys = shape.kv_heads * shape.head_dim;
  std::vector<int32_t> starts{0}, positions, table(static_cast<size_t>(count * page_slots), 0);
  for (int64_t i = 0; i < count; i++) {
    starts.push_back(starts.back() + rows);
    for (int32_t r = 0; r < rows; r++) positions.push_back(context + r);
    // Pages of a sequence are scattered over the pool.
    for (int64_t j = 0; j < used; j++) {
      table[static_cast<size_t>(i * page_slots + j)] = static_cast<int32_t>((i * used + j) * 7919 % (count * used));
    }
  }
  const int64_t total = count * rows, queries = shape.heads * shape.head_dim;
  const Data q(stream, total, queries), k(stream, total, keys), v(stream, total, keys), o(stream, total, queries);
  const OwnedTensor pages_k(DType::bf16, {count * used, page, keys}, Device::cuda);
  const OwnedTensor pages_v(DType::bf16, {count * used, page, keys}, Device::cuda);
  const OwnedTensor lse(DType::f32, {total, shape.heads}, Device::cuda);
  const Integers s(stream, starts, count + 1, 0), p(stream, positions, total, 0), t(stream, table, count, page_slots);
  const Segments segments{s.device, p.device};
  const KvPages pages{pages_k, pages_v, t.device};
  const auto call = [&] {
    cuda::ops().attention(stream, o.device, lse, q.device, k.device, v.device, segments, pages, shape);
  };
  const double bytes = 2.0 * static_cast<double>(count) * (context + rows) * static_cast<double>(keys) * 2;
  // A decode step replays a graph: that is what is timed.
  call();
  stream.synchronize();
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda::check(cudaStreamBeginCapture(stream.queue().stream, cudaStreamCaptureModeThreadLocal), "capture");
  call();
  cuda::check(cudaStreamEndCapture(stream.queue().stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  const double ms = median_ms(stream, [&] { cuda::check(cudaGraphLaunch(exec, stream.queue().stream), "launch"); });
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  const double pairs = (context + 0.5 * (rows + 1)) * rows * static_cast<double>(count);
  fmt::print("paged {:3d} x {:4d} rows after {:6d}: {:7.4f} ms, {:6.0f} GB/s, {:4.1f} % of {}; {:6.1f} TFLOP/s\n",
             count, rows, context, ms, bytes / ms * 1e-6, 100 * bytes / ms * 1e-6 / peak_gbytes, peak_gbytes,
             pairs * 4 * shape.heads * shape.head_dim / ms * 1e-9);
}

// `what`: "packed", "paged" or nothing for both.
void run(const std::string& what) {
  setvbuf(stdout, nullptr, _IOLBF, 1024);
  cuda::open();
  ThreadPool threads(1);
  Stream stream(threads, Device::cuda);
  if (what != "paged") {
    packed(stream, {8192}, true);
    packed(stream, std::vector<int32_t>(8, 1024), true);
    packed(stream, {5000, 2000, 800, 392}, true);
    packed(stream, {32768}, false);
  }
  if (what != "packed") {
    for (const int64_t count : {1, 8, 64, 256}) {
      for (const int32_t rows : {1, 3}) paged(stream, count, rows, 4096 - rows, 256);
    }
    paged(stream, 16, 1, 32000, 1024);
    paged(stream, 1, 2048, 6144, 256);
    paged(stream, 8, 256, 1024, 256);
  }
}

}  // namespace
}  // namespace furlong::bench

int main(int count, char** arguments) {
  furlong::bench::run(count > 1 ? arguments[1] : "");
  return 0;
}
