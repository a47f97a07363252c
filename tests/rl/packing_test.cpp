// Advantages, bins and the weight of every token.
#include "rl/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "rl/advantages.h"

namespace furlong::test {
namespace {

Trajectory scored(int64_t group, std::optional<double> reward) {
  Trajectory t;
  t.tokens = {1, 2};
  t.response_length = 1;
  t.loss_mask = {1};
  t.group_index = group;
  t.reward = reward;
  return t;
}

std::vector<double> advantages(const std::vector<std::pair<int64_t, std::optional<double>>>& rows,
                               const AdvantageOptions& options = {}) {
  std::vector<Trajectory> trajectories;
  for (const auto& [group, reward] : rows) trajectories.push_back(scored(group, reward));
  return group_advantages(trajectories, options);
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); i++) EXPECT_NEAR(got[i], want[i], 1e-12) << "sample " << i;
}

TEST(Advantages, WithinEachGroup) {
  // Group 7: mean 1/2, variance (n-1) 1/3. Group 3, interleaved: mean 3, variance 2.
  const double a = 0.5 / (std::sqrt(1.0 / 3) + 1e-6), b = 1 / (std::sqrt(2.0) + 1e-6);
  expect_near(advantages({{7, 1.0}, {3, 2.0}, {7, 0.0}, {7, 0.0}, {3, 4.0}, {7, 1.0}}), {a, -b, -a, -a, b, a});
}

TEST(Advantages, UnscoredSamplesAreLeftOut) {
  const double a = 1 / (std::sqrt(2.0) + 1e-6);
  expect_near(advantages({{0, 3.0}, {0, {}}, {0, 1.0}}), {a, 0, -a});
  expect_near(advantages({{0, {}}, {0, {}}}), {0, 0});
  expect_near(advantages({{0, {}}, {0, 5.0}}), {0, 0});  // one scored sample has nothing to be compared with
}

TEST(Advantages, OfOneSampleAndOfNone) {
  expect_near(advantages({{0, 5.0}, {1, -2.0}}), {0, 0});
  EXPECT_TRUE(advantages({}).empty());
  expect_near(advantages({{0, 5.0}}, {.normalise = false}), {5});
}

// Exactly 0, whatever the mean of equal numbers rounds to: AdamW would blow any remainder up.
TEST(Advantages, OfEqualRewardsAreZero) {
  for (size_t n = 2; n <= 33; n++) {
    for (const double reward : {1.0, 0.0, -1.0, 0.1, 1.0 / 3, 1e-3, 12345.678}) {
      const std::vector<std::pair<int64_t, std::optional<double>>> rows(n, {0, reward});
      EXPECT_EQ(advantages(rows), std::vector<double>(n, 0.0)) << n << " rewards of " << reward;
    }
  }
}

TEST(Advantages, Switches) {
  const std::vector<std::pair<int64_t, std::optional<double>>> rows = {{0, 4.0}, {0, 1.0}, {0, 1.0}, {0, {}}};
  expect_near(advantages(rows, {.divide_by_std = false}), {2, -1, -1, 0});
  expect_near(advantages(rows, {.normalise = false}), {4, 1, 1, 0});
}

bool is_partition(const std::vector<std::vector<size_t>>& bins, size_t n) {
  std::vector<size_t> all;
  for (const auto& bin : bins) {
    if (bin.empty() || !std::is_sorted(bin.begin(), bin.end())) return false;
    all.insert(all.end(), bin.begin(), bin.end());
  }
  if (!std::is_sorted(bins.begin(), bins.end(), [](const auto& a, const auto& b) { return a[0] < b[0]; })) return false;
  std::sort(all.begin(), all.end());
  std::vector<size_t> want(n);
  std::iota(want.begin(), want.end(), size_t{0});
  return all == want;
}

int64_t sum_of(const std::vector<size_t>& bin, const std::vector<int64_t>& lengths) {
  int64_t sum = 0;
  for (const size_t i : bin) sum += lengths[i];
  return sum;
}

std::vector<int64_t> random_lengths(std::mt19937& engine, size_t n) {
  std::vector<int64_t> lengths(n);
  for (auto& l : lengths) l = 1 + static_cast<int64_t>(engine() % 300);
  return lengths;
}

TEST(Bins, OfAFixedNumberOfSamples) {
  const std::vector<int64_t> lengths(7, 10);
  const std::vector<std::vector<size_t>> threes = {{0, 1, 2}, {3, 4, 5}, {6}};
  EXPECT_EQ(make_bins(lengths, {.micro_batch_size = 3}), threes);
  EXPECT_EQ(make_bins(lengths, {.micro_batch_size = 1}).size(), 7u);
  EXPECT_EQ(make_bins(lengths, {.micro_batch_size = 100}).size(), 1u);
  EXPECT_TRUE(make_bins({}, {}).empty());
}

TEST(Bins, FirstFitDecreasing) {
  const std::vector<int64_t> lengths = {3, 90, 60, 40, 10, 500, 37};
  // Falling: 500 alone, 90, 60, 40 to 60, 37 alone, 10 to 90, 3 to 37.
  const std::vector<std::vector<size_t>> want = {{0, 6}, {1, 4}, {2, 3}, {5}};
  EXPECT_EQ(make_bins(lengths, {.dynamic = true, .max_tokens = 100}), want);
  EXPECT_TRUE(make_bins({}, {.dynamic = true, .max_tokens = 100, .balance = true}).empty());
}

// Every rank gets as many bins as any other, none too large; empty ones only where samples are too few.
TEST(Bins, AreDealtToRanks) {
  std::mt19937 engine(37);
  for (int round = 0; round < 200; round++) {
    const auto lengths = random_lengths(engine, 1 + engine() % 40);
    for (const int64_t ranks : {2, 3, 8}) {
      for (const bool balance : {false, true}) {
        for (const bool dynamic : {false, true}) {
          const PackOptions options{
              .dynamic = dynamic, .max_tokens = 512, .micro_batch_size = 3, .balance = balance, .ranks = ranks};
          const auto bins = make_bins(lengths, options);
          EXPECT_TRUE(is_partition(bins, lengths.size()));
          std::vector<int64_t> sizes;
          for (const auto& bin : bins) {
            sizes.push_back(sum_of(bin, lengths));
            EXPECT_TRUE(dynamic ? sizes.back() <= 512 : bin.size() <= 3);
          }
          if (std::ssize(bins) % ranks != 0) {
            EXPECT_EQ(bins.size(), lengths.size());
          }
          const auto dealt = deal(sizes, ranks, balance);
          EXPECT_EQ(std::ssize(dealt), ranks);
          std::multiset<size_t> all;
          for (const auto& mine : dealt) {
            EXPECT_EQ(std::ssize(mine), (std::ssize(bins) + ranks - 1) / ranks);
            EXPECT_TRUE(std::is_sorted(mine.begin(), mine.end()));
            all.insert(mine.begin(), mine.end());
          }
          for (size_t i = 0; i < bins.size(); i++) EXPECT_EQ(all.count(i), 1u);
        }
      }
    }
  }
}

TEST(Bins, GoToTheLighterRank) {
  const std::vector<int64_t> sizes = {5, 9, 1, 3, 8, 2};
  EXPECT_EQ(deal(sizes, 2, false), (std::vector<std::vector<size_t>>{{0, 2, 4}, {1, 3, 5}}));
  // 9 | 8, then 5 to 8, 3 to 9, 2 to 12, 1 to where there is room.
  EXPECT_EQ(deal(sizes, 2, true), (std::vector<std::vector<size_t>>{{1, 3, 5}, {0, 2, 4}}));
  EXPECT_EQ(deal(std::vector<int64_t>{4}, 3, true), (std::vector<std::vector<size_t>>{{0}, {1}, {1}}));
}

TEST(Bins, FitAndAreNotWorseBalanced) {
  std::mt19937 engine(31);
  double spread_plain = 0, spread_balanced = 0;
  for (int round = 0; round < 200; round++) {
    const auto lengths = random_lengths(engine, 1 + engine() % 40);
    PackOptions options{.dynamic = true, .max_tokens = 250 + static_cast<int64_t>(engine() % 400)};
    const auto plain = make_bins(lengths, options);
    options.balance = true;
    const auto balanced = make_bins(lengths, options);
    EXPECT_EQ(balanced.size(), plain.size());
    EXPECT_EQ(balanced, make_bins(lengths, options));
    for (const auto* bins : {&plain, &balanced}) {
      EXPECT_TRUE(is_partition(*bins, lengths.size()));
      int64_t largest = 0, smallest = INT64_MAX;
      for (const auto& bin : *bins) {
        EXPECT_TRUE(sum_of(bin, lengths) <= options.max_tokens || bin.size() == 1);
        largest = std::max(largest, sum_of(bin, lengths));
        smallest = std::min(smallest, sum_of(bin, lengths));
      }
      (bins == &plain ? spread_plain : spread_balanced) += static_cast<double>(largest - smallest);
    }
    // First fit leaves no two bins that could be one.
    for (size_t a = 0; a < plain.size(); a++) {
      for (size_t b = 0; b < a; b++)
        EXPECT_GT(sum_of(plain[a], lengths) + sum_of(plain[b], lengths), options.max_tokens);
    }
  }
  EXPECT_LT(spread_balanced, 0.9 * spread_plain);
}

TEST(KarmarkarKarp, DifferencesTheLargest) {
  // 8 - 7, 6 - 5, then 4 - 1 and 3 - 1: sums 16 and 14, the method's known answer for these numbers.
  const std::vector<int64_t> sizes = {8, 7, 6, 5, 4};
  const auto two = karmarkar_karp(sizes, 2);
  ASSERT_EQ(two.size(), 2u);
  EXPECT_EQ(std::abs(sum_of(two[0], sizes) - sum_of(two[1], sizes)), 2);
  EXPECT_EQ(karmarkar_karp(sizes, 1), (std::vector<std::vector<size_t>>{{0, 1, 2, 3, 4}}));
  EXPECT_TRUE(karmarkar_karp({}, 3).empty());
}

// The difference of the sums never exceeds the largest number, and a set is empty only when there are too few numbers.
TEST(KarmarkarKarp, Properties) {
  std::mt19937 engine(32);
  for (int round = 0; round < 200; round++) {
    const auto sizes = random_lengths(engine, 1 + engine() % 30);
    const size_t k = 1 + engine() % 8;
    const auto sets = karmarkar_karp(sizes, k);
    EXPECT_TRUE(is_partition(sets, sizes.size()));
    EXPECT_EQ(sets.size(), std::min(k, sizes.size()));
    int64_t largest = 0, smallest = INT64_MAX;
    for (const auto& set : sets) {
      largest = std::max(largest, sum_of(set, sizes));
      smallest = std::min(smallest, sum_of(set, sizes));
    }
    EXPECT_LE(largest - smallest, *std::max_element(sizes.begin(), sizes.end()));
  }
}

// A trajectory of distinct tokens base, base + 1, ...
Trajectory trajectory(int32_t base, int64_t prompt, std::vector<uint8_t> mask) {
  Trajectory t;
  t.tokens.resize(static_cast<size_t>(prompt) + mask.size());
  std::iota(t.tokens.begin(), t.tokens.end(), base);
  t.response_length = static_cast<int32_t>(mask.size());
  t.loss_mask = std::move(mask);
  return t;
}

class Packing : public ::testing::Test {
 protected:
  Packing() {
    all_ = {trajectory(100, 3, {1, 1, 0, 1}), trajectory(200, 2, {1}), trajectory(300, 1, {0, 1, 1, 1, 1, 1}),
            trajectory(400, 4, {0, 0}), trajectory(500, 1, {1})};
    for (const auto& t : all_) pointers_.push_back(&t);
  }

  struct Token {
    size_t sample;
    int32_t offset, target;
    double weight;
    auto operator<=>(const Token&) const = default;
  };
  static std::set<Token> tokens(const std::vector<Pack>& packs, bool mtp) {
    std::set<Token> out;
    for (const auto& pack : packs) {
      for (const auto& r : mtp ? pack.mtp_rows : pack.rows) {
        EXPECT_TRUE(out.insert({static_cast<size_t>(r.sample), r.offset, r.target, r.weight}).second);
      }
    }
    return out;
  }
  static double total(const std::set<Token>& tokens) {
    double sum = 0;
    for (const auto& t : tokens) sum += t.weight;
    return sum;
  }

  std::vector<Trajectory> all_;
  std::vector<const Trajectory*> pointers_;
};

TEST_F(Packing, WeighsPerSample) {
  const auto got = tokens(pack_step(pointers_, {.micro_batch_size = 2}, false, false), false);
  const double n = 5;
  std::set<Token> want;
  for (const int32_t o : {0, 1, 3}) want.insert({0, o, 103 + o, 1 / (3 * n)});
  want.insert({1, 0, 202, 1 / n});
  for (int32_t o = 1; o <= 5; o++) want.insert({2, o, 301 + o, 1 / (5 * n)});
  want.insert({4, 0, 501, 1 / n});
  EXPECT_EQ(got, want);
  EXPECT_NEAR(total(got), 4 / n, 1e-15);  // the sample without a token has no loss, but counts
}

TEST_F(Packing, WeighsPerToken) {
  const auto got = tokens(pack_step(pointers_, {.micro_batch_size = 5}, true, false), false);
  EXPECT_EQ(got.size(), 10u);
  for (const auto& t : got) EXPECT_EQ(t.weight, 1.0 / 11);  // 3 + 1 + 5 + at least 1 + 1
}

TEST_F(Packing, WeightsOfFullSamplesAddUpToOne) {
  std::mt19937 engine(33);
  std::vector<Trajectory> many;
  for (int32_t i = 0; i < 17; i++) {
    std::vector<uint8_t> mask(1 + engine() % 20);
    for (auto& m : mask) m = static_cast<uint8_t>(engine() % 2);
    mask[engine() % mask.size()] = 1;
    many.push_back(trajectory(100 * i, 2 + static_cast<int64_t>(engine() % 5), mask));
  }
  std::vector<const Trajectory*> pointers;
  for (const auto& t : many) pointers.push_back(&t);
  for (const bool per_token : {false, true}) {
    std::optional<std::set<Token>> first, first_mtp;
    for (const PackOptions& options : {PackOptions{.micro_batch_size = 1}, PackOptions{.micro_batch_size = 4},
                                       PackOptions{.dynamic = true, .max_tokens = 40},
                                       PackOptions{.dynamic = true, .max_tokens = 60, .balance = true}}) {
      const auto packs = pack_step(pointers, options, per_token, true);
      const auto got = tokens(packs, false), mtp = tokens(packs, true);
      EXPECT_NEAR(total(got), 1, 1e-12);
      EXPECT_NEAR(total(mtp), 1, 1e-12);
      // The split into micro-batches changes no weight.
      EXPECT_EQ(first.value_or(got), got);
      EXPECT_EQ(first_mtp.value_or(mtp), mtp);
      first = got;
      first_mtp = mtp;
    }
  }
}

// Row t of the MTP head predicts token t+2: a target at position 0 or 1 has no row, and the mask is the target's own.
TEST_F(Packing, MtpRowsFollowTheMaskOfTheirTarget) {
  const auto got = tokens(pack_step(pointers_, {.micro_batch_size = 5}, false, true), true);
  std::set<Token> want;
  const double weight = 1.0 / 9;
  for (const int32_t o : {0, 1, 3}) want.insert({0, o, 103 + o, weight});
  want.insert({1, 0, 202, weight});
  for (int32_t o = 1; o <= 5; o++) want.insert({2, o, 301 + o, weight});
  EXPECT_EQ(got, want);
  for (const auto& pack : pack_step(pointers_, {.micro_batch_size = 5}, false, false))
    EXPECT_TRUE(pack.mtp_rows.empty());
}

TEST_F(Packing, RowsPointIntoTheBatch) {
  for (auto& pack : pack_step(pointers_, {.dynamic = true, .max_tokens = 10, .balance = true}, false, true)) {
    const Batch batch = pack.batch.batch();
    ASSERT_EQ(static_cast<int64_t>(pack.next_tokens.size()), batch.rows());
    ASSERT_EQ(batch.segments.count(), static_cast<int64_t>(pack.samples.size()));
    const int32_t *ids = batch.tokens.as<int32_t>(), *starts = batch.segments.starts.as<int32_t>();
    for (size_t s = 0; s < pack.samples.size(); s++) {
      const auto& tokens = all_[pack.samples[s]].tokens;
      ASSERT_EQ(starts[s + 1] - starts[s], static_cast<int32_t>(tokens.size()));
      for (int32_t t = 0; t < starts[s + 1] - starts[s]; t++) {
        const auto i = static_cast<size_t>(t);
        EXPECT_EQ(ids[starts[s] + t], tokens[i]);
        EXPECT_EQ(pack.next_tokens[static_cast<size_t>(starts[s]) + i], i + 1 < tokens.size() ? tokens[i + 1] : 0);
      }
    }
    // Tokens are consecutive numbers, so that the target tells which row must predict it.
    for (const auto& r : pack.rows) EXPECT_EQ(r.target, ids[r.row] + 1);
    for (const auto& r : pack.mtp_rows) EXPECT_EQ(r.target, ids[r.row] + 2);
    for (const auto& r : pack.rows) {
      const Trajectory& t = all_[static_cast<size_t>(r.sample)];
      EXPECT_EQ(r.target, t.tokens[static_cast<size_t>(t.prompt_length() + r.offset)]);
    }
  }
}

}  // namespace
}  // namespace furlong::test
