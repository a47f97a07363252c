#include "checkpoint/init.h"

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "checkpoint/shards.h"
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
  return spec.full_shape.size() == 1 ? Kind::zero : Kind::normal;
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

// Runs of equal length at equal distances in the whole tensor, one after another here.
struct Rows {
  int64_t first, full_first, row, rows, stride;
};

std::vector<Rows> rows_of(const Shard& shard) {
  std::vector<Rows> all;
  for (const Run& run : runs_of(shard)) {
    Rows* last = all.empty() ? nullptr : &all.back();
    if (last != nullptr && last->row == run.count) {
      const int64_t distance = run.full_first - (last->full_first + (last->rows - 1) * last->stride);
      if (last->rows == 1) last->stride = distance;
      if (last->stride == distance) {
        last->rows++;
        continue;
      }
    }
    all.push_back({run.first, run.full_first, run.count, 1, run.count});
  }
  return all;
}

struct Draw {
  Kind kind;
  RngKey key;
  Spread range;
};

void fill_on_host(const Tensor& tensor, const Rows& rows, const Draw& what, ThreadPool* threads) {
  constexpr int64_t block = 1 << 16;
  const int64_t numel = rows.row * rows.rows;
  auto fill = [&](int64_t b) {
    RngKey key = what.key;
    const int64_t begin = b * block, end = std::min(numel, begin + block);
    std::vector<float> wide(static_cast<size_t>(end - begin));
    for (int64_t n = begin; n < end; n++) {
      const int64_t i = rows.full_first + n / rows.row * rows.stride + n % rows.row;
      key.position = static_cast<uint32_t>(i >> 31);
      wide[static_cast<size_t>(n - begin)] = draw(what.kind, key, static_cast<uint32_t>(i & 0x7fffffff), what.range);
    }
    if (tensor.dtype() == DType::f32) {
      write_numbers(tensor, rows.first + begin, end - begin, wide.data());
    } else {
      std::vector<bf16> narrow(wide.size());
      for (size_t i = 0; i < wide.size(); i++) narrow[i] = bf16(wide[i]);
      write_numbers(tensor, rows.first + begin, end - begin, narrow.data());
    }
  };
  const int64_t blocks = (numel + block - 1) / block;
  if (threads != nullptr) {
    threads->parallel(blocks, fill);
  } else {
    for (int64_t b = 0; b < blocks; b++) fill(b);
  }
}

}  // namespace

void init_weights(Weights& weights, const ModelConfig& config, uint64_t seed, double initializer_range,
                  ThreadPool* threads, Stream* stream) {
  const Spread range{initializer_range, 1 / std::sqrt(static_cast<double>(config.conv_kernel))};
  for (size_t t = 0; t < weights.tensors().size(); t++) {
    const Tensor& tensor = weights.tensors()[t];
    if (!tensor.defined()) continue;
    const Draw what{kind_of(weights.specs()[t]),
                    {.seed = seed, .group = static_cast<uint32_t>(t), .purpose = Purpose::init},
                    range};
    for (const Rows& rows : rows_of(shard_of(weights.specs()[t]))) {
      if (what.kind == Kind::normal && stream != nullptr) {
        const auto offset = static_cast<size_t>(rows.first) * size_of(tensor.dtype());
        const Tensor part(static_cast<uint8_t*>(tensor.data()) + offset, tensor.dtype(), {rows.rows, rows.row},
                          tensor.device());
        random_normal(*stream, part, what.key, initializer_range, rows.full_first, rows.stride);
      } else {
        fill_on_host(tensor, rows, what, threads);
      }
    }
  }
}

}  // namespace furlong
