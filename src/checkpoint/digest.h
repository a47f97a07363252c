// XXH3-128 checksums (https://xxhash.com), as 32 hex digits.
#pragma once
#include <cstddef>
#include <memory>
#include <string>

namespace furlong {

class Digest {
 public:
  Digest();
  ~Digest();
  Digest(Digest&&) noexcept;
  Digest& operator=(Digest&&) noexcept;
  void update(const void* data, size_t bytes);
  std::string hex() const;

  static std::string of(const void* data, size_t bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace furlong
