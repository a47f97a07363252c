#include "trainer/step_sums.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"

namespace furlong {
namespace {

using T = TokenSums;

// Means over the policy's tokens.
constexpr double T::*weighted[] = {&T::policy,
                                   &T::clipped,
                                   &T::kl,
                                   &T::entropy,
                                   &T::ppo_kl,
                                   &T::ratio,
                                   &T::weight,
                                   &T::abs_diff,
                                   &T::rollout_kl,
                                   &T::rollout_weight,
                                   &T::importance,
                                   &T::importance_abs,
                                   &T::importance_clipped,
                                   &T::dropped};

}  // namespace

void StepSums::add(const StepSums& s) {
  for (auto member : weighted) this->*member += s.*member;
  for (auto member : {&T::mtp, &T::choices, &T::differing}) this->*member += s.*member;
  tokens += s.tokens;
  has_reference |= s.has_reference;
  ratios.resize(std::max(ratios.size(), s.ratios.size()));
  for (size_t i = 0; i < s.ratios.size(); i++) {
    ratios[i].tokens += s.ratios[i].tokens;
    ratios[i].sum += s.ratios[i].sum;
    ratios[i].squares += s.ratios[i].squares;
  }
}

void StepSums::scale(double by_policy, double by_mtp) {
  for (auto member : weighted) this->*member *= by_policy;
  mtp *= by_mtp;
}

void StepSums::add_policy(size_t sample, double token_weight, const TokenInputs& in, const TokenLoss& loss,
                          double token_entropy) {
  has_reference |= in.ref_log_prob.has_value();
  if (!in.rejected) {
    policy += token_weight * loss.policy;
    clipped += token_weight * loss.clipped;
    kl += token_weight * loss.kl;
    entropy += token_weight * token_entropy;
    ppo_kl -= token_weight * loss.log_ratio;
  }
  ratio += token_weight * std::exp(loss.log_ratio);
  if (ratios.size() <= sample) ratios.resize(sample + 1);
  ratios[sample].tokens++;
  ratios[sample].sum += loss.ratio;
  ratios[sample].squares += loss.ratio * loss.ratio;
  importance += token_weight * loss.importance;
  importance_abs += token_weight * std::abs(loss.importance - 1);
  importance_clipped += token_weight * loss.importance_clipped;
  dropped += in.dropped ? token_weight : 0;
}

std::string StepSums::message() const {
  const TokenSums& sums = *this;
  std::string bytes(reinterpret_cast<const char*>(&sums), sizeof sums);
  bytes.append(reinterpret_cast<const char*>(ratios.data()), ratios.size() * sizeof(Ratios));
  return bytes;
}

StepSums StepSums::of_message(const std::string& message) {
  StepSums sums;
  TokenSums& all = sums;
  CHECK(message.size() >= sizeof all, "{} bytes of another's sums", message.size());
  std::memcpy(&all, message.data(), sizeof all);
  sums.ratios.resize((message.size() - sizeof all) / sizeof(Ratios));
  if (!sums.ratios.empty())
    std::memcpy(sums.ratios.data(), message.data() + sizeof all, sums.ratios.size() * sizeof(Ratios));
  return sums;
}

double StepSums::effective_samples(int64_t samples, bool per_token) const {
  double sum = 0, all = 0;
  for (size_t i = 0; i < static_cast<size_t>(samples); i++) {
    const Ratios r = i < ratios.size() ? ratios[i] : Ratios();
    const double n = std::max(1.0, r.tokens);
    sum += r.sum * r.sum / std::max(r.squares, 1e-8) / (per_token ? 1 : n);
    all += per_token ? n : 1;
  }
  return sum / all;
}

void StepSums::policy_metrics(Metrics& m, const PolicyLossOptions& loss, bool with_entropy, int64_t samples,
                              bool per_token) const {
  m.emplace_back("train/pg_loss", policy);
  m.emplace_back("train/pg_clipfrac", clipped);
  m.emplace_back("train/ppo_kl", ppo_kl);
  m.emplace_back("train/ess_ratio", effective_samples(samples, per_token));
  if (has_reference) m.emplace_back("train/kl_loss", kl);
  if (with_entropy) m.emplace_back("train/entropy_loss", entropy);
  if (loss.importance != Importance::none || loss.corrected) m.emplace_back("train/ois", ratio);
  if (loss.importance != Importance::none) {
    m.emplace_back("train/tis", importance);
    m.emplace_back("train/tis_abs", importance_abs);
    m.emplace_back("train/tis_clipfrac", importance_clipped);
  }
  if (loss.opsm_delta) m.emplace_back("train/opsm_clipfrac", dropped);
  if (choices > 0) m.emplace_back("train/replayed_routes_differ", differing / choices);
  if (rollout_weight > 0) {
    m.emplace_back("train/train_rollout_logprob_abs_diff", abs_diff / rollout_weight);
    m.emplace_back("train/train_rollout_kl", rollout_kl / rollout_weight);
  }
}

}  // namespace furlong
