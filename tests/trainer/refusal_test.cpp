// Runs that must end with a clear error and nothing lost.
#include "checkpoint/resume.h"
#include "data/trajectory.h"
#include "trainer/fixture.h"
#include "trainer/run_files.h"

namespace furlong {
namespace {

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
}

TEST(Numerics, StopsAfterThreeSkippedStepsInARow) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.rollout_speculative_algorithm = "none";
  run(s);
  const std::string checkpoint = folder / "run/checkpoints/iter_0000000";
  const auto before = files_of(checkpoint, "");
  // The first step after it throws the weights out of range, the following ones cannot be taken.
  s.num_rollout = 10;
  s.lr = 1e30;
  const std::string message = refusal(Exit::numerics, s);
  expect_part(message, "3 training steps in a row");
  expect_part(message, folder / "run/checkpoints");
  EXPECT_EQ(files_of(checkpoint, ""), before);
  EXPECT_EQ(verify_checkpoint(checkpoint), "");
  const auto rows = metrics_of(folder / "run");
  ASSERT_EQ(rows.size(), 4u);  // the good one, the bad step, two skipped ones; the third ended the run
  EXPECT_EQ(figure(rows, 1, "train/skipped_steps"), 0);
  EXPECT_EQ(figure(rows, 2, "train/skipped_steps"), 1);
  EXPECT_EQ(figure(rows, 3, "train/skipped_steps"), 2);
  // With a sane rate the run goes on from what was kept.
  s.num_rollout = 2;
  s.lr = 1e-3;
  run(s);
  EXPECT_EQ(metrics_of(folder / "run").size(), 2u);
  EXPECT_EQ(figure(metrics_of(folder / "run"), 1, "train/skipped_steps"), 0);
}

TEST(Numerics, ASkippedStepLeavesWeightsAlone) {
  const Folder folder;
  Settings s = small_run(folder / "rollout", 1);
  s.debug_rollout_only = true;
  s.save_debug_rollout_data = folder / "t.jsonl";
  run(s);
  // Reference log-probs so far off that the gradient overflows.
  auto all = read_trajectories(folder / "t.jsonl");
  for (auto& t : all) {
    t.reward = t.index % 2 == 0 ? 1 : 0;
    t.ref_log_probs.emplace(static_cast<size_t>(t.response_length), -3e38f);
  }
  write_trajectories(folder / "bad.jsonl", all);
  Settings learn = small_run(folder / "learn", 1);
  learn.debug_train_only = true;
  learn.load_debug_rollout_data = folder / "bad.jsonl";
  learn.use_kl_loss = true;
  learn.kl_loss_coef = 1e6;
  learn.kl_loss_type = "k2";
  run(learn);
  EXPECT_EQ(figure(metrics_of(folder / "learn"), 0, "train/skipped_steps"), 1);
  EXPECT_TRUE(same_files(playground().model, folder / "learn/hf"));
}

TEST(Refused, LoadMistyped) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.load = folder / "no/such/folder";
  const std::string message = refusal(Exit::input, s);
  expect_part(message, s.load);
  expect_part(message, "--load");
  EXPECT_FALSE(fs::exists(folder / "run/hf"));
  fs::create_directories(s.load);  // an empty folder is no better
  expect_part(refusal(Exit::input, s), s.load);
}

TEST(Refused, ADamagedCheckpointIsNotTakenForAFreshStart) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  run(s);
  const std::string victim = folder / "run/checkpoints/iter_0000000/weights.safetensors";
  ASSERT_TRUE(fs::exists(victim));
  std::string bytes = read_file(victim);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  std::ofstream(victim, std::ios::binary) << bytes;
  s.num_rollout = 2;
  expect_part(refusal(Exit::input, s), "iter_0000000");
}

TEST(Refused, LockedRunDirectory) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  {
    const RunFiles held(s, Command::train);
    expect_part(refusal(Exit::usage, s), "--run-dir");
  }
  run(s);
}

TEST(Refused, AlreadyFinished) {
  const Folder folder;
  const Settings s = small_run(folder / "run", 1);
  run(s);
  const std::string metrics = read_file(folder / "run/metrics.jsonl");
  const std::string message = refusal(Exit::usage, s);
  expect_part(message, "1 of 1");
  expect_part(message, "--num-rollout");
  EXPECT_EQ(read_file(folder / "run/metrics.jsonl"), metrics);
}

TEST(Refused, APromptLongerThanTheContext) {
  const Folder folder;
  std::string words;
  for (int i = 0; i < 5000; i++) words += fmt::format(" {}", i);
  std::ofstream(folder / "p.jsonl") << R"({"prompt":[{"role":"user","content":"What is 1 + 2?"}],"label":"3"})"
                                    << "\n"
                                    << R"({"prompt":[{"role":"user","content":")" << words << "\"}],\"label\":\"3\"}\n";
  Settings s = small_run(folder / "run", 1);
  s.prompt_data = folder / "p.jsonl";
  const std::string message = refusal(Exit::input, s);
  expect_part(message, "p.jsonl:2");
  expect_part(message, "4096");
  expect_part(message, "--rollout-max-prompt-len");
  s.rollout_max_prompt_len = 100;
  s.num_rollout = 1;
  run(s);
}

TEST(Refused, NothingFitsThePromptLimit) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.rollout_max_prompt_len = 3;
  expect_part(refusal(Exit::input, s), "--rollout-max-prompt-len 3");
}

TEST(Refused, NoMemoryForOneRequest) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.rollout_mem_fraction_static = 1e-9;
  expect_part(refusal(Exit::resources, s), "--rollout-mem-fraction-static");
}

TEST(Refused, TrajectoriesThatCannotBeLearnt) {
  const Folder folder;
  Settings rollout = small_run(folder / "rollout", 1);
  rollout.debug_rollout_only = true;
  rollout.save_debug_rollout_data = folder / "t.jsonl";
  run(rollout);
  auto all = read_trajectories(folder / "t.jsonl");
  Settings learn = small_run(folder / "learn", 1);
  learn.debug_train_only = true;
  learn.load_debug_rollout_data = folder / "bad.jsonl";
  auto unscored = all;
  for (auto& t : unscored) t.reward.reset();
  write_trajectories(folder / "bad.jsonl", unscored);
  expect_part(refusal(Exit::input, learn), "reward");
  auto foreign = all;
  foreign[3].tokens[2] = 512;
  write_trajectories(folder / "bad.jsonl", foreign);
  expect_part(refusal(Exit::input, learn), "trajectory 4");
  std::ofstream(folder / "bad.jsonl") << "";
  expect_part(refusal(Exit::input, learn), "bad.jsonl");
  learn.load_debug_rollout_data = folder / "absent.jsonl";
  expect_part(refusal(Exit::input, learn), "absent.jsonl");
}

TEST(Refused, AnotherPromptSetAtResume) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  run(s);
  s.num_rollout = 2;
  s.prompt_data += "@[0:5]";
  refusal(Exit::input, s);
}

}  // namespace
}  // namespace furlong
