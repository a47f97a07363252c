// A training step with replayed routes, and the file that carries them.
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/hf.h"
#include "checkpoint/safetensors.h"
#include "golden.h"
#include "rl/golden_step.h"
#include "trainer/replay.h"

namespace furlong::test {
namespace {

std::string bits_of(const Weights& weights) {
  std::string out;
  for (const Tensor& t : weights.tensors()) {
    if (t.defined()) out.append(static_cast<const char*>(t.data()), t.bytes());
  }
  return out;
}

class Replay : public ::testing::Test {
 protected:
  Replay()
      : golden_("golden_grpo.safetensors"),
        config_(read_model_config(data_path("tiny"))),
        weights_(load_hf(data_path("tiny"), config_, DType::f32)),
        step_(golden_step(golden_)) {
    options_ = golden_options();
    options_.mtp = options_.optim.train_mtp = true;
  }

  // What the routers choose for each trajectory, in one forward pass over it.
  void record() {
    for (Trajectory& t : step_.trajectories) {
      const auto rows = std::ssize(t.tokens), prompt = t.prompt_length();
      const int64_t layers = config_.num_layers, k = config_.experts_per_token;
      std::vector<int32_t> ids(static_cast<size_t>(layers * rows * k));
      std::vector<float> weights(ids.size());
      BatchBuilder builder;
      builder.add(t.tokens.data(), rows);
      Batch batch = builder.batch();
      batch.routes = {.ids = Tensor(ids.data(), DType::i32, {layers * rows, k}),
                      .weights = Tensor(weights.data(), DType::f32, {layers * rows, k})};
      Stream stream(threads_);
      Arena arena(size_t{64} << 20);
      Exec exec{stream, arena};
      (void)model_forward(exec, config_, weights_, batch, nullptr);
      RouteRows parts[2];
      for (int64_t r = 0; r + 1 < rows; r++) {
        RouteRows& part = parts[r < prompt ? 0 : 1];
        part.width = layers * k;
        for (int64_t l = 0; l < layers; l++) {
          for (int64_t i = (l * rows + r) * k; i < (l * rows + r + 1) * k; i++) {
            part.ids.push_back(static_cast<uint16_t>(ids[static_cast<size_t>(i)]));
            part.weights.push_back(weights[static_cast<size_t>(i)]);
          }
        }
      }
      t.routes = std::make_shared<const Routes>(
          Routes{std::make_shared<const RouteRows>(std::move(parts[0])), std::move(parts[1])});
    }
  }

  // Moves every choice on to the next expert, so that each row still has experts of its own.
  void doctor() {
    for (Trajectory& t : step_.trajectories) {
      Routes routes = *t.routes;
      auto prompt = std::make_shared<RouteRows>(*routes.prompt);
      for (RouteRows* part : {prompt.get(), &routes.response}) {
        for (uint16_t& id : part->ids) id = static_cast<uint16_t>((id + 1) % config_.num_experts);
      }
      routes.prompt = prompt;
      t.routes = std::make_shared<const Routes>(std::move(routes));
    }
  }

  struct Result {
    std::string weights;
    std::map<std::string, double> metrics;
    std::vector<std::vector<float>> scores;
  };
  Result run(bool replays, Recompute recompute = Recompute::none) {
    Weights weights = load_hf(data_path("tiny"), config_, DType::f32);
    TrainOptions options = options_;
    options.replay_routes = replays;
    options.recompute = recompute;
    TrainStep train(config_, weights, threads_, options);
    Result out;
    out.scores = train.score(weights, step_.pointers());
    for (const auto& [name, value] : train.run(step_.pointers(), step_.targets)) {
      if (!name.starts_with("perf/")) out.metrics[name] = value;
    }
    out.weights = bits_of(weights);
    return out;
  }

  Golden golden_;
  ModelConfig config_;
  Weights weights_;
  Step step_;
  TrainOptions options_;
  ThreadPool threads_{1};
};

TEST_F(Replay, OfTheRoutersOwnChoicesChangesNoBit) {
  record();
  const Result without = run(false);
  for (const Recompute recompute : {Recompute::none, Recompute::full}) {
    Result with = run(true, recompute);
    EXPECT_EQ(with.metrics.at("train/replayed_routes_differ"), 0);
    with.metrics.erase("train/replayed_routes_differ");
    EXPECT_EQ(with.metrics, without.metrics);
    EXPECT_EQ(with.scores, without.scores);
    EXPECT_TRUE(with.weights == without.weights);
  }
}

TEST_F(Replay, OfOtherChoicesIsWhatIsScoredTrainedAndRecomputed) {
  record();
  doctor();
  const Result without = run(false), kept = run(true), again = run(true, Recompute::full);
  EXPECT_GT(kept.metrics.at("train/replayed_routes_differ"), 0.3);
  EXPECT_NE(kept.metrics.at("train/loss"), without.metrics.at("train/loss"));
  EXPECT_NE(kept.scores, without.scores);
  EXPECT_EQ(kept.metrics, again.metrics);
  EXPECT_EQ(kept.scores, again.scores);
  EXPECT_TRUE(kept.weights == again.weights);
  // A reference keeps its own routes.
  Weights reference = load_hf(data_path("tiny"), config_, DType::f32);
  TrainOptions options = options_;
  options.replay_routes = true;
  TrainStep train(config_, weights_, threads_, options);
  EXPECT_EQ(train.score(reference, step_.pointers()), without.scores);
}

class RoutesFile : public Replay {
 protected:
  RoutesFile() : path_(testing::TempDir() + "furlong.routes.safetensors") { record(); }
  ~RoutesFile() override { std::filesystem::remove(path_); }
  std::string refusal(std::vector<Trajectory> trajectories, const ModelConfig& config) {
    try {
      load_routes(path_, trajectories, config);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::input);
      return e.what();
    }
    return "";
  }
  std::string path_;
};

TEST_F(RoutesFile, GivesBackWhatWasWritten) {
  // Samples of one prompt share its rows.
  Trajectory twin = step_.trajectories[0];
  twin.routes = std::make_shared<const Routes>(Routes{twin.routes->prompt, twin.routes->response});
  step_.trajectories.push_back(twin);
  for (const int64_t experts : {int64_t{8}, int64_t{300}}) {
    ModelConfig config = config_;
    config.num_experts = experts;
    save_routes(path_, step_.trajectories, config);
    const SafetensorsFile file(path_);
    EXPECT_EQ(file.find("ids")->dtype, experts == 8 ? "U8" : "U16");
    int64_t rows = -twin.routes->prompt->rows();
    for (const auto& t : step_.trajectories) rows += t.routes->rows();
    EXPECT_EQ(file.find("weights")->shape, (std::vector<int64_t>{rows, config.num_layers, config.experts_per_token}));
    std::vector<Trajectory> read = step_.trajectories;
    for (auto& t : read) t.routes = nullptr;
    load_routes(path_, read, config);
    for (size_t i = 0; i < read.size(); i++) {
      EXPECT_EQ(*read[i].routes->prompt, *step_.trajectories[i].routes->prompt);
      EXPECT_EQ(read[i].routes->response, step_.trajectories[i].routes->response);
    }
    EXPECT_EQ(read.back().routes->prompt, read[0].routes->prompt);
  }
  EXPECT_EQ(routes_path("a/rollout-3.jsonl"), "a/rollout-3.routes.safetensors");
  EXPECT_EQ(routes_path("a.b/rollout"), "a.b/rollout.routes.safetensors");
}

TEST_F(RoutesFile, RefusesWhatIsNotOfTheseTrajectories) {
  save_routes(path_, step_.trajectories, config_);
  EXPECT_EQ(refusal(step_.trajectories, config_), "");
  auto fewer = step_.trajectories;
  fewer.pop_back();
  EXPECT_NE(refusal(fewer, config_).find("routes of 8 trajectories, there are 7"), std::string::npos);
  auto longer = step_.trajectories;
  longer[2].tokens.push_back(1);
  EXPECT_NE(refusal(longer, config_).find("trajectory 3 has not the routes"), std::string::npos);
  ModelConfig other = config_;
  other.num_layers = 4;
  EXPECT_NE(refusal(step_.trajectories, other).find("ids is U8"), std::string::npos);
  other = config_;
  other.num_experts = 2;
  EXPECT_NE(refusal(step_.trajectories, other).find("was routed to expert"), std::string::npos);
  std::filesystem::remove(path_);
  EXPECT_NE(refusal(step_.trajectories, config_).find(path_), std::string::npos);
}

}  // namespace
}  // namespace furlong::test
