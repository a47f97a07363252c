#include "rl/mismatch.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/check.h"
#include "base/error.h"

namespace furlong {
namespace {

constexpr double mismatch_bound = 20;  // of a log-ratio, before it is an exponent
constexpr double least_mean = 1e-8;    // of the weights, to divide by

double bounded_exp(double log_ratio) { return std::exp(std::clamp(log_ratio, -mismatch_bound, mismatch_bound)); }

// One sample's log-ratios, and what its tokens share.
struct SampleRatios {
  explicit SampleRatios(const SampledLogProbs& s) : sample(s) {
    CHECK(s.trainer.size() == s.mask.size() && s.sampler.size() == s.mask.size(), "{} and {} log-probs of {} tokens",
          s.trainer.size(), s.sampler.size(), s.mask.size());
    for (size_t i = 0; i < s.mask.size(); i++) {
      log_ratios.push_back(static_cast<double>(s.trainer[i]) - static_cast<double>(s.sampler[i]));
      if (s.mask[i] == 0) continue;
      tokens++;
      sum += log_ratios.back();
    }
  }
  double at(RatioLevel level, size_t i) const {
    if (level == RatioLevel::token) return log_ratios[i];
    return level == RatioLevel::sequence ? sum : sum / std::max(tokens, 1.0);
  }
  double mean(const std::function<double(size_t)>& value) const {
    double of = 0;
    for (size_t i = 0; i < sample.mask.size(); i++) of += sample.mask[i] != 0 ? value(i) : 0;
    return of / std::max(tokens, 1.0);
  }

  const SampledLogProbs& sample;
  std::vector<double> log_ratios;
  double tokens = 0, sum = 0;
};

std::vector<SampleRatios> ratios_of(std::span<const SampledLogProbs> samples) {
  std::vector<SampleRatios> ratios;
  for (const SampledLogProbs& s : samples) ratios.emplace_back(s);
  return ratios;
}

// The means of a figure over the step.
class StepMeans {
 public:
  StepMeans(const std::vector<SampleRatios>& samples, bool per_token, Figures& out)
      : samples_(samples), per_token_(per_token), out_(out) {}

  // value(sample's number, token's)
  void add(const std::string& name, const std::function<double(size_t, size_t)>& value) {
    double sum = 0, count = 0;
    for (size_t s = 0; s < samples_.size(); s++) {
      const double weight = per_token_ ? std::max(samples_[s].tokens, 1.0) : 1;
      sum += weight * samples_[s].mean([&](size_t i) { return value(s, i); });
      count += weight;
    }
    out_.emplace_back("mis_" + name, sum / std::max(count, 1.0));
  }
  // The same for all tokens of a sample.
  void add_shared(const std::string& name, const std::vector<double>& values) {
    add(name, [&](size_t s, size_t) { return values[s]; });
  }

 private:
  const std::vector<SampleRatios>& samples_;
  bool per_token_;
  Figures& out_;
};

// Of a step's tokens, or of its samples' means; 1 where there is nothing to divide by.
double mean_weight(const std::vector<SampleRatios>& samples, const std::vector<Correction>& corrections,
                   RatioLevel level) {
  double sum = 0, count = 0;
  for (size_t s = 0; s < samples.size(); s++) {
    const double mean = samples[s].mean([&](size_t i) { return corrections[s].weights[i]; });
    const double weight = level == RatioLevel::token ? samples[s].tokens : 1;
    sum += weight * mean;
    count += weight;
  }
  const double mean = sum / std::max(count, 1.0);
  return mean > least_mean ? mean : 1;
}

double bounded(double weight, const MismatchOptions& o) {
  switch (o.mode) {
    case WeightMode::truncate: return std::min(weight, o.high);
    case WeightMode::clip: return std::clamp(weight, o.low, o.high);
    case WeightMode::mask: break;
  }
  return weight;
}

const char* mode_name(WeightMode mode) {
  return mode == WeightMode::truncate ? "truncate" : mode == WeightMode::clip ? "clip" : "mask";
}

}  // namespace

RatioLevel parse_ratio_level(const std::string& name) {
  if (name == "token") return RatioLevel::token;
  if (name == "sequence") return RatioLevel::sequence;
  if (name == "geometric") return RatioLevel::geometric;
  fail(Exit::usage, "level {} of importance weights: token, sequence or geometric wanted", name);
}

WeightMode parse_weight_mode(const std::string& name) {
  if (name == "truncate") return WeightMode::truncate;
  if (name == "clip") return WeightMode::clip;
  if (name == "mask") return WeightMode::mask;
  fail(Exit::usage, "mode {} of importance weights: truncate, clip or mask wanted", name);
}

Figures mismatch_figures(std::span<const SampledLogProbs> samples, bool per_token) {
  Figures figures;
  const auto ratios = ratios_of(samples);
  StepMeans means(ratios, per_token, figures);
  std::vector<double> trainer, sampler, difference, chi2_token, chi2_sequence;
  for (const SampleRatios& r : ratios) {
    trainer.push_back(-r.mean([&](size_t i) { return static_cast<double>(r.sample.trainer[i]); }));
    sampler.push_back(-r.mean([&](size_t i) { return static_cast<double>(r.sample.sampler[i]); }));
    difference.push_back(trainer.back() - sampler.back());
    chi2_token.push_back(r.mean([&](size_t i) { return std::pow(bounded_exp(r.log_ratios[i]), 2); }) - 1);
    chi2_sequence.push_back(std::pow(bounded_exp(r.sum), 2) - 1);
  }
  const auto exponentials = [](std::vector<double> values) {
    for (double& x : values) x = std::exp(x);
    return values;
  };
  means.add_shared("training_log_ppl", trainer);
  means.add_shared("training_ppl", exponentials(trainer));
  means.add_shared("rollout_log_ppl", sampler);
  means.add_shared("rollout_ppl", exponentials(sampler));
  means.add("kl", [&](size_t s, size_t i) { return -ratios[s].log_ratios[i]; });
  means.add("k3_kl", [&](size_t s, size_t i) {
    const double x = ratios[s].log_ratios[i];
    return std::exp(x) - x - 1;
  });
  means.add_shared("log_ppl_diff", difference);
  means.add("log_ppl_abs_diff", [&](size_t s, size_t) { return std::abs(difference[s]); });
  means.add_shared("ppl_ratio", exponentials(difference));
  means.add_shared("chi2_token", chi2_token);
  means.add_shared("chi2_seq", chi2_sequence);
  return figures;
}

std::vector<Correction> mismatch_corrections(std::span<const SampledLogProbs> samples, const MismatchOptions& o,
                                             Figures& figures) {
  const auto ratios = ratios_of(samples);
  StepMeans means(ratios, o.per_token, figures);
  const auto raw = [&](size_t s, size_t i) { return bounded_exp(ratios[s].at(o.level, i)); };
  const auto judged = [&](size_t s, size_t i) { return bounded_exp(ratios[s].at(o.reject_level, i)); };
  const auto lost = [&](size_t s, size_t i) { return o.veto && ratios[s].log_ratios[i] < std::log(*o.veto); };
  std::vector<double> vetoed(samples.size(), 0);
  std::vector<Correction> out(samples.size());
  for (size_t s = 0; s < samples.size(); s++) {
    for (size_t i = 0; i < samples[s].mask.size(); i++) {
      if (o.rejects && samples[s].mask[i] != 0 && lost(s, i)) vetoed[s] = 1;
    }
    for (size_t i = 0; i < samples[s].mask.size(); i++) {
      const bool trained = samples[s].mask[i] != 0;
      const double weight = raw(s, i), judge = judged(s, i);
      const bool inside = o.mode != WeightMode::mask || (o.low <= weight && weight <= o.high);
      const bool passes = !o.rejects || (o.reject_low <= judge && judge <= o.reject_high && vetoed[s] == 0);
      out[s].weights.push_back(trained ? bounded(weight, o) : 0);
      out[s].kept.push_back(trained && inside && passes ? 1 : 0);
    }
  }
  const auto weights = [&](size_t s, size_t i) { return out[s].weights[i]; };
  means.add("tis_weight_before_bound", raw);
  const std::string mode = std::string("tis_") + mode_name(o.mode) + "_fraction";
  if (o.mode != WeightMode::truncate) means.add(mode + "_low", [&](size_t s, size_t i) { return raw(s, i) < o.low; });
  means.add(o.mode == WeightMode::truncate ? mode : mode + "_high",
            [&](size_t s, size_t i) { return raw(s, i) > o.high; });
  means.add("tis_weight_after_bound", weights);
  if (o.rejects) {
    means.add("rs_mask_fraction_low", [&](size_t s, size_t i) { return judged(s, i) < o.reject_low; });
    means.add("rs_mask_fraction_high", [&](size_t s, size_t i) { return judged(s, i) > o.reject_high; });
    if (o.veto) {
      means.add("rs_catastrophic_token_fraction", lost);
      means.add_shared("rs_catastrophic_seq_fraction", vetoed);
    }
  }
  means.add("is_ratio_mean_after_tis_rs", weights);
  if (o.normalise) {
    const double mean = mean_weight(ratios, out, o.level);
    for (auto& correction : out) {
      for (double& w : correction.weights) w /= mean;
    }
    means.add("batch_norm_factor", [&](size_t, size_t) { return mean; });
  }
  std::vector<double> least, most;
  for (size_t s = 0; s < samples.size(); s++) {
    std::vector<double> trained;
    for (size_t i = 0; i < samples[s].mask.size(); i++) {
      if (samples[s].mask[i] != 0) trained.push_back(out[s].weights[i]);
    }
    least.push_back(trained.empty() ? 0 : *std::min_element(trained.begin(), trained.end()));
    most.push_back(trained.empty() ? 0 : *std::max_element(trained.begin(), trained.end()));
  }
  means.add("is_ratio_mean_final", weights);
  means.add_shared("is_ratio_min_final", least);
  means.add_shared("is_ratio_max_final", most);
  return out;
}

}  // namespace furlong
