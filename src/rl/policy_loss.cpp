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

// Before the bound of low_var_kl's result.
Value plain_kl(KlType type, double x) {
  switch (type) {
    case KlType::k1: return {x, 1};
    case KlType::k2: return {x * x / 2, x};
    case KlType::k3: return {k3(x), 1 - std::exp(-x)};
    case KlType::low_var_kl: break;
  }
  const double bounded = std::clamp(x, -log_ratio_bound, log_ratio_bound);
  return {k3(bounded), bounded == x ? 1 - std::exp(-x) : 0.0};
}

Value kl_loss(const TokenInputs& token, const PolicyLossOptions& options) {
  Value kl = plain_kl(options.kl_type, token.log_prob - *token.ref_log_prob);
  if (options.unbiased_kl) {
    const double importance = token.old_log_prob ? std::exp(token.log_prob - *token.old_log_prob) : 1.0;
    kl = {importance * kl.value, importance * (kl.derivative + kl.value)};
  }
  if (options.kl_type == KlType::low_var_kl && std::abs(kl.value) > low_var_bound) {
    kl = {std::copysign(low_var_bound, kl.value), 0};
  }
  return std::isfinite(kl.value) ? kl : Value();
}

double importance_weight(double w, const PolicyLossOptions& options) {
  const double bounded = std::clamp(w, options.importance_low, options.importance_high);
  return options.importance == Importance::icepop && bounded != w ? 0.0 : bounded;
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

double kl_estimate(KlType type, double x) {
  const double kl = plain_kl(type, x).value;
  return type == KlType::low_var_kl ? std::clamp(kl, -low_var_bound, low_var_bound) : kl;
}

TokenLoss token_loss(const TokenInputs& token, const PolicyLossOptions& options) {
  TokenLoss loss;
  double own = token.old_log_prob ? token.log_prob - *token.old_log_prob : 0;
  if (!std::isfinite(own)) own = 0;
  const double log_ratio = token.sequence_log_ratio.value_or(own);
  const bool far = std::abs(log_ratio) > log_ratio_bound;
  const bool lost = token.old_log_prob && !std::isfinite(token.log_prob - *token.old_log_prob);
  const bool inside = !far && (!lost || token.sequence_log_ratio);
  loss.log_ratio = log_ratio;
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
  if (flows) loss.d_log_ratio = plain;
  double weight = token.dropped || token.rejected ? 0 : token.scale;
  if (token.rejected) loss.clipped = 0;
  if (options.importance != Importance::none && token.sampled_log_prob) {
    loss.importance = std::exp(token.old_log_prob.value_or(token.log_prob) - *token.sampled_log_prob);
    const double bounded = importance_weight(loss.importance, options);
    loss.importance_clipped = bounded != loss.importance ? 1 : 0;
    weight *= bounded;
  }
  loss.policy *= weight;
  loss.d_log_ratio *= weight;
  loss.d_log_prob = loss.d_log_ratio;
  if (token.ref_log_prob && !token.rejected) {
    const Value kl = kl_loss(token, options);
    loss.kl = kl.value;
    loss.d_kl = kl.derivative;
    loss.d_log_prob += options.kl_loss_coef * kl.derivative;
  }
  return loss;
}

ValueLoss value_loss(double value, double old_value, double returned, double clip) {
  const double moved = value - old_value, kept = old_value + std::clamp(moved, -clip, clip);
  const double plain = (value - returned) * (value - returned), bounded = (kept - returned) * (kept - returned);
  ValueLoss out{.loss = std::max(plain, bounded), .clipped = std::abs(moved) > clip ? 1.0 : 0.0};
  if (plain >= bounded || out.clipped == 0) out.d_value = 2 * (value - returned);
  return out;
}

}  // namespace furlong
