// Weights from elsewhere than --hf-checkpoint: --load and --ref-load of every kind of checkpoint.
#include "checkpoint/torch_dist.h"
#include "fixture.h"

namespace furlong {
namespace {

void to_torch_dist(const std::string& hf, const std::string& dist) {
  const ModelConfig config = read_model_config(hf);
  ToTorchDistOptions options;
  options.output_dir = dist;
  write_torch_dist(stored_hf(hf, config), config, options, 1);
}

// One rollout's training, and what it gave in the layout of torch_dist.
struct Trained {
  Folder folder;
  std::string run_dir = folder / "plain", hf = run_dir + "/hf", dist = folder / "dist";
  Trained() {
    run(small_run(run_dir, 1));
    to_torch_dist(hf, dist);
  }
};

TEST(LoadedWeights, TrainingStartsFromThem) {
  const Trained trained;
  const Folder folder;
  Settings s = small_run(folder / "given", 2);
  s.hf_checkpoint = trained.hf;
  run(s);
  EXPECT_FALSE(same_files(folder / "given/hf", trained.hf));
  for (const std::string& path : {trained.dist, trained.dist + "/release", trained.hf}) {
    const Folder other;
    Settings loaded = small_run(other / "loaded", 2);
    loaded.load = path;
    run(loaded);
    EXPECT_TRUE(same_files(folder / "given/hf", other / "loaded/hf")) << path;
    EXPECT_EQ(metrics_of(folder / "given"), metrics_of(other / "loaded")) << path;
  }
}

// The same command goes on with the run's own checkpoints, not with the weights it began with.
TEST(LoadedWeights, TheSameCommandResumes) {
  const Trained trained;
  const Folder folder;
  Settings s = small_run(folder / "straight", 3);
  s.load = trained.dist;
  run(s);
  Settings stopped = s;
  stopped.run_dir = folder / "stopped";
  stopped.num_rollout = 1;
  run(stopped);
  to_torch_dist(playground().model, trained.dist);  // what --load holds by now matters no more
  stopped.num_rollout = 3;
  run(stopped);
  EXPECT_TRUE(same_files(folder / "straight/hf", folder / "stopped/hf"));
}

TEST(LoadedWeights, ReferenceOfEveryKind) {
  const Trained trained;
  const Folder folder;
  const auto kl = [&](const std::string& path) {
    const Folder other;
    Settings s = small_run(other / "run", 1);
    s.use_kl_loss = true;
    s.kl_loss_coef = 0.5;
    s.ref_load = path;
    run(s);
    return figure(metrics_of(other / "run"), 0, "train/kl_loss");
  };
  const double expected = kl(trained.hf);
  EXPECT_GT(expected, 0);
  EXPECT_EQ(kl(trained.dist), expected);
  EXPECT_EQ(kl(trained.run_dir + "/checkpoints"), expected);
}

TEST(LoadedWeights, RefusedByName) {
  const Trained trained;
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.use_kl_loss = true;
  s.kl_loss_coef = 0.5;
  s.ref_load = folder / "nowhere";
  EXPECT_NE(refusal(Exit::input, s).find("--ref-load " + s.ref_load), std::string::npos);
  s = small_run(folder / "run", 1);
  s.load = trained.dist;
  s.random_init = true;
  EXPECT_NE(refusal(Exit::usage, s).find("--random-init"), std::string::npos);
  s = small_run(folder / "run", 1);
  s.save = trained.dist;
  EXPECT_NE(refusal(Exit::usage, s).find("torch_dist; choose another folder"), std::string::npos);
  fs::resize_file(trained.dist + "/release/__0_0.distcp", 1000);
  s = small_run(folder / "run", 1);
  s.load = trained.dist;
  EXPECT_NE(refusal(Exit::input, s).find("the file is truncated"), std::string::npos);
}

}  // namespace
}  // namespace furlong
