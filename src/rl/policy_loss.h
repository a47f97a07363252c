// The loss of one token and its derivatives (rl-spec 4). Plain double arithmetic on log-probabilities.
#pragma once
#include <optional>
#include <string>

namespace furlong {

enum class KlType { k1, k2, k3, low_var_kl };
KlType parse_kl_type(const std::string& name);  // Exit::usage for another name

struct PolicyLossOptions {
  double eps_clip = 0.2;
  double eps_clip_high = 0.2;
  std::optional<double> eps_clip_c;  // dual clip, above 1
  double kl_loss_coef = 0;
  KlType kl_type = KlType::k1;
  bool unbiased_kl = false;
  double entropy_coef = 0;
};

struct TokenInputs {
  double log_prob = 0;                 // of the current policy
  std::optional<double> old_log_prob;  // none: the detached current one (ratio exactly 1)
  std::optional<double> ref_log_prob;
  double advantage = 0;
};

struct TokenLoss {
  double policy = 0;   // clipped surrogate
  double clipped = 0;  // 1 when the clipped term decided
  double kl = 0;       // to the reference; 0 without one
  double ratio = 1;
  double d_log_prob = 0;  // of policy + kl_loss_coef · kl
};

TokenLoss token_loss(const TokenInputs& token, const PolicyLossOptions& options);

// k3 = e^{-x} - 1 + x of x = log p - log q, the estimate of KL(p‖q) from samples of p.
double k3(double x);

}  // namespace furlong
