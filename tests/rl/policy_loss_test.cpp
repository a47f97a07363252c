// The loss of one token against its definition and its derivative against central differences.
#include "rl/policy_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"

namespace furlong::test {
namespace {

TEST(K3, IsTheSecondOrderEstimate) {
  EXPECT_EQ(k3(0), 0);
  EXPECT_NEAR(k3(0.5), std::exp(-0.5) - 0.5, 1e-15);
  EXPECT_NEAR(k3(-2), std::exp(2.0) - 3, 1e-14);
  for (const double x : {-3.0, -0.1, 0.1, 3.0}) EXPECT_GT(k3(x), 0);
}

TEST(KlTypes, HaveTheirNames) {
  EXPECT_EQ(parse_kl_type("k1"), KlType::k1);
  EXPECT_EQ(parse_kl_type("k2"), KlType::k2);
  EXPECT_EQ(parse_kl_type("k3"), KlType::k3);
  EXPECT_EQ(parse_kl_type("low_var_kl"), KlType::low_var_kl);
  try {
    parse_kl_type("K1");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    EXPECT_NE(std::string(e.what()).find("low_var_kl"), std::string::npos);
  }
}

TEST(KlTypes, HaveTheirValues) {
  const auto kl = [](KlType type, double x) {
    return token_loss({.log_prob = -1 + x, .ref_log_prob = -1}, {.kl_loss_coef = 1, .kl_type = type}).kl;
  };
  EXPECT_NEAR(kl(KlType::k1, -0.7), -0.7, 1e-12);
  EXPECT_NEAR(kl(KlType::k2, -0.7), 0.245, 1e-12);
  EXPECT_NEAR(kl(KlType::k3, -0.7), std::exp(0.7) - 1.7, 1e-12);
  EXPECT_NEAR(kl(KlType::low_var_kl, -0.7), std::exp(0.7) - 1.7, 1e-12);
  EXPECT_EQ(kl(KlType::low_var_kl, -5), 10);    // e^5 - 6 is clamped
  EXPECT_EQ(kl(KlType::low_var_kl, -800), 10);  // no overflow
  EXPECT_NEAR(kl(KlType::low_var_kl, 8), std::exp(-8.0) + 7, 1e-12);
  EXPECT_NEAR(kl(KlType::k3, -5), std::exp(5.0) - 6, 1e-9);  // the plain one is not
}

// rho = exp(new - old); max(-rho A, -clip(rho) A), and min of that and -c A for A < 0 with the dual clip.
TEST(PolicyLoss, Table) {
  struct Row {
    double ratio, advantage;
    std::optional<double> dual;
    double policy, clipped, d;  // d: d policy / d log p
  };
  const std::vector<Row> table = {
      {1.0, 2.0, {}, -2.0, 0, -2.0},  // on policy
      {1.2, 1.0, {}, -1.2, 0, -1.2},  // inside the higher upper bound
      {1.4, 1.0, {}, -1.28, 1, 0},    // above it
      {0.5, 1.0, {}, -0.5, 0, -0.5},  // below, but the plain term is the larger
      {0.5, -1.0, {}, 0.8, 1, 0},     // below the lower bound
      {1.4, -1.0, {}, 1.4, 0, 1.4},   // above, plain
      {4.0, -1.0, {}, 4.0, 0, 4.0},   // unbounded without the dual clip
      {4.0, -1.0, 3.0, 3.0, 0, 0},    // bounded with it
      {2.5, -1.0, 3.0, 2.5, 0, 2.5},  // not yet
      {4.0, 1.0, 3.0, -1.28, 1, 0},   // only for negative advantages
      {1.4, 0.0, {}, 0, 0, 0},
  };
  for (const Row& r : table) {
    const TokenLoss loss =
        token_loss({.log_prob = -2 + std::log(r.ratio), .old_log_prob = -2, .advantage = r.advantage},
                   {.eps_clip = 0.2, .eps_clip_high = 0.28, .eps_clip_c = r.dual});
    EXPECT_NEAR(loss.ratio, r.ratio, 1e-12);
    EXPECT_NEAR(loss.policy, r.policy, 1e-12) << r.ratio << " " << r.advantage;
    EXPECT_EQ(loss.clipped, r.clipped) << r.ratio << " " << r.advantage;
    EXPECT_NEAR(loss.d_log_prob, r.d, 1e-12) << r.ratio << " " << r.advantage;
    EXPECT_EQ(loss.kl, 0);
  }
}

TEST(PolicyLoss, WithoutAnOldPolicyTheRatioIsOneAndTheGradientFlows) {
  const TokenLoss loss = token_loss({.log_prob = -3, .advantage = 1.5}, {});
  EXPECT_EQ(loss.ratio, 1);
  EXPECT_EQ(loss.policy, -1.5);
  EXPECT_EQ(loss.d_log_prob, -1.5);
  EXPECT_EQ(loss.clipped, 0);
}

TEST(PolicyLoss, FarRatiosAreBounded) {
  const TokenLoss loss = token_loss({.log_prob = -1, .old_log_prob = -100, .advantage = -1}, {});
  EXPECT_NEAR(loss.ratio, std::exp(20.0), 1e-3);
  EXPECT_EQ(loss.d_log_prob, 0);
  const TokenLoss lost =
      token_loss({.log_prob = -1, .old_log_prob = -std::numeric_limits<double>::infinity(), .advantage = 1}, {});
  EXPECT_EQ(lost.ratio, 1);
}

// Over a grid that has points on both sides of every bound (and none within a step of one).
TEST(PolicyLoss, DerivativeIsThatOfTheLoss) {
  constexpr double h = 1e-6;
  size_t points = 0;
  for (const KlType type : {KlType::k1, KlType::k2, KlType::k3, KlType::low_var_kl}) {
    for (const bool unbiased : {false, true}) {
      for (const std::optional<double> dual : {std::optional<double>(), std::optional<double>(1.5)}) {
        for (const double advantage : {-1.3, 0.0, 0.7}) {
          for (const double to_old : {-25.0, -1.1, -0.3, -0.1, 0.05, 0.21, 0.3, 0.6, 3.0, 25.0}) {
            for (const double to_ref : {-30.0, -3.0, -0.4, 0.3, 4.0, 12.0, 30.0}) {
              // The plain k3 of a far reference is so large that no difference of it has any digits left.
              if (type == KlType::k3 && to_ref < -5) continue;
              const PolicyLossOptions options{.eps_clip = 0.2,
                                              .eps_clip_high = 0.28,
                                              .eps_clip_c = dual,
                                              .kl_loss_coef = 0.4,
                                              .kl_type = type,
                                              .unbiased_kl = unbiased};
              const double log_prob = -1.5;
              const auto at = [&](double x) {
                const TokenLoss loss = token_loss({.log_prob = x,
                                                   .old_log_prob = log_prob - to_old,
                                                   .ref_log_prob = log_prob - to_ref,
                                                   .advantage = advantage},
                                                  options);
                return loss.policy + options.kl_loss_coef * loss.kl;
              };
              const double numeric = (at(log_prob + h) - at(log_prob - h)) / (2 * h);
              const TokenLoss loss = token_loss({.log_prob = log_prob,
                                                 .old_log_prob = log_prob - to_old,
                                                 .ref_log_prob = log_prob - to_ref,
                                                 .advantage = advantage},
                                                options);
              const double size = std::abs(numeric) + std::abs(at(log_prob)) * 1e-3 + 1;
              EXPECT_NEAR(loss.d_log_prob, numeric, 1e-7 * size)
                  << "type " << static_cast<int>(type) << " unbiased " << unbiased << " dual " << dual.value_or(0)
                  << " advantage " << advantage << " to_old " << to_old << " to_ref " << to_ref;
              points++;
            }
          }
        }
      }
    }
  }
  EXPECT_GT(points, 3000u);
}

// With the detached current policy as the old one the importance is 1, but its derivative is the KL's own.
TEST(PolicyLoss, UnbiasedKlOnPolicy) {
  const PolicyLossOptions options{.kl_loss_coef = 0.5, .kl_type = KlType::k2, .unbiased_kl = true};
  const TokenLoss loss = token_loss({.log_prob = -1, .ref_log_prob = -1.6}, options);
  EXPECT_NEAR(loss.kl, 0.18, 1e-12);
  EXPECT_NEAR(loss.d_log_prob, 0.5 * (0.6 + 0.18), 1e-12);
}

}  // namespace
}  // namespace furlong::test
