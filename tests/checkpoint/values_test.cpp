#include "checkpoint/values.h"

#include <cmath>
#include <limits>

#include "base/rng.h"
#include "checkpoint/digest.h"
#include "checkpoint/tensor_file.h"
#include "scratch.h"
#include "tensor/buffer.h"

namespace furlong {
namespace {

TEST(Values, EveryHalfSurvives) {
  for (uint32_t b = 0; b < 65536; b++) {
    const auto bits = static_cast<uint16_t>(b);
    const float x = float_of_half(bits);
    const bool nan = (bits & 0x7c00) == 0x7c00 && (bits & 0x3ff) != 0;
    EXPECT_EQ(std::isnan(x), nan);
    if (nan) {
      EXPECT_TRUE(std::isnan(float_of_half(half_of_float(x))));
    } else {
      ASSERT_EQ(half_of_float(x), bits) << b;
    }
  }
  EXPECT_EQ(float_of_half(0x3c00), 1.0f);
  EXPECT_EQ(float_of_half(0xc000), -2.0f);
  EXPECT_EQ(float_of_half(0x7bff), 65504.0f);
  EXPECT_EQ(float_of_half(0x0001), 0x1p-24f);
  EXPECT_TRUE(std::isinf(float_of_half(0x7c00)));
}

// Between any two neighbours the nearer one is taken, the even one from the middle.
TEST(Values, HalfRoundsToNearestEven) {
  for (uint16_t bits = 0; bits < 0x7bff; bits++) {
    const float low = float_of_half(bits), high = float_of_half(static_cast<uint16_t>(bits + 1)),
                middle = (low + high) / 2;
    const uint16_t even = bits % 2 == 0 ? bits : static_cast<uint16_t>(bits + 1);
    ASSERT_EQ(half_of_float(middle), even) << bits;
    ASSERT_EQ(half_of_float(std::nextafter(middle, 0.0f)), bits);
    ASSERT_EQ(half_of_float(std::nextafter(middle, 1e9f)), bits + 1);
    ASSERT_EQ(half_of_float(-middle), even | 0x8000);
  }
  EXPECT_EQ(half_of_float(65519.9f), 0x7bff);
  EXPECT_EQ(half_of_float(65520.0f), 0x7c00);
  EXPECT_EQ(half_of_float(-std::numeric_limits<float>::infinity()), 0xfc00);
}

TEST(Values, ReadsAtAnyAlignmentAndRounds) {
  constexpr int64_t n = 40000;  // several blocks
  std::vector<float> values(n);
  for (int64_t i = 0; i < n; i++) values[static_cast<size_t>(i)] = normal({.seed = 3}, static_cast<uint32_t>(i));
  std::vector<uint8_t> raw(n * 4 + 1);
  std::memcpy(raw.data() + 1, values.data(), n * 4);
  std::vector<float> f(n);
  EXPECT_TRUE(read_values("F32", raw.data() + 1, n, DType::f32, f.data()));
  EXPECT_EQ(f, values);
  std::vector<bf16> b(n);
  EXPECT_TRUE(read_values("F32", raw.data() + 1, n, DType::bf16, b.data()));
  for (size_t i = 0; i < n; i++) ASSERT_EQ(b[i].bits, bf16(values[i]).bits);
  std::memcpy(raw.data() + 1, b.data(), n * 2);
  std::vector<bf16> again(n);
  EXPECT_TRUE(read_values("BF16", raw.data() + 1, n, DType::bf16, again.data()));
  EXPECT_EQ(std::memcmp(again.data(), b.data(), n * 2), 0);
  EXPECT_TRUE(read_values("BF16", raw.data() + 1, n, DType::f32, f.data()));
  for (size_t i = 0; i < n; i++) ASSERT_EQ(f[i], static_cast<float>(b[i]));
  std::string out;
  emit_values(DType::f32, f.data(), n, "BF16",
              [&](const void* p, size_t k) { out.append(static_cast<const char*>(p), k); });
  EXPECT_EQ(std::memcmp(out.data(), b.data(), n * 2), 0);
}

TEST(Values, SeesNonFiniteInEveryDtype) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), std::nanf("")}) {
    for (const size_t at : {0u, 20000u}) {
      std::vector<float> x(20001, 1.0f);
      x[at] = bad;
      for (const char* dtype : {"F32", "BF16", "F16"}) {
        std::string file;
        emit_values(DType::f32, x.data(), 20001, dtype,
                    [&](const void* p, size_t k) { file.append(static_cast<const char*>(p), k); });
        std::vector<float> back(20001);
        EXPECT_FALSE(read_values(dtype, bytes_of(file).data(), 20001, DType::f32, back.data())) << dtype;
        EXPECT_TRUE(read_values(dtype, bytes_of(file).data(), static_cast<int64_t>(at), DType::f32, back.data()));
      }
    }
  }
}

// From the published test vectors of XXH3: the hash of no bytes and seed 0.
TEST(Digest, IsXxh3) {
  EXPECT_EQ(Digest::of("", 0), "99aa06d3014798d86001c324468d497f");
  Digest pieces;
  std::string text;
  for (int i = 0; i < 1000; i++) {
    const std::string piece(static_cast<size_t>(i % 37), static_cast<char>(i));
    pieces.update(piece.data(), piece.size());
    text += piece;
  }
  EXPECT_EQ(pieces.hex(), Digest::of(text.data(), text.size()));
}

TEST(TensorFile, WritesFloatsUnderTheirNames) {
  const Scratch scratch;
  const OwnedTensor a(DType::f32, {2, 2}), b(DType::bf16, {3});
  for (int i = 0; i < 4; i++) a.view().as<float>()[i] = static_cast<float>(i);
  for (int i = 0; i < 3; i++) b.view().as<bf16>()[i] = bf16(1.0f + static_cast<float>(i));
  save_tensors(scratch / "g.safetensors", {{"z", a}, {"y", b}});
  const SafetensorsFile file(scratch / "g.safetensors");
  EXPECT_EQ(file.find("z")->describe(), "F32[2,2]");
  EXPECT_EQ(floats_of(*file.find("z")), (std::vector<float>{0, 1, 2, 3}));
  EXPECT_EQ(file.find("y")->describe(), "F32[3]");
  EXPECT_EQ(floats_of(*file.find("y")), (std::vector<float>{1, 2, 3}));
  TensorEntry entry = *file.find("y");
  entry.dtype = "I32";
  EXPECT_TRUE(contains(error_of([&] { floats_of(entry); }), "tensor y"));
}

}  // namespace
}  // namespace furlong
