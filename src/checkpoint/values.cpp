#include "checkpoint/values.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"

namespace furlong {
namespace {

constexpr int64_t block = 1 << 14;

enum class FileType { f32, bf16, f16 };

FileType type_of(std::string_view dtype) {
  CHECK(is_readable_dtype(dtype), "dtype {}", dtype);
  return dtype == "F32" ? FileType::f32 : dtype == "BF16" ? FileType::bf16 : FileType::f16;
}

size_t size_of_file(FileType type) { return type == FileType::f32 ? 4 : 2; }

// Decodes one block to floats.
void decode(FileType type, const uint8_t* from, int64_t n, float* to) {
  if (type == FileType::f32) {
    std::memcpy(to, from, static_cast<size_t>(n) * 4);
    return;
  }
  std::array<uint16_t, block> bits;
  std::memcpy(bits.data(), from, static_cast<size_t>(n) * 2);
  for (int64_t i = 0; i < n; i++) {
    const uint16_t b = bits[static_cast<size_t>(i)];
    to[i] = type == FileType::bf16 ? std::bit_cast<float>(static_cast<uint32_t>(b) << 16) : float_of_half(b);
  }
}

bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; i++)
    bad |= static_cast<uint32_t>((std::bit_cast<uint32_t>(x[i]) & 0x7f800000u) == 0x7f800000u);
  return bad == 0;
}

}  // namespace

float float_of_half(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

uint16_t half_of_float(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x), magnitude = u & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x1ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {                                               // below 2^-14: steps of 2^-24
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(scaled)));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

bool is_readable_dtype(std::string_view dtype) { return dtype == "F32" || dtype == "BF16" || dtype == "F16"; }

const char* file_dtype_of(DType dtype) {
  CHECK(dtype == DType::f32 || dtype == DType::bf16, "dtype {}", name_of(dtype));
  return dtype == DType::f32 ? "F32" : "BF16";
}

bool read_values(std::string_view file_dtype, const uint8_t* from, int64_t n, DType dtype, void* to) {
  const FileType type = type_of(file_dtype);
  CHECK(dtype == DType::f32 || dtype == DType::bf16, "dtype {}", name_of(dtype));
  std::array<float, block> values;
  bool finite = true;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t count = std::min(block, n - begin);
    const uint8_t* source = from + static_cast<size_t>(begin) * size_of_file(type);
    decode(type, source, count, values.data());
    finite = all_finite(values.data(), count) && finite;
    if (dtype == DType::f32) {
      std::memcpy(static_cast<float*>(to) + begin, values.data(), static_cast<size_t>(count) * 4);
    } else if (type == FileType::bf16) {
      std::memcpy(static_cast<bf16*>(to) + begin, source, static_cast<size_t>(count) * 2);
    } else {
      for (int64_t i = 0; i < count; i++) static_cast<bf16*>(to)[begin + i] = bf16(values[static_cast<size_t>(i)]);
    }
  }
  return finite;
}

void emit_values(DType dtype, const void* from, int64_t n, std::string_view file_dtype, const ByteSink& sink) {
  const FileType type = type_of(file_dtype);
  const FileType own = type_of(file_dtype_of(dtype));
  const auto* source = static_cast<const uint8_t*>(from);
  if (type == own) {
    if (n > 0) sink(source, static_cast<size_t>(n) * size_of_file(type));
    return;
  }
  std::array<float, block> values;
  std::array<uint16_t, block> bits;
  for (int64_t begin = 0; begin < n; begin += block) {
    const int64_t count = std::min(block, n - begin);
    decode(own, source + static_cast<size_t>(begin) * size_of_file(own), count, values.data());
    if (type == FileType::f32) {
      sink(values.data(), static_cast<size_t>(count) * 4);
      continue;
    }
    for (size_t i = 0; i < static_cast<size_t>(count); i++) {
      bits[i] = type == FileType::bf16 ? bf16(values[i]).bits : half_of_float(values[i]);
    }
    sink(bits.data(), static_cast<size_t>(count) * 2);
  }
}

bool transfer_values(std::string_view from_dtype, const uint8_t* from, int64_t n, std::string_view to_dtype, void* to) {
  const FileType type = type_of(from_dtype), wanted = type_of(to_dtype);
  std::array<float, block> values;
  std::array<uint16_t, block> bits;
  auto* out = static_cast<uint8_t*>(to);
  bool finite = true;
  for (int64_t begin = 0; begin < n; begin += block) {
    const auto count = static_cast<size_t>(std::min(block, n - begin));
    const uint8_t* source = from + static_cast<size_t>(begin) * size_of_file(type);
    uint8_t* target = out + static_cast<size_t>(begin) * size_of_file(wanted);
    decode(type, source, static_cast<int64_t>(count), values.data());
    finite = all_finite(values.data(), static_cast<int64_t>(count)) && finite;
    if (type == wanted) {
      std::memcpy(target, source, count * size_of_file(type));
    } else if (wanted == FileType::f32) {
      std::memcpy(target, values.data(), count * 4);
    } else {
      for (size_t i = 0; i < count; i++) {
        bits[i] = wanted == FileType::bf16 ? bf16(values[i]).bits : half_of_float(values[i]);
      }
      std::memcpy(target, bits.data(), count * 2);
    }
  }
  return finite;
}

std::vector<float> floats_of(const TensorEntry& entry) {
  if (!is_readable_dtype(entry.dtype)) {
    fail(Exit::input, "tensor {} is {}; only F32, BF16 and F16 are read as numbers", entry.name, entry.describe());
  }
  std::vector<float> values(static_cast<size_t>(entry.numel()));
  read_values(entry.dtype, entry.bytes.data(), entry.numel(), DType::f32, values.data());
  return values;
}

}  // namespace furlong
