// What may not change a bit: the packing, the number of threads, recomputation, and what else is in the batch.
#include <gtest/gtest.h>

#include "support.h"

namespace furlong::test {
namespace {

class Bits : public ::testing::TestWithParam<DType> {
 protected:
  Bits() : config_(tiny_config()), weights_(tiny_weights(config_, GetParam())) {
    sequences_ = disjoint_sequences({37, 1, 64, 2, 65, 130, 63}, config_.vocab_size, 21);
  }

  static void expect_equal(const Pass& a, const Pass& b) {
    EXPECT_EQ(bytes_of(a.hidden()), bytes_of(b.hidden()));
    EXPECT_EQ(bytes_of(a.mtp_hidden()), bytes_of(b.mtp_hidden()));
    EXPECT_EQ(a.log_probs(), b.log_probs());
    EXPECT_EQ(a.mtp_log_probs(), b.mtp_log_probs());
    for_each_tensor(
        [](const TensorSpec& spec, const Tensor& x, const Tensor& y) {
          EXPECT_EQ(bytes_of(x), bytes_of(y)) << spec.name;
          EXPECT_NE(bytes_of(x), std::string(x.bytes(), '\0')) << spec.name;
        },
        a.grads(), b.grads());
  }

  ModelConfig config_;
  Weights weights_;
  Sequences sequences_;
};

TEST_P(Bits, PackedIsSeparate) {
  const PassOptions options{.row_weight = 0.01};
  const Pass packed(config_, weights_, sequences_, options);
  auto log_prob = packed.log_probs().begin(), mtp_log_prob = packed.mtp_log_probs().begin();
  for (size_t s = 0; s < sequences_.size(); s++) {
    const Pass alone(config_, weights_, {sequences_[s]}, options);
    const int64_t begin = packed.start(s), end = packed.start(s + 1);
    EXPECT_EQ(bytes_of(packed.hidden().rows(begin, end)), bytes_of(alone.hidden())) << "sequence " << s;
    EXPECT_EQ(bytes_of(packed.mtp_hidden().rows(begin, end)), bytes_of(alone.mtp_hidden())) << "sequence " << s;
    for (const double p : alone.log_probs()) EXPECT_EQ(p, *log_prob++);
    for (const double p : alone.mtp_log_probs()) EXPECT_EQ(p, *mtp_log_prob++);
    // No other sequence has these tokens, so that the gradients of their embeddings are the gradients of this input.
    for (const int32_t token : sequences_[s]) {
      EXPECT_EQ(bytes_of(packed.grads().embed.rows(token, token + 1)),
                bytes_of(alone.grads().embed.rows(token, token + 1)))
          << "sequence " << s << ", token " << token;
    }
  }
  EXPECT_EQ(log_prob, packed.log_probs().end());
  EXPECT_EQ(mtp_log_prob, packed.mtp_log_probs().end());
}

// The order of the sequences and what stands beside them do not matter either.
TEST_P(Bits, NeighboursDoNotMatter) {
  const PassOptions options{.row_weight = 0.01};
  const Pass packed(config_, weights_, sequences_, options);
  const Pass other(config_, weights_, {sequences_[5], sequences_[4]}, options);
  EXPECT_EQ(bytes_of(packed.hidden().rows(packed.start(4), packed.start(5))),
            bytes_of(other.hidden().rows(other.start(1), other.start(2))));
  for (const int32_t token : sequences_[4]) {
    EXPECT_EQ(bytes_of(packed.grads().embed.rows(token, token + 1)),
              bytes_of(other.grads().embed.rows(token, token + 1)));
  }
}

TEST_P(Bits, ThreadsDoNotMatter) {
  const Pass one(config_, weights_, sequences_, {.threads = 1});
  for (const int threads : {2, 3}) expect_equal(one, Pass(config_, weights_, sequences_, {.threads = threads}));
}

TEST_P(Bits, RecomputationDoesNotMatter) {
  const Pass kept(config_, weights_, sequences_, {});
  const Pass replayed(config_, weights_, sequences_, {.recompute = Recompute::full});
  expect_equal(kept, replayed);
  const Pass inference(config_, weights_, sequences_, {.backward = false});
  EXPECT_EQ(bytes_of(kept.hidden()), bytes_of(inference.hidden()));
  EXPECT_EQ(bytes_of(kept.mtp_hidden()), bytes_of(inference.mtp_hidden()));
  EXPECT_EQ(kept.log_probs(), inference.log_probs());
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Bits, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace furlong::test
