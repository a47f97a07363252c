// Whole runs under every estimator and correction: they learn, report what is theirs, and resume to the same bits.
#include "trainer/fixture.h"

namespace furlong {
namespace {

struct EstimatorCase {
  std::string name;
  void (*set)(Settings&);
  std::vector<std::string> metrics;  // that it reports beside all others'
};

std::vector<EstimatorCase> estimator_cases() {
  return {
      {"gspo",
       [](Settings& s) {
         s.advantage_estimator = "gspo";
         s.global_batch_size = 8;
         s.eps_clip = 3e-4;
         s.eps_clip_high = 4e-4;
       },
       {}},
      {"gspo_on_policy", [](Settings& s) { s.advantage_estimator = "gspo"; }, {}},
      {"reinforce_plus_plus",
       [](Settings& s) {
         s.advantage_estimator = "reinforce_plus_plus";
         s.normalize_advantages = true;
         s.kl_coef = 0.1;
         s.gamma = 0.99;
         s.n_samples_per_prompt = 1;
         s.rollout_batch_size = 16;
       },
       {"rollout/kl"}},
      {"reinforce_plus_plus_baseline",
       [](Settings& s) {
         s.advantage_estimator = "reinforce_plus_plus_baseline";
         s.normalize_advantages = true;
         s.kl_coef = 0.1;
         s.kl_loss_type = "k2";
       },
       {"rollout/kl"}},
      {"ppo",
       [](Settings& s) {
         s.advantage_estimator = "ppo";
         s.normalize_advantages = true;
         s.lambd = 0.95;
         s.gamma = 0.99;
         s.critic_lr = 5e-3;
         s.global_batch_size = 8;
       },
       {"train/critic-value_loss", "train/critic-value_clipfrac", "train/critic-grad_norm", "rollout/values",
        "rollout/returns"}},
      {"ppo_bf16",
       [](Settings& s) {
         s.advantage_estimator = "ppo";
         s.dtype = "bf16";
         s.recompute_granularity = "full";
         s.critic_lr_warmup_iters = 1;
       },
       {"train/critic-value_loss"}},
      {"dr_grpo_dual_clip",
       [](Settings& s) {
         s.disable_grpo_std_normalization = true;
         s.calculate_per_token_loss = true;
         s.eps_clip_c = 3;
         s.global_batch_size = 8;
       },
       {}},
      {"truncated_importance",
       [](Settings& s) {
         s.use_tis = true;
         s.tis_clip = 1.5;
       },
       {"train/tis", "train/tis_abs", "train/tis_clipfrac", "train/ois"}},
      {"icepop_and_opsm",
       [](Settings& s) {
         s.use_tis = true;
         s.tis_clip = 1.5;
         s.tis_clip_low = 0.5;
         s.custom_tis_function_path = "miles.backends.training_utils.loss_hub.corrections.icepop_function";
         s.use_opsm = true;
         s.global_batch_size = 8;
       },
       {"train/tis", "train/opsm_clipfrac"}},
      {"dr_grpo",
       [](Settings& s) {
         s.disable_grpo_std_normalization = true;
         s.custom_pg_loss_reducer_function_path = "examples.experimental.DrGRPO.custom_reducer:get_pg_loss_reducer";
         s.pg_loss_divisor = 14;
       },
       {}},
      {"masked_importance",
       [](Settings& s) {
         s.use_tis = s.use_rs = s.tis_batch_normalize = true;
         s.custom_tis_function_path = "examples.infra_features.mis.compute_mis_weights_with_cp";
         s.tis_mode = "mask";
         s.tis_upper_bound = 1.5;
         s.rs_level = "geometric";
         s.rs_veto_threshold = 1e-4;
         s.global_batch_size = 8;
       },
       {"train/ois", "train/mis_k3_kl", "train/mis_tis_mask_fraction_high", "train/mis_rs_mask_fraction_low",
        "train/mis_batch_norm_factor"}},
      {"mismatch_alone",
       [](Settings& s) { s.get_mismatch_metrics = s.use_rollout_logprobs = true; },
       {"train/mis_training_ppl", "train/mis_rollout_ppl", "train/mis_chi2_seq"}},
      {"moving_reference",
       [](Settings& s) {
         s.use_kl_loss = s.use_unbiased_kl = true;
         s.kl_loss_coef = 0.1;
         s.kl_loss_type = "k3";
         s.ref_update_interval = 1;
       },
       {"train/kl_loss"}},
  };
}

class Estimators : public ::testing::TestWithParam<EstimatorCase> {};

TEST_P(Estimators, LearnAndResume) {
  const Folder folder;
  Settings straight = small_run(folder / "straight", 2);
  GetParam().set(straight);
  run(straight);
  const auto rows = metrics_of(folder / "straight");
  ASSERT_EQ(rows.size(), 2u);
  for (size_t i = 0; i < 2; i++) {
    EXPECT_GT(figure(rows, i, "train/grad_norm"), 0);
    EXPECT_TRUE(std::isfinite(figure(rows, i, "train/loss")));
    for (const auto& name : GetParam().metrics) EXPECT_TRUE(std::isfinite(figure(rows, i, name))) << name;
  }
  EXPECT_FALSE(same_files(playground().model, folder / "straight/hf"));
  Settings stopped = straight;
  stopped.run_dir = folder / "stopped";
  stopped.num_rollout = 1;
  run(stopped);
  stopped.num_rollout = 2;
  run(stopped);
  EXPECT_TRUE(same_files(folder / "straight/hf", folder / "stopped/hf"));
  EXPECT_EQ(rows, metrics_of(folder / "stopped"));
}

INSTANTIATE_TEST_SUITE_P(All, Estimators, ::testing::ValuesIn(estimator_cases()),
                         [](const auto& info) { return info.param.name; });

// On policy all estimators of one ratio per token are the same step, and so is GSPO's mean over tokens.
TEST(EstimatorsOnPolicy, GspoIsGrpo) {
  const Folder folder;
  Settings grpo = small_run(folder / "grpo", 1), gspo = small_run(folder / "gspo", 1);
  gspo.advantage_estimator = "gspo";
  run(grpo);
  run(gspo);
  const auto a = metrics_of(folder / "grpo"), b = metrics_of(folder / "gspo");
  EXPECT_NEAR(figure(b, 0, "train/grad_norm") / figure(a, 0, "train/grad_norm"), 1, 1e-5);
  EXPECT_EQ(figure(b, 0, "train/pg_loss"), figure(a, 0, "train/pg_loss"));
}

// The sampler is the trainer here, so that nothing is bounded or rejected: the same step as without corrections.
TEST(EstimatorsOnPolicy, CorrectionsLeaveAnExactSamplerAlone) {
  const Folder folder;
  Settings plain = small_run(folder / "plain", 1), corrected = small_run(folder / "corrected", 1);
  corrected.use_tis = corrected.use_rs = true;
  corrected.custom_tis_function_path = "compute_mis_weights";
  corrected.tis_level = corrected.rs_level = "sequence";
  run(plain);
  run(corrected);
  EXPECT_TRUE(same_files(folder / "plain/hf", folder / "corrected/hf"));
  const auto rows = metrics_of(folder / "corrected");
  EXPECT_EQ(figure(rows, 0, "train/mis_k3_kl"), 0);
  EXPECT_EQ(figure(rows, 0, "train/mis_is_ratio_mean_final"), 1);
}

// Responses of one length: the constant of Dr. GRPO is a factor of the gradient.
TEST(EstimatorsOnPolicy, AConstantDenominatorScalesTheGradient) {
  const Folder folder;
  Settings plain = small_run(folder / "plain", 1);
  plain.enable_mtp_training = false;
  plain.rm_type = "random";
  plain.rollout_max_response_len = 3;  // shorter than any answer
  Settings constant = plain;
  constant.run_dir = folder / "constant";
  constant.pg_loss_divisor = 12;
  run(plain);
  run(constant);
  const auto a = metrics_of(folder / "plain"), b = metrics_of(folder / "constant");
  EXPECT_NEAR(4 * figure(b, 0, "train/grad_norm") / figure(a, 0, "train/grad_norm"), 1, 1e-6);
  EXPECT_NEAR(4 * figure(b, 0, "train/pg_loss"), figure(a, 0, "train/pg_loss"), 1e-12);
}

// While the critic alone is trained the policy stays as it was, and the critic comes closer to the returns.
TEST(Ppo, TheCriticLearnsFirst) {
  const Folder folder;
  Settings s = small_run(folder / "run", 8);
  s.enable_mtp_training = false;
  s.mtp_num_layers.reset();
  s.advantage_estimator = "ppo";
  s.critic_lr = 1e-4;
  s.num_critic_only_steps = 8;
  run(s);
  const auto rows = metrics_of(folder / "run");
  ASSERT_EQ(rows.size(), 8u);
  EXPECT_TRUE(same_files(playground().model, folder / "run/hf"));
  double returned = 0;
  for (size_t i = 0; i < rows.size(); i++) {
    EXPECT_FALSE(rows[i].contains("train/grad_norm"));
    returned += figure(rows, i, "rollout/returns") / static_cast<double>(rows.size());
  }
  const double before = std::abs(figure(rows, 0, "rollout/values") - returned);
  EXPECT_LT(std::abs(figure(rows, 7, "rollout/values") - returned), 0.25 * before) << before;
  s.num_rollout = 9;
  run(s);
  EXPECT_GT(figure(metrics_of(folder / "run"), 8, "train/grad_norm"), 0);
  EXPECT_FALSE(same_files(playground().model, folder / "run/hf"));
}

// A critic of another run, and one whose trunk is given: the same values as from the policy's own weights.
TEST(Ppo, CriticLoad) {
  const Folder folder;
  Settings first = small_run(folder / "first", 1);
  first.advantage_estimator = "ppo";
  run(first);
  Settings given = first;
  given.run_dir = folder / "given";
  given.critic_load = playground().model;
  run(given);
  const auto a = metrics_of(folder / "first"), b = metrics_of(folder / "given");
  EXPECT_EQ(a, b);
  const std::string plan = read_file(folder / "first/plan.txt");
  for (const char* row : {"critic: weights", "critic: gradients", "critic: optimizer moments"})
    EXPECT_NE(plan.find(row), std::string::npos) << row;
  Settings continued = first;
  continued.run_dir = folder / "continued";
  continued.critic_load = folder / "first/checkpoints";
  run(continued);
  const auto c = metrics_of(folder / "continued");
  EXPECT_NE(figure(c, 0, "rollout/values"), figure(a, 0, "rollout/values"));
  EXPECT_LT(figure(c, 0, "train/critic-value_loss"), figure(a, 0, "train/critic-value_loss"));
  Settings plain = small_run(folder / "plain", 1);
  run(plain);
  continued.run_dir = folder / "refused";
  continued.critic_load = folder / "plain/checkpoints";
  EXPECT_NE(refusal(Exit::input, continued).find("critic"), std::string::npos);
  continued.critic_load = folder / "nowhere";
  EXPECT_NE(refusal(Exit::input, continued).find("--critic-load"), std::string::npos);
}

// The reference after an update is the policy: the divergence from it begins at 0 again.
TEST(ReferenceUpdates, BringTheDivergenceBack) {
  const Folder folder;
  Settings fixed = small_run(folder / "fixed", 2);
  fixed.use_kl_loss = true;
  fixed.kl_loss_coef = 1e-3;
  fixed.kl_loss_type = "k3";
  run(fixed);
  Settings moving = fixed;
  moving.run_dir = folder / "moving";
  moving.ref_update_interval = 1;
  run(moving);
  const auto kept = metrics_of(folder / "fixed"), moved = metrics_of(folder / "moving");
  EXPECT_EQ(figure(kept, 0, "train/loss"), figure(moved, 0, "train/loss"));
  EXPECT_GT(figure(kept, 1, "train/kl_loss"), 1e-6);
  EXPECT_NEAR(figure(moved, 1, "train/kl_loss"), 0, 1e-12);
}

}  // namespace
}  // namespace furlong
