// What a run shows of itself: its time, its newest trajectories, figures that mean what they say.
#include <algorithm>

#include "base/json.h"
#include "data/trajectory.h"
#include "plan/time.h"
#include "trainer/browse.h"
#include "trainer/fixture.h"
#include "trainer/rollout_files.h"
#include "trainer/time_plan.h"

namespace furlong {
namespace {

Trajectory sampled(int64_t group, int64_t index, std::optional<double> reward, const std::string& text,
                   Trajectory::Status status = Trajectory::Status::completed) {
  Trajectory t;
  t.tokens = {1, 2, 3, 4, 5};
  t.response_length = 2;
  t.loss_mask = {1, 1};
  t.group_index = group;
  t.index = index;
  t.reward = reward;
  t.status = status;
  t.rollout_log_probs = {-0.5f, -1.0f};
  t.prompt_text = "What?\n";
  t.response_text = text;
  return t;
}

// Groups 7 (rewards 0 and 1), 8 (both 1), 9 (one unscored).
std::vector<Trajectory> three_groups() {
  return {sampled(7, 20, 1, "right"),  sampled(7, 21, 0, "wrong \x1b]0;x\x07\r\n\xff", Trajectory::Status::truncated),
          sampled(8, 22, 1, "right"),  sampled(8, 23, 1, "right too"),
          sampled(9, 24, 0.5, "half"), sampled(9, 25, {}, "lost", Trajectory::Status::aborted)};
}

std::vector<int64_t> found(const SampleFilter& filter) {
  const auto all = three_groups();
  std::vector<int64_t> out;
  for (const Trajectory* t : matching(all, filter)) out.push_back(t->index);
  return out;
}

TEST(Browse, Filters) {
  using Found = std::vector<int64_t>;
  EXPECT_EQ(found({}), (Found{20, 21, 22, 23, 24, 25}));
  EXPECT_EQ(found({.group = 8}), (Found{22, 23}));
  EXPECT_EQ(found({.sample = 24}), (Found{24}));
  EXPECT_EQ(found({.status = "truncated"}), (Found{21}));
  EXPECT_EQ(found({.min_reward = 0.5}), (Found{20, 22, 23, 24}));
  EXPECT_EQ(found({.max_reward = 0.5}), (Found{21, 24}));
  EXPECT_EQ(found({.contains = "right"}), (Found{20, 22, 23}));
  EXPECT_EQ(found({.mixed = true}), (Found{20, 21}));
  EXPECT_EQ(found({.max_reward = 0.0, .mixed = true}), (Found{21}));
}

TEST(Browse, Table) {
  const auto all = three_groups();
  const std::string table = sample_table(matching(all, {.group = 7}));
  EXPECT_EQ(table,
            "group     sample       reward  prompt  response  status       log-prob  accept  weights\n"
            "---------------------------------------------------------------------------------------\n"
            "7      2 samples  0.500±0.707    3.00      2.00  1 completed\n"
            "              20            1       3         2  completed     -0.7500       -        0\n"
            "              21            0       3         2  truncated     -0.7500       -        0\n"
            "---------------------------------------------------------------------------------------\n"
            "all    2 samples  0.500±0.707    3.00      2.00  1 completed\n");
  EXPECT_NE(sample_table(matching(all, {.sample = 25})).find("1 sample       -"), std::string::npos);
}

TEST(Browse, TextsHaveNoControlCharacters) {
  const auto all = three_groups();
  const std::string text = sample_texts(matching(all, {}));
  EXPECT_NE(text.find("group 7, sample 21: reward 0, truncated, 2 tokens\nprompt:\n  What?\n\nresponse:\n"
                      "  wrong \\x1b]0;x\\x07\\x0d\n  \\xff\n"),
            std::string::npos)
      << text;
  EXPECT_TRUE(
      std::none_of(text.begin(), text.end(), [](unsigned char c) { return (c < 0x20 && c != '\n') || c == 0x7f; }));
  Trajectory bare = all[0];
  bare.prompt_text.reset();
  EXPECT_NE(sample_texts(std::vector<const Trajectory*>{&bare}).find("prompt:\n  (not in the file)"),
            std::string::npos);
}

// ---- kept rollouts ----

TEST(KeptRollouts, TheNewestOfTheRunWhateverCameBefore) {
  const Folder folder;
  Settings s = small_run(folder / "run", 4);
  s.keep_rollouts = 2;
  run(s);
  EXPECT_EQ(kept_rollouts(s.run_dir), (std::vector<int64_t>{2, 3}));
  const auto rows = read_trajectories(rollout_path(s.run_dir, 3));
  ASSERT_EQ(rows.size(), 16u);
  EXPECT_NE(rows[0].prompt_text.value_or("").find("<|im_start|>user\nWhat is "), std::string::npos);
  EXPECT_FALSE(rows[0].response_text.value_or("").empty());
  const std::string bytes = read_file(rollout_path(s.run_dir, 1 + 2));
  // Stopped after two and resumed: the same bytes, and what a run of before has left beyond them is gone.
  Settings again = small_run(folder / "again", 2);
  again.keep_rollouts = 2;
  run(again);
  std::ofstream(rollout_path(again.run_dir, 77)) << "later";
  again.num_rollout = 4;
  run(again);
  EXPECT_EQ(kept_rollouts(again.run_dir), (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(read_file(rollout_path(again.run_dir, 3)), bytes);
  // They train as any trajectory file does.
  Settings replay = small_run(folder / "replay", 1);
  replay.debug_train_only = true;
  replay.load_debug_rollout_data = rollout_path(s.run_dir, 3);
  run(replay);
  EXPECT_EQ(kept_rollouts(replay.run_dir), std::vector<int64_t>());
}

TEST(KeptRollouts, AreNoReasonToStop) {
  const Folder folder;
  Settings s = small_run(folder / "run", 2);
  fs::create_directories(s.run_dir);
  std::ofstream(s.run_dir + "/rollout") << "in the way";
  std::ofstream(s.run_dir + "/tensorboard") << "in the way";
  run(s);
  EXPECT_EQ(metrics_of(s.run_dir).size(), 2u);
  s = small_run(folder / "none", 1);
  s.keep_rollouts = 0;
  run(s);
  EXPECT_FALSE(fs::exists(s.run_dir + "/rollout"));
}

// ---- time ----

TEST(DryRun, PlansAndWritesNothing) {
  const Folder folder;
  Settings s = small_run(folder / "run", 3);
  s.dry_run = true;
  testing::internal::CaptureStdout();
  run(s);
  const std::string plan = testing::internal::GetCapturedStdout();
  for (const char* part :
       {"weights", "passes of a step: rollout", "least time of a step", "estimate: ", "for 3 steps"}) {
    EXPECT_NE(plan.find(part), std::string::npos) << part << " is not in: " << plan;
  }
  EXPECT_FALSE(fs::exists(s.run_dir));
  // The weights are not looked at: there need be none.
  fs::create_directories(folder / "bare");
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    if (fs::exists(playground().model + "/" + name))
      fs::copy_file(playground().model + "/" + name, (folder / "bare/") + name);
  }
  s.hf_checkpoint = folder / "bare";
  testing::internal::CaptureStdout();
  run(s);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), plan);
  // What does not fit is refused as in a run.
  s.host_memory_gib = 0.01;
  EXPECT_NE(refusal(Exit::resources, s).find("does not fit"), std::string::npos);
}

TEST(TimePlan, CeilingsOfTheMachine) {
  Settings s;
  s.threads = 4;
  PlanInputs in{.dtype = DType::f32};
  EXPECT_EQ(machine_of(s, in).flops, 2 * machine_cpu(DType::f32).flops);
  in.cuda = true;
  in.device_total = uint64_t{80} << 30;
  EXPECT_EQ(machine_of(s, in).name, "H100");
  in.device_total = uint64_t{140} << 30;
  EXPECT_EQ(machine_of(s, in).name, "H200");
  s.machine_tflops = 500;
  s.machine_bandwidth = 2000;
  EXPECT_EQ(machine_of(s, in).flops, 500e12);
  EXPECT_EQ(machine_of(s, in).memory, 2000e9);
  EXPECT_EQ(machine_of(s, in).nominal, 989.4e12);
}

TEST(TimePlan, FiguresOfAStep) {
  const ModelConfig config = read_model_config(tiny_folder);
  TimeInputs t{.model = config, .layout = {.gpus = 2}, .dtype = DType::f32, .machine = machine_h100()};
  t.sequences = 2, t.running = 2, t.prompts = 1, t.prompt = 3, t.response = 2;
  const StepReport report({}, t, 10, {});
  const std::vector<Trajectory> two = {sampled(1, 0, 1, ""), sampled(1, 1, 0, "")};
  Row row;
  for (const auto& [name, value] : report.metrics(two, {{"perf/rollout_time", 3.0},
                                                        {"perf/actor_train_time", 7.0},
                                                        {"perf/log_probs_time", 1.0},
                                                        {"perf/ref_log_probs_time", 2.0}})) {
    row[name] = value;
  }
  const auto flops = sequence_flops(config, model_cost(config, DType::f32), 5, 2, false);
  EXPECT_DOUBLE_EQ(row.at("perf/log_probs_tflops"), 2 * flops.forward / 1 / 2 / 1e12);
  EXPECT_DOUBLE_EQ(row.at("perf/ref_log_probs_tflops"), 2 * flops.forward / 2 / 2 / 1e12);
  EXPECT_DOUBLE_EQ(row.at("perf/actor_train_tflops"), 2 * flops.training / 4 / 2 / 1e12);
  EXPECT_DOUBLE_EQ(row.at("perf/actor_train_mfu"), 1e12 * row.at("perf/actor_train_tflops") / 989.4e12);
  // What a critic takes is none of the policy's.
  for (const auto& [name, value] : report.metrics(two, {{"perf/rollout_time", 3.0},
                                                        {"perf/actor_train_time", 15.0},
                                                        {"perf/log_probs_time", 1.0},
                                                        {"perf/ref_log_probs_time", 2.0},
                                                        {"perf/values_time", 1.0},
                                                        {"perf/critic_gradients_time", 6.0},
                                                        {"perf/critic_optimizer_time", 1.0}})) {
    if (name == "perf/actor_train_tflops") {
      EXPECT_DOUBLE_EQ(value, row.at(name));
    }
  }
  t.passes = 2;
  double least = 0;
  for (const auto& phase : step_times(t)) least += phase.seconds;
  EXPECT_DOUBLE_EQ(row.at("perf/least_step_time"), least);
  EXPECT_DOUBLE_EQ(row.at("perf/limit_share"), least / 10);
  EXPECT_TRUE(report.metrics(std::vector<Trajectory>(), {{"perf/rollout_time", 3.0}}).empty());
  // A rollout beside the training takes no time of its own, and hides what the training took.
  Settings async;
  async.async_rollout = true;
  const Metrics beside =
      StepReport(async, t, 10, {}).metrics(two, {{"perf/rollout_time", 3.0}, {"perf/actor_train_time", 7.0}});
  ASSERT_EQ(beside.size(), 2u);
  EXPECT_EQ(beside[1].first, "perf/limit_share");
  EXPECT_DOUBLE_EQ(beside[1].second, beside[0].second / 7);
}

TEST(TimePlan, WhatIsLeftFollowsTheNewestSteps) {
  const TimeInputs t{.model = read_model_config(tiny_folder), .machine = machine_h100()};
  StepReport resumed({}, t, 10, {100, 300});
  // The first step of a start is not counted where others are known.
  EXPECT_DOUBLE_EQ(*resumed.line(4, {}).eta_seconds, 200 * 5);
  EXPECT_LT(*resumed.line(5, {}).eta_seconds, 4 * 150);  // (100 + 300 + almost nothing) / 3
  StepReport fresh({}, t, 10, {});
  EXPECT_LT(*fresh.line(0, {}).eta_seconds, 60);
  EXPECT_EQ(*fresh.line(9, {{"perf/limit_share", 0.5}}).limit_share, 0.5);
}

TEST(TimePlan, EstimateSaysWhatItRestsOn) {
  const TimeInputs t{.model = read_model_config(tiny_folder),
                     .machine = machine_h100(),
                     .sequences = 4,
                     .running = 4,
                     .prompt = 8,
                     .response = 8};
  EXPECT_NE(time_estimate(t, 100).find("at 50 % of the ceilings"), std::string::npos);
  EXPECT_EQ(time_estimate(t, 100, 3.0),
            "estimate: 3.0 s a step, 5 min 00 s for 100 steps (as the newest steps of this run took)\n");
  TimeInputs set = t;
  set.trains = false;
  const std::string one = time_estimate(t, 1, 3.0, {.count = 2, .sets = {set}});
  EXPECT_NE(one.find(" ms for 2 evaluations"), std::string::npos) << one;
  EXPECT_NE(one, time_estimate(t, 1, 3.0, {.count = 2, .sets = {set, set}}));
}

// The passes that a step makes, as passes_text tells them.
TEST(TimePlan, CountsThePassesOfAStep) {
  const auto planned = [](void (*set)(Settings&)) {
    Settings s = small_run("run", 2);
    set(s);
    validate(s, Command::train);
    const PlanInputs in = plan_inputs(s, read_model_config(tiny_folder), {.trains = true, .rolls = true}, {});
    return time_inputs(s, in, 1, 8, 8);
  };
  EXPECT_EQ(planned([](Settings&) {}).passes, 0);
  EXPECT_EQ(planned([](Settings& s) { s.num_steps_per_rollout = 2; }).passes, 1);
  EXPECT_EQ(planned([](Settings& s) { s.num_steps_per_rollout = 2, s.use_rollout_logprobs = true; }).passes, 0);
  EXPECT_EQ(planned([](Settings& s) { s.use_kl_loss = true, s.kl_loss_coef = 0.1; }).passes, 1);
  EXPECT_EQ(planned([](Settings& s) {
              s.advantage_estimator = "reinforce_plus_plus", s.normalize_advantages = true, s.kl_coef = 0.1;
            }).passes,
            2);
  EXPECT_EQ(planned([](Settings& s) { s.async_rollout = true; }).passes, 1);
  EXPECT_EQ(planned([](Settings& s) { s.get_mismatch_metrics = true; }).passes, 1);
  EXPECT_FALSE(planned([](Settings&) {}).critic);
  EXPECT_TRUE(planned([](Settings& s) { s.advantage_estimator = "ppo"; }).critic);
}

TEST(TimePlan, WandbCommand) {
  Settings s;
  s.run_dir = "runs/it's";
  const auto ends = [&](const std::string& words) {
    const std::string command = wandb_command(s);
    EXPECT_TRUE(command.starts_with("python3 -c 'import json, sys, wandb; ")) << command;
    EXPECT_TRUE(command.ends_with("; run.finish()' " + words)) << command;
  };
  ends("'runs/it'\\''s/metrics.jsonl' '' ''");
  s.wandb_project = "p; rm x";
  s.wandb_team = "team";
  ends("'runs/it'\\''s/metrics.jsonl' 'p; rm x' team");
}

// ---- honest figures ----

// The sampler's log-probs moved by 1/64: the trainer's are that far from them, with --use-rollout-logprobs too, where
// the sampler's stand for the old ones, and however many optimizer steps follow.
TEST(TrainRolloutDifference, IsNotZeroByConstruction) {
  for (const bool sampler_is_old : {false, true}) {
    for (const int64_t steps : {1, 2}) {
      const Folder folder;
      Settings s = small_run(folder / "run", 1);
      s.use_rollout_logprobs = sampler_is_old;
      s.num_steps_per_rollout = steps;
      const Faults faults{.before_update = {}, .after_rollout = [](std::vector<Trajectory>& trajectories) {
                            for (auto& t : trajectories) {
                              for (float& x : t.rollout_log_probs) x -= 1.0f / 64;
                            }
                          }};
      validate(s, Command::train);
      train(s, false, faults);
      EXPECT_NEAR(figure(metrics_of(s.run_dir), 0, "train/train_rollout_logprob_abs_diff"), 1.0 / 64, 1e-5)
          << sampler_is_old << " " << steps;
    }
  }
}

TEST(TimePlan, OfEvaluationsAndOfSupervisedRuns) {
  const Folder folder;
  Settings s = small_run(folder / "run", 5);
  s.dry_run = true;
  s.eval_interval = 2;
  s.eval_prompt_data = {"sums", playground().prompts};
  testing::internal::CaptureStdout();
  run(s);
  const std::string plan = testing::internal::GetCapturedStdout();
  EXPECT_NE(plan.find(" for 4 evaluations"), std::string::npos) << plan;  // before, after 2, 4 and the last
  Settings chats = small_run(folder / "chats", 2);
  chats.prompt_data = playground().chats;
  chats.label_key.clear();
  chats.rollout_speculative_algorithm = "none";
  validate(chats, Command::sft);
  supervised(chats, false);
  EXPECT_NE(read_file(chats.run_dir + "/plan.txt").find("for 2 steps"), std::string::npos);
  const auto rows = metrics_of(chats.run_dir, true);
  EXPECT_GT(figure(rows, 1, "perf/actor_train_tflops"), 0);
  EXPECT_GT(figure(rows, 1, "perf/limit_share"), 0);
  EXPECT_TRUE(fs::exists(chats.run_dir + "/tensorboard/events.out.tfevents.0000000000.furlong"));
}

TEST(TensorBoard, HasTheRunsFigures) {
  const Folder folder;
  Settings s = small_run(folder / "run", 2);
  run(s);
  const std::string events = read_file(s.run_dir + "/tensorboard/events.out.tfevents.0000000000.furlong");
  const auto rows = metrics_of(s.run_dir, true);
  ASSERT_EQ(rows.size(), 2u);
  for (const auto& [name, value] : rows[1]) {
    if (name == "step") continue;
    EXPECT_NE(events.find(name), std::string::npos) << name;
  }
  EXPECT_GT(figure(rows, 1, "perf/limit_share"), 0);
  EXPECT_LT(figure(rows, 1, "perf/limit_share"), 1);
  EXPECT_GT(figure(rows, 1, "perf/actor_train_mfu"), 0);
}

}  // namespace
}  // namespace furlong
