// Counter-based random numbers: every draw is a pure function of its key, so that nothing has to be saved and any draw
// can be repeated alone. Philox4x32 with 10 rounds (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
// 2011).
#pragma once
#include <array>
#include <cmath>
#include <cstdint>

namespace furlong {

// What a draw is for; part of the key, so that no two uses share numbers.
enum class Purpose : uint32_t { sample = 1, shuffle = 2, init = 3, data = 4, backoff = 5 };

struct RngKey {
  uint64_t seed = 0;
  uint32_t group = 0;     // group_index over the whole run
  uint32_t sample = 0;    // index within the group
  uint32_t position = 0;  // position of the token being drawn
  Purpose purpose = Purpose::sample;
};

namespace philox {

constexpr uint32_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
constexpr uint32_t weyl0 = 0x9E3779B9u, weyl1 = 0xBB67AE85u;

inline std::array<uint32_t, 4> block(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t{multiplier0} * counter[0];
    const uint64_t p1 = uint64_t{multiplier1} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(p0)};
    key[0] += weyl0;
    key[1] += weyl1;
  }
  return counter;
}

}  // namespace philox

// Four words for (key, index). The counter holds (index, position, sample, group), the key the seed and the purpose.
inline std::array<uint32_t, 4> random_block(const RngKey& key, uint32_t index) {
  const uint64_t mixed = key.seed * 0x9E3779B97F4A7C15ull + static_cast<uint32_t>(key.purpose);
  return philox::block({index, key.position, key.sample, key.group},
                       {static_cast<uint32_t>(mixed), static_cast<uint32_t>(mixed >> 32)});
}

// The i-th word of a key's stream.
inline uint32_t random_word(const RngKey& key, uint32_t i) { return random_block(key, i / 4)[i % 4]; }

// Uniform in the open interval (0, 1): the middles of 2^23 equal cells, each exact in a float, so never 0 or 1.
inline float open_uniform(uint32_t word) { return (static_cast<float>(word >> 9) + 0.5f) * (1.0f / 8388608.0f); }

// Standard Gumbel noise -log(-log(1 - v)), v uniform on the grid (word + 1/2) / 2^32: the tail that wins draws, where v
// is small, keeps all 32 bits. -2.82 < result < 22.9, and result <= -log(v).
inline float gumbel(uint32_t word) {
  const float v = (static_cast<float>(word) + 0.5f) * (1.0f / 4294967296.0f);
  return -std::log(-std::log1p(-(v < 0.99999994f ? v : 0.99999994f)));
}

// Standard normal by Box-Muller from the i-th pair of words.
inline float normal(const RngKey& key, uint32_t i) {
  const auto words = random_block(key, i / 2);
  const float u = open_uniform(words[i % 2 * 2]), v = open_uniform(words[i % 2 * 2 + 1]);
  return std::sqrt(-2.0f * std::log(u)) * std::cos(6.283185307179586f * v);
}

}  // namespace furlong
