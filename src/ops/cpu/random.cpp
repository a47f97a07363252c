#include "ops/cpu/bodies.h"

namespace furlong::cpu::FURLONG_ISA {

void random_normal(Stream& stream, Tensor x, const RngKey& key, double scale, int64_t first, int64_t stride) {
  constexpr int64_t block = 1 << 16;
  const int64_t row = x.row_size();
  dispatch(x.dtype(), [&]<class T>() {
    stream.threads().parallel((x.numel() + block - 1) / block, [&](int64_t task) {
      RngKey own = key;
      for (int64_t n = task * block; n < std::min(x.numel(), (task + 1) * block); n++) {
        const int64_t i = first + n / row * stride + n % row;
        own.position = static_cast<uint32_t>(i >> 31);
        const double value = scale * static_cast<double>(normal(own, static_cast<uint32_t>(i & 0x7fffffff)));
        if constexpr (std::is_same_v<T, bf16>) {
          x.as<T>()[n] = bf16(static_cast<float>(value));
        } else {
          x.as<T>()[n] = static_cast<T>(value);
        }
      }
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
