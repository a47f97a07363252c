#include "checkpoint/digest.h"

#include <fmt/format.h>

#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace furlong {
namespace {

std::string hex_of(XXH128_hash_t hash) { return fmt::format("{:016x}{:016x}", hash.high64, hash.low64); }

}  // namespace

struct Digest::State {
  XXH3_state_t xxh;
};

Digest::Digest() : state_(std::make_unique<State>()) { XXH3_128bits_reset(&state_->xxh); }
Digest::~Digest() = default;
Digest::Digest(Digest&&) noexcept = default;
Digest& Digest::operator=(Digest&&) noexcept = default;

void Digest::update(const void* data, size_t bytes) {
  if (bytes > 0) XXH3_128bits_update(&state_->xxh, data, bytes);
}

std::string Digest::hex() const { return hex_of(XXH3_128bits_digest(&state_->xxh)); }

std::string Digest::of(const void* data, size_t bytes) { return hex_of(XXH3_128bits(data, bytes)); }

}  // namespace furlong
