// How far the trainer's probabilities of sampled tokens are from the sampler's, and what is done about it: bounded
// importance weights (TIS, CIS, MIS) and rejection of tokens and samples. Formulas: miles'
// train_infer_mismatch_helper, after "When Speed Kills Stability" and verl's rollout correction.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace furlong {

// Of which log-ratio a weight is the exponential: a token's own, the sum over its sample's tokens, or their mean.
enum class RatioLevel { token, sequence, geometric };
// What becomes of a weight outside its bounds: it is cut at the upper one, cut at both, or its token is left out.
enum class WeightMode { truncate, clip, mask };
// Exit::usage for another name.
RatioLevel parse_ratio_level(const std::string& name);
WeightMode parse_weight_mode(const std::string& name);

struct MismatchOptions {
  RatioLevel level = RatioLevel::token;
  WeightMode mode = WeightMode::truncate;
  double low = 0.5, high = 2;
  bool normalise = false;  // divide by the mean weight of the step: of tokens, or with `sequence` of samples
  bool rejects = false;    // tokens whose weight at reject_level is out of the bounds
  RatioLevel reject_level = RatioLevel::token;
  double reject_low = 0.5, reject_high = 2;
  std::optional<double> veto;  // with `rejects`: a sample with a token whose ratio is below this is left out whole
  bool per_token = false;      // figures are means over the step's tokens, not over samples of their means
};

// A sample's response: the log-probs of its tokens under the trainer and under the sampler, and which are trained.
struct SampledLogProbs {
  std::span<const float> trainer, sampler;
  std::span<const uint8_t> mask;
};

// Of each of a sample's tokens: what its policy loss is weighed by, and whether it has any loss at all.
struct Correction {
  std::vector<double> weights;
  std::vector<uint8_t> kept;
};

using Figures = std::vector<std::pair<std::string, double>>;

// How far the two are apart, for the samples of a step: mis_kl, mis_k3_kl, mis_training_ppl, mis_chi2_seq, ...
Figures mismatch_figures(std::span<const SampledLogProbs> samples, bool per_token);
// The corrections of a step's samples; what was bounded and rejected goes to `figures` as mis_tis_..., mis_rs_...
std::vector<Correction> mismatch_corrections(std::span<const SampledLogProbs> samples, const MismatchOptions& options,
                                             Figures& figures);

}  // namespace furlong
