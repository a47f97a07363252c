#include "reward/sha256.h"

#include <bit>
#include <cmath>
#include <string>

namespace furlong::grader {
namespace {

// The first 32 bits of the fractional part of the k-th root of x.
uint32_t fraction_bits(long double root) { return static_cast<uint32_t>((root - std::floor(root)) * 4294967296.0L); }

bool is_prime(int n) {
  for (int d = 2; d * d <= n; d++) {
    if (n % d == 0) return false;
  }
  return true;
}

struct Constants {
  std::array<uint32_t, 64> rounds{};  // of cube roots of the first primes
  std::array<uint32_t, 8> start{};    // of square roots
  Constants() {
    size_t count = 0;
    for (int n = 2; count < rounds.size(); n++) {
      if (!is_prime(n)) continue;
      if (count < start.size()) start[count] = fraction_bits(std::sqrt(static_cast<long double>(n)));
      rounds[count++] = fraction_bits(std::cbrt(static_cast<long double>(n)));
    }
  }
};

void compress(std::array<uint32_t, 8>& state, const char* block, const Constants& constants) {
  std::array<uint32_t, 64> w{};
  for (size_t i = 0; i < 16; i++) {
    for (size_t b = 0; b < 4; b++) w[i] = w[i] << 8 | static_cast<uint8_t>(block[4 * i + b]);
  }
  for (size_t i = 16; i < 64; i++) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) + w[i - 7] +
           (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
  }
  auto [a, b, c, d, e, f, g, h] = state;
  for (size_t i = 0; i < 64; i++) {
    const uint32_t choice = (e & f) ^ (~e & g), majority = (a & b) ^ (a & c) ^ (b & c);
    const uint32_t t1 =
        h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + choice + constants.rounds[i] + w[i];
    const uint32_t t2 = (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + majority;
    h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
  }
  const std::array<uint32_t, 8> add = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < 8; i++) state[i] += add[i];
}

}  // namespace

std::array<uint8_t, 32> sha256(std::string_view bytes) {
  static const Constants constants;
  std::string padded(bytes);
  padded += '\x80';
  padded.resize((padded.size() + 8 + 63) / 64 * 64 - 8, '\0');
  const uint64_t bits = static_cast<uint64_t>(bytes.size()) * 8;
  for (int shift = 56; shift >= 0; shift -= 8) padded += static_cast<char>(bits >> shift);
  std::array<uint32_t, 8> state = constants.start;
  for (size_t at = 0; at < padded.size(); at += 64) compress(state, padded.data() + at, constants);
  std::array<uint8_t, 32> out{};
  for (size_t i = 0; i < out.size(); i++) out[i] = static_cast<uint8_t>(state[i / 4] >> (24 - 8 * (i % 4)));
  return out;
}

}  // namespace furlong::grader
