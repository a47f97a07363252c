#include "ops/cuda/kernel.cuh"

namespace furlong::cuda {
namespace {

// What random_block makes of a key: counter (index, position, sample, group), then the seed and purpose.
struct Words {
  uint32_t sample, group, k0, k1;
};

__device__ uint4 block_of(const Words& w, uint32_t index, uint32_t position) {
  uint4 c{index, position, w.sample, w.group};
  uint32_t k0 = w.k0, k1 = w.k1;
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t{philox::multiplier0} * c.x, p1 = uint64_t{philox::multiplier1} * c.z;
    c = {static_cast<uint32_t>(p1 >> 32) ^ c.y ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c.w ^ k1, static_cast<uint32_t>(p0)};
    k0 += philox::weyl0;
    k1 += philox::weyl1;
  }
  return c;
}

__device__ float uniform_of(uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * (1.0f / 8388608.0f); }

__device__ float normal_of(uint32_t a, uint32_t b) {
  return sqrtf(-2.0f * logf(uniform_of(a))) * cosf(6.283185307179586f * uniform_of(b));
}

// Box-Muller (base/rng.h, normal). A thread draws the two numbers of a pair of places; a row may begin or end in the
// middle of one.
template <class T>
__global__ void normal_kernel(T* x, int64_t rows, int64_t row, int64_t first, int64_t stride, Words words,
                              float scale) {
  const int64_t pairs = row / 2 + 1, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; task < rows * pairs; task += step) {
    const int64_t r = task / pairs, begin = first + r * stride, pair = begin / 2 + task % pairs;
    const int64_t j = 2 * pair - begin;  // -1: the row begins with a pair's second number
    if (j >= row) continue;
    const uint4 w = block_of(words, static_cast<uint32_t>(pair & 0x3fffffff), static_cast<uint32_t>(pair >> 30));
    T* to = x + r * row;
    if (j >= 0) to[j] = narrow<T>(scale * normal_of(w.x, w.y));
    if (j + 1 < row) to[j + 1] = narrow<T>(scale * normal_of(w.z, w.w));
  }
}

}  // namespace

void random_normal(Stream& stream, Tensor x, const RngKey& key, double scale, int64_t first, int64_t stride) {
  const uint64_t mixed = key.seed * 0x9E3779B97F4A7C15ull + static_cast<uint32_t>(key.purpose);
  const Words words{key.sample, key.group, static_cast<uint32_t>(mixed), static_cast<uint32_t>(mixed >> 32)};
  auto& queue = stream.queue();
  dispatch(x.dtype(), [&]<class T>() {
    normal_kernel<T><<<16 * queue.multiprocessors, 256, 0, queue.stream>>>(data_of<T>(x), x.rows(), x.row_size(), first,
                                                                           stride, words, static_cast<float>(scale));
  });
  check_launch(queue, "random_normal");
}

}  // namespace furlong::cuda
