// Times CUDA ops: events around each call, the second-level cache emptied before it, the median of many.
#pragma once
#include <algorithm>
#include <vector>

#include "tensor/buffer.h"
#include "tensor/cuda/queue.h"

namespace furlong::bench {

// Median milliseconds of f() over `times` calls after a warm-up. Buffers of `flush` bytes are written in between.
template <class F>
double median_ms(Stream& stream, F&& f, int times = 20, size_t flush = size_t{256} << 20) {
  const Buffer cold(flush, Device::cuda);
  cuda::Queue& queue = stream.queue();
  cudaEvent_t begin, end;
  cuda::check(cudaEventCreate(&begin), "cudaEventCreate");
  cuda::check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> ms;
  for (int i = 0; i < times + 3; i++) {
    cuda::check(cudaMemsetAsync(cold.data(), i, flush, queue.stream), "cudaMemsetAsync");
    cuda::check(cudaEventRecord(begin, queue.stream), "cudaEventRecord");
    f();
    cuda::check(cudaEventRecord(end, queue.stream), "cudaEventRecord");
    stream.synchronize();
    float t = 0;
    cuda::check(cudaEventElapsedTime(&t, begin, end), "cudaEventElapsedTime");
    if (i >= 3) ms.push_back(t);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(ms.begin(), ms.begin() + ms.size() / 2, ms.end());
  return ms[ms.size() / 2];
}

}  // namespace furlong::bench
