#include "checkpoint/init.h"

#include <cmath>

#include "layouts.h"
#include "model/config.h"
#include "scratch.h"

namespace furlong {
namespace {

struct Moments {
  double mean = 0, std = 0, low = 1e30, high = -1e30;
};

Moments moments(const Tensor& t) {
  Moments m;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < t.numel(); i++) {
    const double x = t.as<float>()[i];
    sum += x;
    squares += x * x;
    m.low = std::min(m.low, x);
    m.high = std::max(m.high, x);
  }
  m.mean = sum / static_cast<double>(t.numel());
  m.std = std::sqrt(squares / static_cast<double>(t.numel()) - m.mean * m.mean);
  return m;
}

TEST(Init, EachKindHasItsDistribution) {
  const ModelConfig config = read_model_config(tiny);
  Weights w(config, DType::f32);
  init_weights(w, config, 7, 0.02);
  for (const Tensor& t : {w.embed, w.lm_head, w.layers[0].delta.qkv, w.layers[3].attention.q, w.layers[5].moe.gate_up,
                          w.layers[5].moe.down, w.layers[0].moe.router, w.mtp[0].fc}) {
    const Moments m = moments(t);
    const double n = static_cast<double>(t.numel());
    EXPECT_NEAR(m.mean, 0, 5 * 0.02 / std::sqrt(n)) << t.describe();
    EXPECT_NEAR(m.std, 0.02, 5 * 0.02 / std::sqrt(2 * n)) << t.describe();
  }
  for (const Tensor& t :
       {w.final_norm, w.layers[0].input_norm, w.layers[3].attention.q_norm, w.mtp[0].norm, w.mtp[0].norm_hidden}) {
    EXPECT_EQ(moments(t).low, 0);
    EXPECT_EQ(moments(t).high, 0);
  }
  EXPECT_EQ(moments(w.layers[0].delta.norm).low, 1);
  EXPECT_EQ(moments(w.layers[0].delta.norm).high, 1);
  const Moments conv = moments(w.layers[0].delta.conv);
  EXPECT_NEAR(conv.std, 0.5 / std::sqrt(3), 0.05);
  EXPECT_LE(conv.high, 0.5);
  EXPECT_GE(conv.low, -0.5);
  double dt_low = 1, dt_high = 0;
  for (const auto& layer : w.layers) {
    if (layer.full_attention) continue;
    const Moments a = moments(layer.delta.A_log);
    EXPECT_GE(a.low, 0);
    EXPECT_LE(a.high, std::log(16.0));
    for (int64_t i = 0; i < layer.delta.dt_bias.numel(); i++) {
      const double dt = std::log1p(std::exp(static_cast<double>(layer.delta.dt_bias.as<float>()[i])));
      dt_low = std::min(dt_low, dt);
      dt_high = std::max(dt_high, dt);
    }
  }
  EXPECT_GE(dt_low, 0.999e-3);
  EXPECT_LE(dt_high, 1.001e-1);
  EXPECT_GT(dt_high / dt_low, 5);
}

TEST(Init, DependsOnTheSeedAlone) {
  const ModelConfig config = read_model_config(tiny);
  Weights a(config, DType::f32), b(config, DType::f32), c(config, DType::f32), h(config, DType::bf16);
  ThreadPool threads(3);
  init_weights(a, config, 7, 0.02);
  init_weights(b, config, 7, 0.02, &threads);
  init_weights(c, config, 8, 0.02);
  init_weights(h, config, 7, 0.02);
  EXPECT_TRUE(same_values(a, b));
  EXPECT_FALSE(same_values(a, c));
  for (int64_t i = 0; i < a.embed.numel(); i++)
    ASSERT_EQ(h.embed.as<bf16>()[i].bits, bf16(a.embed.as<float>()[i]).bits);
  EXPECT_NE(a.embed.as<float>()[0], a.lm_head.as<float>()[0]);
}

TEST(Init, FillsOnlyWhatIsDefined) {
  const ModelConfig config = read_model_config(tiny);
  Weights all(config, DType::f32), mtp(config, DType::f32, Device::cpu, true);
  init_weights(all, config, 7, 0.02);
  init_weights(mtp, config, 7, 0.02);
  EXPECT_EQ(std::memcmp(mtp.mtp[0].fc.data(), all.mtp[0].fc.data(), all.mtp[0].fc.bytes()), 0);
  EXPECT_FALSE(mtp.embed.defined());
}

TEST(Init, ARanksNumbersAreThoseOfTheWhole) {
  const ModelConfig config = splittable_config();
  ThreadPool threads(2);
  Stream stream(threads);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Weights whole(config, dtype);
    init_weights(whole, config, 7, 0.02);
    for (const auto& layout : layouts()) {
      for (int r = 0; r < layout.ranks; r++) {
        const MeshRank place = layout.place(r);
        Weights part(config, dtype, Placement{.rank = place});
        init_weights(part, config, 7, 0.02);
        EXPECT_TRUE(is_part_of(part, whole)) << "rank " << r << " of " << text_of(layout);
        Weights flat(config, dtype, Placement{.rank = place, .owned = owned_by(config, place)});
        init_weights(flat, config, 7, 0.02, &threads, &stream);
        EXPECT_TRUE(is_part_of(flat, whole)) << "rank " << r << " of " << text_of(layout);
      }
    }
  }
}

}  // namespace
}  // namespace furlong
