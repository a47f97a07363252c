// What the settings of the algorithm have against each other, beside settings_test.cpp.
#include "trainer/fixture.h"

namespace furlong {
namespace {

struct AlgorithmCase {
  const char* name;
  void (*spoil)(Settings&);
  const char* complaint;
};

class AlgorithmConflict : public ::testing::TestWithParam<AlgorithmCase> {};

TEST_P(AlgorithmConflict, IsFound) {
  Settings s = small_run("run", 1);
  EXPECT_TRUE(find_conflicts(s, Command::train).empty());
  GetParam().spoil(s);
  const Texts found = find_conflicts(s, Command::train);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_NE(found.front().find(GetParam().complaint), std::string::npos) << found.front();
}

INSTANTIATE_TEST_SUITE_P(
    All, AlgorithmConflict,
    ::testing::Values(
        AlgorithmCase{"Correction", [](Settings& s) { s.use_rs = true; },
                      "--use-rs needs --use-tis --custom-tis-function-path compute_mis_weights"},
        AlgorithmCase{"CorrectionBounds",
                      [](Settings& s) {
                        s.use_tis = true, s.custom_tis_function_path = "mis.compute_mis_weights_fsdp";
                        s.tis_lower_bound = 2, s.tis_upper_bound = 1.5;
                      },
                      "--tis-lower-bound 2 is not below --tis-upper-bound 1.5"},
        AlgorithmCase{"CorrectionOfSamples",
                      [](Settings& s) {
                        s.use_tis = s.tis_batch_normalize = true, s.custom_tis_function_path = "compute_mis_weights";
                        s.tis_level = "geometric";
                      },
                      "--tis-batch-normalize with --tis-level geometric"},
        AlgorithmCase{"Rejection",
                      [](Settings& s) {
                        s.use_tis = true, s.custom_tis_function_path = "compute_mis_weights";
                        s.rs_veto_threshold = 1e-4;
                      },
                      "need --use-rs"},
        AlgorithmCase{"MismatchPass", [](Settings& s) { s.get_mismatch_metrics = s.skip_actor_forward_only = true; },
                      "--skip-actor-forward-only with --get-mismatch-metrics"},
        AlgorithmCase{"Denominators", [](Settings& s) { s.calculate_per_token_loss = true, s.pg_loss_divisor = 100; },
                      "both are denominators"},
        AlgorithmCase{"Reducer", [](Settings& s) { s.custom_pg_loss_reducer_function_path = "mine.reduce"; },
                      "the function there is, is get_pg_loss_reducer"}),
    [](const auto& info) { return info.param.name; });

// Names of miles' functions, with any path; bounds follow from each other.
TEST(AlgorithmSettings, CorrectionsAreFilledIn) {
  Settings s = small_run("run", 1);
  s.use_tis = s.use_rs = true;
  s.custom_tis_function_path = "examples.infra_features.train_infer_mismatch_helper.mis.compute_mis_weights_with_cp";
  s.tis_upper_bound = 4;
  s.custom_pg_loss_reducer_function_path = "examples.experimental.DrGRPO.custom_reducer:get_pg_loss_reducer";
  validate(s, Command::train);
  EXPECT_EQ(s.custom_tis_function_path, "compute_mis_weights");
  EXPECT_EQ(s.tis_lower_bound, 0.25);
  EXPECT_EQ(s.rs_lower_bound, 0.25);
  EXPECT_EQ(s.rs_upper_bound, 4);
  EXPECT_EQ(s.pg_loss_divisor, 1000);
  const Settings once = s;
  validate(s, Command::train);
  EXPECT_TRUE(differences(once, s, Command::train).empty());
}

}  // namespace
}  // namespace furlong
