#include "ops/cpu/bodies.h"

namespace furlong::cpu::FURLONG_ISA {

void random_normal(Stream& stream, Tensor x, const RngKey& key, double scale) {
  constexpr int64_t block = 1 << 16;
  dispatch(x.dtype(), [&]<class T>() {
    stream.threads().parallel((x.numel() + block - 1) / block, [&](int64_t task) {
      RngKey own = key;
      for (int64_t i = task * block; i < std::min(x.numel(), (task + 1) * block); i++) {
        own.position = static_cast<uint32_t>(i >> 31);
        const double value = scale * static_cast<double>(normal(own, static_cast<uint32_t>(i & 0x7fffffff)));
        if constexpr (std::is_same_v<T, bf16>) {
          x.as<T>()[i] = bf16(static_cast<float>(value));
        } else {
          x.as<T>()[i] = static_cast<T>(value);
        }
      }
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
