#include "rl/policy_loss.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace furlong {
namespace {

constexpr double log_ratio_bound = 20, low_var_bound = 10;

struct Value {
  double value = 0, derivative = 0;
};

Value kl_estimate(KlType type, double x) {
  switch (type) {
    case KlType::k1: return {x, 1};
    case KlType::k2: return {x * x / 2, x};
    case KlType::k3: return {k3(x), 1 - std::exp(-x)};
    case KlType::low_var_kl: break;
  }
  const double bounded = std::clamp(x, -log_ratio_bound, log_ratio_bound);
  const double value = k3(bounded);
  const bool free = bounded == x && value <= low_var_bound;
  return {std::clamp(value, -low_var_bound, low_var_bound), free ? 1 - std::exp(-x) : 0.0};
}

}  // namespace

KlType parse_kl_type(const std::string& name) {
  if (name == "k1") return KlType::k1;
  if (name == "k2") return KlType::k2;
  if (name == "k3") return KlType::k3;
  if (name == "low_var_kl") return KlType::low_var_kl;
  fail(Exit::usage, "--kl-loss-type {}: one of k1, k2, k3, low_var_kl wanted", name);
}

double k3(double x) { return std::exp(-x) - 1 + x; }

TokenLoss token_loss(const TokenInputs& token, const PolicyLossOptions& options) {
  TokenLoss loss;
  double log_ratio = token.old_log_prob ? token.log_prob - *token.old_log_prob : 0;
  const bool finite = std::isfinite(log_ratio);
  if (!finite) log_ratio = 0;
  const bool inside = finite && std::abs(log_ratio) <= log_ratio_bound;
  loss.ratio = std::exp(std::clamp(log_ratio, -log_ratio_bound, log_ratio_bound));
  const double a = token.advantage;
  const double plain = -loss.ratio * a;
  const double clipped = -std::clamp(loss.ratio, 1 - options.eps_clip, 1 + options.eps_clip_high) * a;
  loss.clipped = clipped > plain ? 1 : 0;
  loss.policy = std::max(plain, clipped);
  bool flows = inside && clipped <= plain;
  if (options.eps_clip_c && a < 0 && loss.policy > -*options.eps_clip_c * a) {
    loss.policy = -*options.eps_clip_c * a;
    flows = false;
  }
  if (flows) loss.d_log_prob = plain;
  if (token.ref_log_prob) {
    const Value kl = kl_estimate(options.kl_type, token.log_prob - *token.ref_log_prob);
    const double importance = options.unbiased_kl ? loss.ratio : 1;
    loss.kl = importance * kl.value;
    double derivative = importance * kl.derivative;
    if (options.unbiased_kl && inside) derivative += loss.kl;
    loss.d_log_prob += options.kl_loss_coef * derivative;
  }
  return loss;
}

}  // namespace furlong
