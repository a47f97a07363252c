// Whole runs on a disk that fails.
#include "../trainer/fixture.h"
#include "disk.h"

namespace furlong {
namespace {

class FailingRun : public ::testing::Test {
 protected:
  FailingRun() : settings(small_run(folder / "run", 4)) {
    log::set_level(log::Level::warn);
    settings.rollout_batch_size = 1;
    settings.n_samples_per_prompt = 2;
    settings.save_interval = 1;
  }
  ~FailingRun() override { mend_disk(); }
  // Fails the first call in the folder of checkpoints after so many rollouts, and those that follow; `until`: works
  // again.
  void run_failing(int from, int until) {
    validate(settings, Command::train);
    int rollouts = 0;
    train(settings, false, {.before_update = {}, .after_rollout = [&](std::vector<Trajectory>&) {
                              rollouts++;
                              if (rollouts == from) fail_disk(folder / "run/checkpoints", 0, DiskFault::full);
                              if (rollouts == until) mend_disk();
                            }});
  }
  Folder folder;
  Settings settings;
};

TEST_F(FailingRun, GoesOnAfterASaveThatFailed) {
  run_failing(2, 4);  // the saves after rollouts 2 and 3
  EXPECT_TRUE(fs::exists(folder / "run/checkpoints/iter_0000003/manifest.json"));
  EXPECT_TRUE(fs::exists(folder / "run/checkpoints/iter_0000000/manifest.json"));
  EXPECT_FALSE(fs::exists(folder / "run/checkpoints/iter_0000001"));
  const std::string said = read_file(folder / "run/log.txt");
  EXPECT_NE(said.find("the checkpoint after rollout 2 could not be saved"), said.npos) << said;
  EXPECT_NE(said.find("(2 of 3 failures)"), said.npos) << said;
  // The same as a run on a disk that works.
  Settings sound = settings;
  sound.run_dir = folder / "sound";
  sound.save.clear();
  run(sound);
  EXPECT_TRUE(same_files(folder / "sound/hf", folder / "run/hf"));
  EXPECT_EQ(metrics_of(folder / "sound"), metrics_of(folder / "run"));
}

TEST_F(FailingRun, EndsAfterThreeFailuresInARow) {
  settings.num_rollout = 6;
  std::string why;
  try {
    run_failing(2, 100);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::resources);
    why = error.what();
  }
  EXPECT_NE(why.find("3 saves in a row have failed"), why.npos) << why;
  EXPECT_NE(why.find("No space left"), why.npos) << why;
  EXPECT_EQ(metrics_of(folder / "run").size(), 4u);
  mend_disk();
  // The same command goes on from the one that is there.
  run(settings);
  EXPECT_EQ(metrics_of(folder / "run").size(), 6u);
  EXPECT_FALSE(fs::exists(folder / "run/checkpoints/iter_0000000"));  // two are kept
  EXPECT_TRUE(fs::exists(folder / "run/checkpoints/iter_0000004/manifest.json"));
}

TEST_F(FailingRun, AnExportThatFailedIsMadeByTheSameCommand) {
  settings.num_rollout = 2;
  validate(settings, Command::train);
  std::string why;
  try {
    train(settings, false, {.before_update = {}, .after_rollout = [&, n = 0](std::vector<Trajectory>&) mutable {
                              if (++n == 2) fail_disk(folder / "run/hf", 2, DiskFault::full);
                            }});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::resources);
    why = error.what();
  }
  EXPECT_NE(why.find("run/hf"), why.npos) << why;
  EXPECT_FALSE(fs::exists(folder / "run/hf"));
  mend_disk();
  run(settings);
  EXPECT_TRUE(fs::exists(folder / "run/hf/config.json"));
  EXPECT_EQ(metrics_of(folder / "run").size(), 2u);
  EXPECT_NE(refusal(Exit::usage, settings).find("2 of 2"), std::string::npos);
}

TEST_F(FailingRun, KeepsAsManyCheckpointsAsAskedFor) {
  settings.num_rollout = 5;
  settings.keep_checkpoints = 3;
  run(settings);
  int left = 0;
  for (const auto& entry : fs::directory_iterator(folder / "run/checkpoints")) left += entry.is_directory();
  EXPECT_EQ(left, 3);
  EXPECT_TRUE(fs::exists(folder / "run/checkpoints/iter_0000002/manifest.json"));
}

}  // namespace
}  // namespace furlong
