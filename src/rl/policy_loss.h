// The loss of one token and its derivatives (rl-spec 4). Plain double arithmetic on log-probabilities.
#pragma once
#include <optional>
#include <string>

namespace furlong {

enum class KlType { k1, k2, k3, low_var_kl };
KlType parse_kl_type(const std::string& name);  // Exit::usage for another name

// How w = pi_trainer / pi_sampler weighs a token's policy loss: not at all, by clamp(w, low, high), or by w inside
// [low, high] and 0 outside.
enum class Importance { none, clip, icepop };

struct PolicyLossOptions {
  double eps_clip = 0.2;
  double eps_clip_high = 0.2;
  std::optional<double> eps_clip_c;  // dual clip, above 1
  double kl_loss_coef = 0;
  KlType kl_type = KlType::k1;
  bool unbiased_kl = false;
  double entropy_coef = 0;
  bool sequence_ratio = false;  // GSPO: one ratio per sample, of the mean log-ratio of its tokens
  Importance importance = Importance::none;
  double importance_low = 0, importance_high = 2;
  std::optional<double> opsm_delta;  // off-policy sequence masking: see TokenInputs::dropped
  // Dr. GRPO: a sample's policy loss is divided by this number of tokens, not by its own; 0: by its own.
  double divisor = 0;
  bool corrected = false;  // weights and rejections come with each token (rl/mismatch.h)
};

struct TokenInputs {
  double log_prob = 0;                 // of the current policy
  std::optional<double> old_log_prob;  // none: the detached current one (ratio exactly 1)
  std::optional<double> ref_log_prob;
  double advantage = 0;
  std::optional<double> sampled_log_prob = {};    // of the sampler, for the importance weight
  std::optional<double> sequence_log_ratio = {};  // of the token's sample, in place of its own
  // Its sample has moved too far from the old policy, and the advantage is negative: no policy loss.
  bool dropped = false;
  double scale = 1;       // of the policy loss, beside the importance weight
  bool rejected = false;  // no loss of any kind
};

struct TokenLoss {
  double policy = 0;   // clipped surrogate, weighed and scaled
  double clipped = 0;  // 1 when the clipped term decided
  double kl = 0;       // to the reference; 0 without one
  double log_ratio = 0;
  double ratio = 1;               // exp(log_ratio), bounded
  double importance = 1;          // pi_trainer / pi_sampler as it is
  double importance_clipped = 0;  // 1 when it was bounded or left out
  double d_log_ratio = 0;         // of policy, by the log-ratio
  double d_kl = 0;                // of kl, by log_prob
  double d_log_prob = 0;          // of policy + kl_loss_coef · kl, where the log-ratio is the token's own
};

TokenLoss token_loss(const TokenInputs& token, const PolicyLossOptions& options);

// k3 = e^{-x} - 1 + x of x = log p - log q, the estimate of KL(p‖q) from samples of p.
double k3(double x);
// The estimate of x = log p - log q by its name; low_var_kl is k3 with x and the result bounded.
double kl_estimate(KlType type, double x);

// How far a token's value is from what was returned (PPO): the larger of (v - r)^2 and the same with v moved from its
// old value by at most `clip`.
struct ValueLoss {
  double loss = 0;
  double clipped = 0;  // 1 when v has moved further
  double d_value = 0;
};
ValueLoss value_loss(double value, double old_value, double returned, double clip);

}  // namespace furlong
