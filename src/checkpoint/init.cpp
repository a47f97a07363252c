#include "checkpoint/init.h"

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "ops/random.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

enum class Kind { normal, zero, one, conv, a_log, dt_bias };

Kind kind_of(const TensorSpec& spec) {
  if (spec.name.ends_with("linear_attn.A_log")) return Kind::a_log;
  if (spec.name.ends_with("linear_attn.dt_bias")) return Kind::dt_bias;
  if (spec.name.ends_with("linear_attn.norm.weight")) return Kind::one;
  if (spec.name.ends_with("linear_attn.conv1d.weight")) return Kind::conv;
  return spec.shape.size() == 1 ? Kind::zero : Kind::normal;
}

struct Spread {
  double normal, conv;
};

float draw(Kind kind, const RngKey& key, uint32_t i, const Spread& range) {
  if (kind == Kind::zero || kind == Kind::one) return kind == Kind::one ? 1.0f : 0.0f;
  if (kind == Kind::normal) return static_cast<float>(range.normal * static_cast<double>(normal(key, i)));
  const double u = open_uniform(random_word(key, i));
  switch (kind) {
    case Kind::conv: return static_cast<float>((2 * u - 1) * range.conv);
    case Kind::a_log: return static_cast<float>(std::log(1 + 15 * u));
    default: break;
  }
  const double dt = std::exp(std::log(1e-3) + u * std::log(100.0));
  return static_cast<float>(std::log(std::expm1(dt)));  // the inverse of softplus
}

}  // namespace

void init_weights(Weights& weights, const ModelConfig& config, uint64_t seed, double initializer_range,
                  ThreadPool* threads, Stream* stream) {
  constexpr int64_t block = 1 << 16;
  const Spread range{initializer_range, 1 / std::sqrt(static_cast<double>(config.conv_kernel))};
  for (size_t t = 0; t < weights.tensors().size(); t++) {
    const Tensor& tensor = weights.tensors()[t];
    if (!tensor.defined()) continue;
    const Kind kind = kind_of(weights.specs()[t]);
    if (kind == Kind::normal && stream != nullptr) {
      random_normal(*stream, tensor, {.seed = seed, .group = static_cast<uint32_t>(t), .purpose = Purpose::init},
                    initializer_range);
      continue;
    }
    auto fill = [&](int64_t b) {
      RngKey key{.seed = seed, .group = static_cast<uint32_t>(t), .purpose = Purpose::init};
      const int64_t first = b * block, count = std::min(tensor.numel() - first, block);
      std::vector<float> wide(static_cast<size_t>(count));
      for (int64_t i = first; i < first + count; i++) {
        key.position = static_cast<uint32_t>(i >> 31);
        wide[static_cast<size_t>(i - first)] = draw(kind, key, static_cast<uint32_t>(i & 0x7fffffff), range);
      }
      if (tensor.dtype() == DType::f32) {
        write_numbers(tensor, first, count, wide.data());
      } else {
        std::vector<bf16> narrow(wide.size());
        for (size_t i = 0; i < wide.size(); i++) narrow[i] = bf16(wide[i]);
        write_numbers(tensor, first, count, narrow.data());
      }
    };
    const int64_t blocks = (tensor.numel() + block - 1) / block;
    if (threads != nullptr) {
      threads->parallel(blocks, fill);
    } else {
      for (int64_t b = 0; b < blocks; b++) fill(b);
    }
  }
}

}  // namespace furlong
