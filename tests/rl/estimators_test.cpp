// Advantages, losses and their gradients against the reference's own functions on small uneven batches: holes in masks,
// a mask without any token, a group of one sample (tests/data/rl/make_goldens.py).
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/json.h"
#include "golden.h"
#include "rl/advantages.h"
#include "rl/mismatch.h"
#include "trainer/policy_objective.h"
#include "trainer/step_sums.h"

namespace furlong::test {
namespace {

using Rows = std::vector<std::vector<double>>;

std::vector<float> narrow(const Json& numbers) {
  std::vector<float> out;
  for (const Json& x : numbers) out.push_back(static_cast<float>(x.get<double>()));
  return out;
}

void expect_near(const Rows& got, const Json& want, const std::vector<Trajectory>& trajectories, const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t s = 0; s < got.size(); s++) {
    ASSERT_EQ(got[s].size(), want[s].size());
    for (size_t i = 0; i < got[s].size(); i++) {
      if (trajectories[s].loss_mask[i] == 0) continue;
      const double w = want[s][i];
      EXPECT_NEAR(got[s][i], w, 1e-9 * (1 + std::abs(w))) << what << " " << s << " " << i;
    }
  }
}

// A prompt of three tokens before every response.
Trajectory trajectory(const Json& mask) {
  Trajectory t;
  t.response_length = static_cast<int32_t>(mask.size());
  t.tokens.assign(mask.size() + 3, 1);
  for (const Json& m : mask) t.loss_mask.push_back(m.get<int>() != 0);
  return t;
}

TEST(Advantages, AreTheReferences) {
  const Json golden = read_json_file(data_path("rl/advantages.json"));
  size_t cases = 0;
  for (const Json& c : golden["cases"]) {
    const Json& o = c["options"];
    const SCOPED_TRACE(o.dump());
    std::vector<Trajectory> trajectories;
    for (size_t i = 0; i < golden["masks"].size(); i++) {
      Trajectory t = trajectory(golden["masks"][i]);
      if (c["empty"].get<bool>() && golden["empty_sample"] == i) t.loss_mask.assign(t.loss_mask.size(), 0);
      t.group_index = golden["groups"][i];
      t.reward = golden["rewards"][i].get<double>();
      trajectories.push_back(std::move(t));
    }
    const AdvantageOptions options{.estimator = parse_estimator(o["advantage_estimator"]),
                                   .normalise = o["rewards_normalization"],
                                   .divide_by_std = o["grpo_std_normalization"],
                                   .whiten = o["normalize_advantages"],
                                   .kl_coef = o["kl_coef"],
                                   .gamma = o["gamma"],
                                   .lambda = o["lambd"]};
    Rows kl, values;
    for (size_t s = 0; s < trajectories.size(); s++) {
      kl.emplace_back();
      for (size_t i = 0; i < trajectories[s].loss_mask.size(); i++) {
        const double x = golden["log_probs"][s][i].get<double>() - golden["ref_log_probs"][s][i].get<double>();
        kl.back().push_back(options.kl_coef != 0 ? kl_estimate(parse_kl_type(o["kl_loss_type"]), x) : 0);
      }
      values.push_back(golden["values"][s].get<std::vector<double>>());
    }
    const bool critic = options.estimator == Estimator::ppo;
    const TokenAdvantages found = token_advantages(trajectories, options, kl, critic ? values : Rows());
    expect_near(found.advantages, c["advantages"], trajectories, "advantage");
    expect_near(found.returns, c["returns"], trajectories, "return");
    cases++;
  }
  EXPECT_EQ(cases, 14u);
}

TEST(Advantages, AnUnscoredSampleHasNone) {
  std::vector<Trajectory> trajectories;
  for (int i = 0; i < 3; i++) {
    trajectories.push_back(trajectory({1, 1, 1}));
    trajectories.back().reward = i;
  }
  const Rows values(3, {0.5, 0.25, 0.75});
  AdvantageOptions options{.estimator = Estimator::ppo, .whiten = true};
  const TokenAdvantages two = token_advantages(std::span(trajectories).first(2), options, {}, {values[0], values[1]});
  trajectories[2].reward.reset();
  const TokenAdvantages three = token_advantages(trajectories, options, {}, values);
  for (size_t s = 0; s < 2; s++) EXPECT_EQ(three.advantages[s], two.advantages[s]);
  EXPECT_EQ(three.advantages[2], std::vector<double>(3, 0.0));
  EXPECT_EQ(three.returns[2], values[2]);
}

TEST(Estimators, HaveTheirNames) {
  try {
    parse_estimator("rloo");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    EXPECT_NE(std::string(e.what()).find("reinforce_plus_plus_baseline"), std::string::npos);
  }
}

bool corrected(const Json& o) { return o["function"] == "compute_mis_weights_with_cp"; }

MismatchOptions correction_options(const Json& o) {
  const auto bound = [&](const char* name, double otherwise) {
    return o[name].is_null() ? otherwise : o[name].get<double>();
  };
  MismatchOptions m{.level = parse_ratio_level(o["tis_level"]),
                    .mode = parse_weight_mode(o["tis_mode"]),
                    .high = o["tis_upper_bound"],
                    .normalise = o["tis_batch_normalize"],
                    .rejects = o["use_rs"],
                    .reject_level = parse_ratio_level(o["rs_level"]),
                    .per_token = o["calculate_per_token_loss"]};
  m.low = bound("tis_lower_bound", 1 / m.high);
  m.reject_low = bound("rs_lower_bound", m.low);
  m.reject_high = bound("rs_upper_bound", m.high);
  if (!o["rs_veto_threshold"].is_null()) m.veto = o["rs_veto_threshold"].get<double>();
  return m;
}

PolicyLossOptions loss_options(const Json& o) {
  PolicyLossOptions options{.eps_clip = o["eps_clip"],
                            .eps_clip_high = o["eps_clip_high"],
                            .kl_loss_coef = o["use_kl_loss"].get<bool>() ? o["kl_loss_coef"].get<double>() : 0,
                            .kl_type = parse_kl_type(o["kl_loss_type"]),
                            .unbiased_kl = o["use_unbiased_kl"],
                            .entropy_coef = o["entropy_coef"],
                            .sequence_ratio = o["advantage_estimator"] == "gspo",
                            .importance_low = o["tis_clip_low"],
                            .importance_high = o["tis_clip"],
                            .divisor = o["divisor"],
                            .corrected = corrected(o) && o["use_tis"].get<bool>()};
  if (!o["eps_clip_c"].is_null()) options.eps_clip_c = o["eps_clip_c"].get<double>();
  if (o["use_tis"].get<bool>() && !corrected(o))
    options.importance = o["function"] == "icepop_function" ? Importance::icepop : Importance::clip;
  if (o["use_opsm"].get<bool>()) options.opsm_delta = o["opsm_delta"].get<double>();
  return options;
}

struct Samples {
  std::vector<Trajectory> trajectories;
  std::vector<const Trajectory*> pointers;
  std::vector<TokenTargets> targets;
  explicit Samples(const Json& golden, const Json& options) {
    for (size_t i = 0; i < golden["masks"].size(); i++) {
      Trajectory t = trajectory(golden["masks"][i]);
      if (!options.is_null()) {
        t.rollout_log_probs = narrow(golden["rollout_log_probs"][i]);
        const char* advantages = options["uneven"].get<bool>() ? "uneven_advantages" : "advantages";
        targets.push_back({.advantages = golden[advantages][i].get<std::vector<double>>()});
        if (!options["on_policy"].get<bool>()) targets.back().old_log_probs = narrow(golden["old_log_probs"][i]);
        if (options["use_kl_loss"].get<bool>()) targets.back().ref_log_probs = narrow(golden["ref_log_probs"][i]);
      }
      trajectories.push_back(std::move(t));
    }
    for (const auto& t : trajectories) pointers.push_back(&t);
  }
  std::vector<Pack> packs(bool per_token) const {
    return pack_step(pointers, {.micro_batch_size = 4}, per_token, false);
  }
  Rows zeros() const {
    Rows out;
    for (const auto& t : trajectories) out.emplace_back(t.loss_mask.size(), 0.0);
    return out;
  }
};

// The corrections of the case go to the targets, its figures to `metrics`.
void add_corrections(Samples& samples, const Json& o, Metrics& metrics) {
  std::vector<SampledLogProbs> sampled;
  for (size_t i = 0; i < samples.targets.size(); i++) {
    const Trajectory& t = samples.trajectories[i];
    sampled.push_back({*samples.targets[i].old_log_probs, t.rollout_log_probs, t.loss_mask});
  }
  Figures figures = mismatch_figures(sampled, o["calculate_per_token_loss"]);
  if (o["use_tis"].get<bool>()) {
    auto corrections = mismatch_corrections(sampled, correction_options(o), figures);
    for (size_t i = 0; i < samples.targets.size(); i++) {
      samples.targets[i].weights = std::move(corrections[i].weights);
      samples.targets[i].kept = std::move(corrections[i].kept);
    }
  }
  for (const auto& [name, value] : figures) metrics.emplace_back("train/" + name, value);
}

double at(const Json& numbers, const LossRow& row) {
  return numbers[static_cast<size_t>(row.sample)][static_cast<size_t>(row.offset)];
}

double& at(Rows& numbers, const LossRow& row) {
  return numbers[static_cast<size_t>(row.sample)][static_cast<size_t>(row.offset)];
}

TEST(PolicyObjective, IsTheReferences) {
  const Json golden = read_json_file(data_path("rl/losses.json"));
  std::map<std::string, size_t> seen;
  for (const Json& c : golden["cases"]) {
    const Json& o = c["options"];
    const SCOPED_TRACE(o.dump());
    const PolicyLossOptions options = loss_options(o);
    Samples samples(golden, o);
    Metrics corrections;
    if (corrected(o)) add_corrections(samples, o, corrections);
    const bool per_token = o["calculate_per_token_loss"];
    StepSums sums;
    Rows d_log_prob = samples.zeros(), d_entropy = samples.zeros();
    for (const Pack& pack : samples.packs(per_token)) {
      PolicyObjective objective(options, samples.pointers, samples.targets, pack.rows);
      std::vector<double> log_probs;
      for (const LossRow& row : pack.rows) log_probs.push_back(at(golden["log_probs"], row));
      if (objective.needs_log_probs()) objective.set_log_probs(log_probs);
      StepSums mine;  // as if another rank had this pack
      for (size_t i = 0; i < pack.rows.size(); i++) {
        const LossRow& row = pack.rows[i];
        const TokenInputs in = objective.inputs(i, log_probs[i]);
        const TokenLoss loss = token_loss(in, options);
        mine.add_policy(static_cast<size_t>(row.sample), row.weight, in, loss, at(golden["entropy"], row));
        at(d_log_prob, row) = objective.derivative(i, loss);
        at(d_entropy, row) = objective.entropy_derivative(i, in);
      }
      sums.add(StepSums::of_message(mine.message()));
    }
    expect_near(d_log_prob, c["d_log_prob"], samples.trajectories, "d_log_prob");
    expect_near(d_entropy, c["d_entropy"], samples.trajectories, "d_entropy");
    Metrics metrics = {
        {"train/loss", sums.policy + options.kl_loss_coef * sums.kl - options.entropy_coef * sums.entropy}};
    sums.policy_metrics(metrics, options, options.entropy_coef != 0, std::ssize(samples.pointers), per_token);
    metrics.insert(metrics.end(), corrections.begin(), corrections.end());
    for (const auto& [name, value] : metrics) {
      const std::string key = name.substr(name.find('/') + 1);
      // The reference counts tokens that the mask leaves out among those that it drops.
      if (key == "opsm_clipfrac") continue;
      ASSERT_TRUE(c["metrics"].contains(key)) << key;
      const double want = c["metrics"][key];
      EXPECT_NEAR(value, want, 1e-9 * (1 + std::abs(want))) << key;
      seen[key]++;
    }
    if (options.opsm_delta && !o["on_policy"].get<bool>()) {
      EXPECT_GT(sums.dropped, 0);
      EXPECT_LT(sums.dropped, 1);
    }
  }
  for (const char* key : {"loss", "pg_loss", "pg_clipfrac", "ppo_kl", "ess_ratio", "kl_loss", "entropy_loss", "ois",
                          "tis", "tis_abs", "tis_clipfrac"}) {
    EXPECT_GT(seen[key], 1u) << key;
  }
  // Every figure of the reference's corrections is there, and each kind of them moves something.
  for (const Json& c : golden["cases"]) {
    for (const auto& [key, value] : c["metrics"].items()) {
      if (key.starts_with("mis_")) {
        EXPECT_GT(seen[key], 0u) << key;
      }
    }
  }
  for (const char* key : {"mis_tis_truncate_fraction", "mis_tis_clip_fraction_low", "mis_tis_mask_fraction_high",
                          "mis_rs_mask_fraction_low", "mis_rs_catastrophic_seq_fraction"}) {
    bool moves = false;
    for (const Json& c : golden["cases"]) moves |= c["metrics"].value(key, 0.0) > 0;
    EXPECT_TRUE(moves) << key;
  }
}

TEST(ValueLoss, IsTheReferences) {
  const Json golden = read_json_file(data_path("rl/losses.json"));
  for (const Json& c : golden["value_cases"]) {
    const Samples samples(golden, {});
    Rows d_value = samples.zeros();
    double sum = 0, clipped = 0;
    for (const Pack& pack : samples.packs(c["calculate_per_token_loss"])) {
      for (const LossRow& row : pack.rows) {
        const ValueLoss loss = value_loss(at(golden["log_probs"], row), at(golden["old_log_probs"], row),
                                          at(golden["ref_log_probs"], row), c["value_clip"]);
        sum += row.weight * loss.loss;
        clipped += row.weight * loss.clipped;
        at(d_value, row) = row.weight * loss.d_value;
      }
    }
    EXPECT_NEAR(sum, c["metrics"]["value_loss"], 1e-9);
    EXPECT_NEAR(clipped, c["metrics"]["value_clipfrac"], 1e-9);
    EXPECT_GT(clipped, 0);
    expect_near(d_value, c["d_value"], samples.trajectories, "d_value");
  }
}

}  // namespace
}  // namespace furlong::test
