// The CUDA sampler against the CPU's: the same noise and the same kept tokens. The logarithms of the noise may differ
// in their last places, so that a draw may differ where two noisy values, or the probability kept so far and top_p, are
// equal within their rounding; such draws are recognised below, and anything else fails.
#include "ops/sample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "device_array.h"

namespace furlong::test {
namespace {

class CudaSample : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { cuda::open(); }
};

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
};

Drawn drawn_by(const OpTable& ops, Stream& stream, const Tensor& logits, const std::vector<SampleRow>& rows) {
  const auto n = static_cast<int64_t>(rows.size());
  const OwnedTensor tokens(DType::i32, {n}, stream.device()), log_probs(DType::f32, {n}, stream.device());
  ops.sample(stream, tokens, log_probs, logits, rows);
  Drawn out{std::vector<int32_t>(rows.size()), std::vector<float>(rows.size())};
  copy(stream, Tensor(out.tokens.data(), DType::i32, {n}), tokens);
  copy(stream, Tensor(out.log_probs.data(), DType::f32, {n}), log_probs);
  stream.synchronize();
  return out;
}

Drawn on_cpu(const Tensor& logits, const std::vector<SampleRow>& rows) {
  ThreadPool threads(2);
  Stream stream(threads);
  return drawn_by(*cpu::all_ops().front(), stream, logits, rows);
}

Drawn on_cuda(const Array& logits, const std::vector<SampleRow>& rows) {
  ThreadPool threads(1);
  Stream stream(threads, Device::cuda);
  return drawn_by(cuda::ops(), stream, DeviceArray(stream, logits), rows);
}

RngKey key_of(uint32_t position) { return {987654321, 5, 2, position}; }

double noisy(const float* logits, int64_t token, const SampleRow& row) {
  return static_cast<double>(logits[token]) / row.params.temperature +
         static_cast<double>(gumbel(random_word(row.key, static_cast<uint32_t>(token))));
}

// Whether the probability of the tokens before or up to `token`, in falling order, is top_p within rounding.
bool at_the_edge(const float* logits, int64_t n, int64_t token, const SampleRow& row) {
  if (row.params.top_p >= 1) return false;
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) order[static_cast<size_t>(i)] = i;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return logits[a] > logits[b]; });
  if (row.params.top_k > 0 && row.params.top_k < n) order.resize(static_cast<size_t>(row.params.top_k));
  const auto weight = [&](int64_t i) {
    return std::exp(static_cast<double>(logits[i] - logits[order[0]]) / row.params.temperature);
  };
  double total = 0, before = 0;
  for (const int64_t i : order) total += weight(i);
  for (const int64_t i : order) {
    const double after = before + weight(i);
    if (i == token)
      return std::min(std::abs(before / total - row.params.top_p), std::abs(after / total - row.params.top_p)) < 1e-6;
    before = after;
  }
  return false;
}

bool explained(const float* logits, int64_t n, int64_t a, int64_t b, const SampleRow& row) {
  if (row.params.temperature == 0) return false;
  const double va = noisy(logits, a, row), vb = noisy(logits, b, row);
  const double rounding = 4 * 1.2e-7 * std::max({1.0, std::abs(va), std::abs(vb)});
  return std::abs(va - vb) <= rounding || at_the_edge(logits, n, a, row) || at_the_edge(logits, n, b, row);
}

void compare(const Array& logits, const std::vector<SampleRow>& rows, const std::string& what) {
  const int64_t n = logits.view().dim(1);
  const Drawn cpu = on_cpu(logits, rows), got = on_cuda(logits, rows);
  int differ = 0;
  for (size_t r = 0; r < rows.size(); r++) {
    const float* row = logits.view().as<float>() + static_cast<int64_t>(r) * logits.view().row_stride();
    ASSERT_TRUE(got.tokens[r] >= 0 && got.tokens[r] < n) << what << ", row " << r << ": " << got.tokens[r];
    if (got.tokens[r] != cpu.tokens[r]) {
      differ++;
      EXPECT_TRUE(explained(row, n, got.tokens[r], cpu.tokens[r], rows[r]))
          << what << ", row " << r << ": token " << got.tokens[r] << " for " << cpu.tokens[r];
      continue;
    }
    const float largest = *std::max_element(row, row + n);
    const double bound =
        1e-6 * (16 + std::abs(static_cast<double>(largest)) /
                         std::max(1e-3, rows[r].params.temperature == 0 ? 1 : rows[r].params.temperature)) +
        1e-6 * std::abs(static_cast<double>(cpu.log_probs[r]));
    EXPECT_NEAR(got.log_probs[r], cpu.log_probs[r], bound) << what << ", row " << r;
  }
  EXPECT_LE(differ, 1 + static_cast<int>(rows.size()) / 100) << what;
}

const std::vector<SampleParams> kinds = {{0, 0, 1},    {1, 0, 1},      {0.7, 5, 1}, {1.5, 0, 0.8}, {1, 20, 0.5},
                                         {0.05, 0, 1}, {1, 1, 1},      {1, 0, 0},   {1, 0, 0.999}, {0.6, 20, 0.95},
                                         {1, 3000, 1}, {2, 5000, 0.9}, {1, 0, 0.05}};

TEST_F(CudaSample, DrawsTheTokensOfTheCpu) {
  Random random(71);
  for (const int64_t vocabulary : {1, 3, 64, 127, 130, 1000, 8192, 8193, 40000}) {
    const int64_t rows = vocabulary > 5000 ? 39 : 130;
    for (const double spread : {0.1, 3.0, 12.0}) {
      std::vector<SampleRow> how;
      for (int64_t r = 0; r < rows; r++) {
        how.push_back({key_of(static_cast<uint32_t>(r)), kinds[static_cast<size_t>(r) % kinds.size()]});
      }
      for (const int64_t pad : {0, 3}) {
        const Array logits(DType::f32, {rows, vocabulary}, random.normal(rows * vocabulary, spread), pad);
        compare(logits, how, fmt::format("vocabulary {}, spread {}, pad {}", vocabulary, spread, pad));
      }
    }
  }
}

TEST_F(CudaSample, DrawsFromTheWholeVocabulary) {
  Random random(72);
  const int64_t vocabulary = 248320, rows = static_cast<int64_t>(kinds.size());
  const Array logits(DType::f32, {rows, vocabulary}, random.normal(rows * vocabulary, 3));
  std::vector<SampleRow> how;
  for (int64_t r = 0; r < rows; r++) how.push_back({key_of(static_cast<uint32_t>(r)), kinds[static_cast<size_t>(r)]});
  compare(logits, how, "the whole vocabulary");
}

// Of equal likelihood the lower ids are kept, also where the equal ones are more than a block collects at once.
TEST_F(CudaSample, KeepsTheLowerOfEqualTokens) {
  const int64_t draws = 200, vocabulary = 6000;
  Values values(static_cast<size_t>(draws * vocabulary), 0.5);
  for (int64_t r = 0; r < draws; r++) values[static_cast<size_t>(r * vocabulary + 4000)] = 0.75;
  const Array logits(DType::f32, {draws, vocabulary}, values);
  for (const SampleParams params : {SampleParams{1, 2, 1}, SampleParams{1, 2500, 1}, SampleParams{0, 0, 1}}) {
    std::vector<SampleRow> rows;
    for (int64_t i = 0; i < draws; i++) rows.push_back({key_of(static_cast<uint32_t>(i)), params});
    const Drawn cpu = on_cpu(logits, rows), got = on_cuda(logits, rows);
    EXPECT_EQ(got.tokens, cpu.tokens) << "k " << params.top_k;
    for (const int32_t token : got.tokens) EXPECT_TRUE(token < std::max<int64_t>(1, params.top_k) || token == 4000);
  }
}

TEST_F(CudaSample, MaskedTokensAreNeverDrawn) {
  Random random(73);
  const int64_t draws = 60, vocabulary = 20000;
  Values values = random.normal(draws * vocabulary, 2);
  for (size_t i = 0; i < values.size(); i++) {
    if (i % 5 != 0) values[i] = -HUGE_VAL;
  }
  const Array logits(DType::f32, {draws, vocabulary}, values);
  std::vector<SampleRow> rows;
  for (int64_t i = 0; i < draws; i++)
    rows.push_back({key_of(static_cast<uint32_t>(i)), kinds[static_cast<size_t>(i) % kinds.size()]});
  for (const int32_t token : on_cuda(logits, rows).tokens) EXPECT_EQ(token % 5, 0);
  compare(logits, rows, "masked");
}

TEST_F(CudaSample, RecordedLogProbIsThatOfTheLoss) {
  Random random(74);
  for (const int64_t vocabulary : {1, 9, 513, 20000}) {
    for (const double temperature : {0.0, 1.0, 0.37}) {
      const int64_t rows = 5;
      const Array logits(DType::f32, {rows, vocabulary}, random.normal(rows * vocabulary, 4), 1);
      std::vector<SampleRow> how;
      for (int64_t r = 0; r < rows; r++) how.push_back({key_of(static_cast<uint32_t>(r)), {temperature, 7, 0.9}});
      const Drawn drawn = on_cuda(logits, how);
      ThreadPool threads(1);
      Stream stream(threads, Device::cuda);
      const std::vector<Array> host = [&] {
        std::vector<Array> arrays;
        arrays.push_back(Array::indices(drawn.tokens));
        for (int i = 0; i < 3; i++) arrays.emplace_back(DType::f32, Shape{rows});
        return arrays;
      }();
      const DeviceArray on_device(stream, logits);
      const auto device = upload(stream, host);
      cuda::ops().log_prob(stream, device[1], device[2], device[3], on_device, device[0],
                           temperature == 0 ? 1 : temperature);
      fetch(stream, device);
      for (int64_t r = 0; r < rows; r++) {
        EXPECT_EQ(host[1].view().as<float>()[r], drawn.log_probs[static_cast<size_t>(r)]);
      }
    }
  }
}

TEST_F(CudaSample, RepeatsItsDraws) {
  Random random(75);
  const int64_t rows = 39, vocabulary = 30000;
  const Array logits(DType::f32, {rows, vocabulary}, random.normal(rows * vocabulary, 1));
  std::vector<SampleRow> how;
  for (int64_t r = 0; r < rows; r++) {
    how.push_back({key_of(static_cast<uint32_t>(r)), kinds[static_cast<size_t>(r) % kinds.size()]});
  }
  const Drawn first = on_cuda(logits, how);
  for (int i = 0; i < 3; i++) {
    const Drawn again = on_cuda(logits, how);
    EXPECT_EQ(again.tokens, first.tokens);
    EXPECT_EQ(again.log_probs, first.log_probs);
  }
}

}  // namespace
}  // namespace furlong::test
