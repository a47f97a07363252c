#include "base/rng.h"

#include <gtest/gtest.h>

#include <set>

namespace furlong {
namespace {

// Known answers of Philox4x32-10, published with Random123.
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox::block({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox::block({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox::block({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, EveryPartOfTheKeyMatters) {
  const RngKey base{7, 1, 2, 3, Purpose::sample};
  std::set<std::array<uint32_t, 4>> blocks{random_block(base, 0), random_block(base, 1)};
  for (int part = 0; part < 5; part++) {
    RngKey key = base;
    if (part == 0) key.seed++;
    if (part == 1) key.group++;
    if (part == 2) key.sample++;
    if (part == 3) key.position++;
    if (part == 4) key.purpose = Purpose::init;
    blocks.insert(random_block(key, 0));
  }
  EXPECT_EQ(blocks.size(), 7u);
  EXPECT_EQ(random_word(base, 6), random_block(base, 1)[2]);
}

TEST(Rng, UniformStaysInsideAndGumbelIsFinite) {
  EXPECT_GT(open_uniform(0), 0.0f);
  EXPECT_LT(open_uniform(~0u), 1.0f);
  for (const uint32_t word : {0u, 1u, 0x80000000u, 0xfffffeffu, ~0u}) {
    EXPECT_GT(gumbel(word), -2.9f);
    EXPECT_LT(gumbel(word), 22.9f);
  }
}

TEST(Rng, MomentsAreRight) {
  const RngKey key{42, 0, 0, 0, Purpose::data};
  constexpr uint32_t n = 200000;
  double u = 0, uu = 0, g = 0, x = 0, xx = 0, x4 = 0;
  for (uint32_t i = 0; i < n; i++) {
    const double a = open_uniform(random_word(key, i)), b = normal(key, i);
    u += a, uu += a * a, g += gumbel(random_word(key, i)), x += b, xx += b * b, x4 += b * b * b * b;
  }
  EXPECT_NEAR(u / n, 0.5, 0.003);
  EXPECT_NEAR(uu / n, 1.0 / 3, 0.003);
  EXPECT_NEAR(g / n, 0.5772, 0.015);  // Euler's constant
  EXPECT_NEAR(x / n, 0, 0.01);
  EXPECT_NEAR(xx / n, 1, 0.015);
  EXPECT_NEAR(x4 / n, 3, 0.12);
}

}  // namespace
}  // namespace furlong
