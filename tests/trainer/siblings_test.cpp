// Whole runs of the model's siblings: dense networks, tied embeddings, Qwen3.6's dtypes, Qwen3-Next. They learn by
// GRPO, by PPO with a critic of their own kind and from conversations, and resume to the same bits.
#include "checkpoint/init.h"
#include "trainer/fixture.h"

namespace furlong {
namespace {

// The sibling's architecture with random weights and the vocabulary of the tiny checkpoint's tokenizer.
ModelConfig make_sibling(const std::string& name, const std::string& folder) {
  Json json = read_json_file(std::string(FURLONG_TEST_DATA "/siblings/") + name + "/config.json");
  (json.contains("text_config") ? json["text_config"] : json)["vocab_size"] = read_model_config(tiny_folder).vocab_size;
  fs::create_directories(folder);
  write_file_atomic(folder + "/config.json", json.dump());
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    fs::copy_file(tiny_folder + "/" + file, folder + "/" + file);
  const ModelConfig config = read_model_config(folder);
  Weights weights(config, DType::f32);
  init_weights(weights, config, 11, 0.05);
  save_hf({.source_dir = {}, .output_dir = folder, .config_text = json.dump(), .dtype = HfDtype::f32}, weights);
  return config;
}

class SiblingRuns : public ::testing::TestWithParam<std::string> {
 protected:
  SiblingRuns() : config_(make_sibling(GetParam(), folder_ / "model")) {}

  // Trained on rewards at random, of which there are always some that differ.
  Settings settings(int64_t rollouts) const {
    Settings s = small_run(folder_ / "straight", rollouts);
    playground();
    s.hf_checkpoint = folder_ / "model";
    s.rm_type = "random";
    if (config_.mtp_num_layers == 0) {
      s.rollout_speculative_algorithm = "none";
      s.enable_mtp_training = false;
      s.mtp_num_layers.reset();
    }
    return s;
  }
  // In one go and in two.
  void expect_resumes(const Settings& straight, void (*go)(Settings)) const {
    go(straight);
    Settings stopped = straight;
    stopped.run_dir = folder_ / "stopped";
    stopped.num_rollout = 1;
    go(stopped);
    stopped.num_rollout = straight.num_rollout;
    go(stopped);
    EXPECT_TRUE(same_files(folder_ / "straight/hf", folder_ / "stopped/hf"));
    EXPECT_FALSE(same_files(folder_ / "model", folder_ / "straight/hf"));
    const auto rows = metrics_of(folder_ / "straight");
    ASSERT_EQ(rows.size(), 2u);
    EXPECT_EQ(rows, metrics_of(folder_ / "stopped"));
    EXPECT_GT(figure(rows, 1, "train/grad_norm"), 0);
  }

  Folder folder_;
  ModelConfig config_;
};

TEST_P(SiblingRuns, LearnAndResume) {
  Settings s = settings(2);
  s.true_on_policy = true;
  expect_resumes(s, run);
}

TEST_P(SiblingRuns, WithACritic) {
  Settings s = settings(2);
  s.advantage_estimator = "ppo";
  s.critic_lr = 1e-3;
  expect_resumes(s, run);
  const auto rows = metrics_of(folder_ / "straight");
  for (size_t i = 0; i < 2; i++) {
    EXPECT_GT(figure(rows, i, "train/critic-value_loss"), 0);
    EXPECT_GT(figure(rows, i, "train/critic-grad_norm"), 0);
  }
  EXPECT_NE(figure(rows, 1, "rollout/values"), figure(rows, 0, "rollout/values"));
}

TEST_P(SiblingRuns, LearnFromConversations) {
  Settings s = settings(2);
  s.prompt_data = playground().chats;
  s.label_key.clear();
  s.rollout_speculative_algorithm = "none";
  s.enable_mtp_training = config_.mtp_num_layers > 0;
  s.global_batch_size = 4;
  expect_resumes(s, [](Settings settings) {
    validate(settings, Command::sft);
    supervised(settings, false);
  });
  const auto rows = metrics_of(folder_ / "straight");
  EXPECT_NE(figure(rows, 1, "train/loss"), figure(rows, 0, "train/loss"));
}

INSTANTIATE_TEST_SUITE_P(All, SiblingRuns, ::testing::Values("dense", "tied", "moe36", "next"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace furlong
