// The fuzzer: fuzz --target=NAME [--data=tests/data] CORPUS [libFuzzer's flags].
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "base/error.h"
#include "base/log.h"
#include "targets.h"

extern "C" {
size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);
int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void*, size_t),
                                              void (*free_hook)(const volatile void*));
}

namespace {

using namespace furlong;

const fuzz::Target* chosen = nullptr;
// Bytes that one allocation may take; 0: not in a target.
thread_local size_t most_bytes = 0;

void on_malloc(const volatile void*, size_t bytes) {
  if (most_bytes == 0 || bytes <= most_bytes) return;
  std::fprintf(stderr, "an allocation of %zu bytes\n", bytes);
  std::abort();
}

uint64_t header_length(const uint8_t* data) {
  uint64_t n;
  std::memcpy(&n, data, 8);
  return n;
}

// A header of some tensors that fit their bytes, but for one number here and there.
std::string some_header(std::minstd_rand& random, size_t& data_bytes) {
  constexpr std::array<const char*, 8> dtypes = {"F32", "BF16", "U8", "F8_E4M3", "I64", "BOOL", "F4", "X9"};
  constexpr std::array<int, 8> bits = {32, 16, 8, 8, 64, 8, 4, 8};
  const auto below = [&](uint64_t n) { return static_cast<uint64_t>(random()) % n; };
  constexpr std::array<uint64_t, 6> extremes = {0, 1, 1ull << 31, 1ull << 32, 1ull << 63, ~0ull};
  const auto number = [&](uint64_t n) {
    return std::to_string(below(40) != 0 ? n : below(2) != 0 ? n + below(3) - 1 : extremes[below(6)]);
  };
  std::string text = below(4) == 0 ? R"({"__metadata__":{"format":"pt"})" : "{";
  uint64_t offset = 0;
  for (uint64_t i = 0, count = below(6); i < count; i++) {
    const size_t kind = below(30) == 0 ? 7 : below(7);
    uint64_t numel = 1;
    std::string shape;
    for (uint64_t d = 0, rank = below(5); d < rank; d++) {
      const uint64_t extent = below(4) * (kind == 6 ? 2 : 1);
      numel *= extent;
      shape += (d > 0 ? "," : "") + number(extent);
    }
    const uint64_t bytes = numel * static_cast<uint64_t>(bits[kind]) / 8;
    text += std::string(text.size() > 1 ? "," : "") + "\"t" + std::to_string(below(20) == 0 ? 0 : i) +
            "\":{\"dtype\":\"" + dtypes[kind] + "\",\"shape\":[" + shape + "],\"data_offsets\":[" + number(offset) +
            "," + number(offset + bytes) + "]}";
    offset += bytes;
  }
  data_bytes = offset;
  return text + "}" + std::string(below(8), ' ');
}

size_t mutate_safetensors(uint8_t* data, size_t size, size_t most, unsigned seed) {
  std::minstd_rand random(seed);
  std::string header;
  std::string rest;
  const uint64_t kind = random() % 4;
  if (kind == 0 || size < 8) {
    size_t bytes = 0;
    header = some_header(random, bytes);
    rest.assign(std::min<size_t>(bytes, most), 'x');
  } else {
    const size_t n = std::min<uint64_t>(header_length(data), size - 8);
    if (kind == 1) return LLVMFuzzerMutate(data, size, most);
    header.assign(reinterpret_cast<const char*>(data) + 8, n);
    rest.assign(reinterpret_cast<const char*>(data) + 8 + n, size - 8 - n);
    const size_t room = header.size() + 64;
    header.resize(room);
    header.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(header.data()), room - 64, room));
  }
  const uint64_t n = header.size();
  if (8 + n > most) return LLVMFuzzerMutate(data, size, most);
  std::memcpy(data, &n, 8);
  std::memcpy(data + 8, header.data(), header.size());
  const size_t taken = std::min(rest.size(), most - 8 - header.size());
  std::memcpy(data + 8 + header.size(), rest.data(), taken);
  return 8 + header.size() + taken;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  constexpr std::string_view target = "--target=", data = "--data=";
  for (int i = 1; i < *argc; i++) {
    const std::string_view word = (*argv)[i];
    if (word.starts_with(target)) chosen = fuzz::find_target(word.substr(target.size()));
    if (word.starts_with(data)) fuzz::data_folder() = word.substr(data.size());
  }
  if (chosen == nullptr) {
    std::fprintf(stderr, "--target= one of:");
    for (const auto& target : fuzz::targets()) std::fprintf(stderr, " %s", target.name);
    std::fprintf(stderr, "\n");
    std::exit(2);
  }
  log::set_level(log::Level::error);
  chosen->run({});  // what a target makes once
  __sanitizer_install_malloc_and_free_hooks(on_malloc, [](const volatile void*) {});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  most_bytes = (size_t{1} << 20) + size * chosen->allocation_per_byte;
  chosen->run({data, size});
  most_bytes = 0;
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  if (std::string_view(chosen->name) == "safetensors") return mutate_safetensors(data, size, most, seed);
  return LLVMFuzzerMutate(data, size, most);
}
