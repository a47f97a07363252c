// Rollout and training at once: during the tail of a rollout, and one rollout ahead.
#include "data/trajectory.h"
#include "parallel/threads.h"
#include "trainer/beside.h"
#include "trainer/fixture.h"

namespace furlong {
namespace {

// Groups end one after the other, and one fills a micro-batch.
Settings staggered(const std::string& run_dir, int64_t rollouts) {
  Settings s = small_run(run_dir, rollouts);
  s.rollout_max_running_requests = 3;
  s.max_tokens_per_gpu = 80;
  return s;
}

Settings with_tail(Settings s, const std::string& run_dir) {
  s.run_dir = run_dir;
  s.train_during_tail = true;
  s.tail_sequences = 14;
  return s;
}

std::map<std::string, std::vector<float>> gradients_in(const std::string& folder, bool bf16 = false) {
  std::map<std::string, std::vector<float>> all;
  const SafetensorsFile file(folder + "/step_0000000.safetensors");
  for (const auto& entry : file.entries()) {
    std::string bytes(reinterpret_cast<const char*>(entry.bytes.data()), entry.bytes.size());
    if (bf16 && entry.dtype == "BF16") {
      std::string wide;
      for (size_t i = 0; i < bytes.size(); i += 2) wide += std::string(2, '\0') + bytes.substr(i, 2);
      bytes = std::move(wide);
    }
    all[entry.name] = floats_of(bytes);
  }
  return all;
}

// Each tensor's difference is small beside its own norm.
void expect_same_gradients(const std::string& a, const std::string& b, double tolerance, bool bf16 = false) {
  const auto want = gradients_in(a, bf16), got = gradients_in(b, bf16);
  ASSERT_EQ(want.size(), got.size());
  double all = 0;
  for (const auto& [name, x] : want) {
    const auto& y = got.at(name);
    ASSERT_EQ(x.size(), y.size());
    double squares = 0, differences = 0;
    for (size_t i = 0; i < x.size(); i++) {
      squares += std::pow(x[i], 2);
      differences += std::pow(x[i] - y[i], 2);
    }
    EXPECT_LE(std::sqrt(differences), tolerance * std::sqrt(squares) + 1e-9) << name;
    all += squares;
  }
  EXPECT_GT(all, 0);
}

void expect_near(const Row& got, const Row& want, double tolerance) {
  for (const auto& [name, value] : want) {
    const auto found = got.find(name);
    ASSERT_NE(found, got.end()) << name;
    EXPECT_NEAR(found->second, value, tolerance * std::max(1.0, std::abs(value))) << name;
  }
}

TEST(Tail, GradientsAreThoseOfThePlainStep) {
  const Folder folder;
  const std::pair<const char*, void (*)(Settings&)> kinds[] = {
      {"samples", [](Settings&) {}},
      {"tokens", [](Settings& s) { s.calculate_per_token_loss = true; }},
      {"fixed",
       [](Settings& s) {
         s.use_dynamic_batch_size = s.balance_data = false;
         s.max_tokens_per_gpu.reset();
         s.micro_batch_size = 3;
       }},
      {"reference",
       [](Settings& s) {
         s.ref_load = tiny_folder;
         s.use_kl_loss = true;
         s.kl_loss_coef = 0.5;
         s.entropy_coef = 0.01;
       }},
      {"halves", [](Settings& s) {
         s.dtype = s.main_grads_dtype = "bf16";
         s.use_precision_aware_optimizer = true;
       }}};
  for (const auto& [name, change] : kinds) {
    SCOPED_TRACE(name);
    const bool bf16 = std::string(name) == "halves";
    Settings plain = staggered(folder / name, 1);
    plain.dump_grads = plain.run_dir + "/grads";
    change(plain);
    run(plain);
    Settings tail = with_tail(plain, plain.run_dir + "_tail");
    tail.dump_grads = tail.run_dir + "/grads";
    run(tail);
    expect_same_gradients(plain.dump_grads, tail.dump_grads, bf16 ? 3e-2 : 2e-5, bf16);
    const auto rows = metrics_of(tail.run_dir, true);
    EXPECT_GT(figure(rows, 0, "perf/tail_tokens"), 0);
    EXPECT_GT(figure(rows, 0, "perf/tail_train_time"), 0);
    expect_near(metrics_of(tail.run_dir)[0], metrics_of(plain.run_dir)[0], bf16 ? 1e-2 : 1e-5);
  }
}

TEST(Tail, BitsFollowNeitherThreadsNorResuming) {
  const Folder folder;
  Settings s = with_tail(staggered("", 3), folder / "straight");
  s.true_on_policy = true;  // still the weights that sample
  run(s);
  const auto rows = metrics_of(s.run_dir);
  Settings threads = with_tail(s, folder / "threads");
  threads.threads = 2;
  run(threads);
  EXPECT_TRUE(same_files(s.run_dir + "/hf", threads.run_dir + "/hf"));
  EXPECT_EQ(metrics_of(threads.run_dir), rows);
  Settings stopped = with_tail(s, folder / "stopped");
  stopped.num_rollout = 1;
  run(stopped);
  stopped.num_rollout = 3;
  run(stopped);
  EXPECT_TRUE(same_files(s.run_dir + "/hf", stopped.run_dir + "/hf"));
  EXPECT_EQ(metrics_of(stopped.run_dir), rows);
}

TEST(Tail, AStepWithoutOneIsThePlainStep) {
  const Folder folder;
  const Settings plain = staggered(folder / "plain", 2);
  run(plain);
  Settings tail = with_tail(plain, folder / "tail");
  tail.tail_sequences = 1;
  run(tail);
  EXPECT_TRUE(same_files(plain.run_dir + "/hf", tail.run_dir + "/hf"));
  EXPECT_EQ(metrics_of(plain.run_dir), metrics_of(tail.run_dir));
  EXPECT_EQ(metrics_of(tail.run_dir, true)[0].count("perf/tail_tokens"), 0u);
}

TEST(Tail, LearnsFromTheGroupsThatAreKept) {
  const Folder folder;
  Settings plain = staggered(folder / "plain", 1);
  plain.rollout_batch_size = 3;
  plain.over_sampling_batch_size = 5;
  plain.dynamic_sampling_filter_path = "check_reward_nonzero_std";
  plain.partial_rollout = true;
  run(plain);
  const Settings tail = with_tail(plain, folder / "tail");
  run(tail);
  EXPECT_GT(figure(metrics_of(tail.run_dir, true), 0, "perf/tail_tokens"), 0);
  expect_near(metrics_of(tail.run_dir)[0], metrics_of(plain.run_dir)[0], 1e-5);
}

Settings ahead_run(const std::string& run_dir, int64_t rollouts) {
  Settings s = staggered(run_dir, rollouts);
  s.async_rollout = true;
  return s;
}

TEST(Async, EveryRolloutButTheFirstIsOneUpdateBehind) {
  const Folder folder;
  Settings plain = staggered(folder / "plain", 1);
  run(plain);
  Settings s = ahead_run(folder / "ahead", 3);
  s.save_debug_rollout_data = folder / "rollout_{rollout_id}.jsonl";
  run(s);
  const auto rows = metrics_of(s.run_dir);
  ASSERT_EQ(rows.size(), 3u);
  // The first step is the plain one, in the same bits.
  Row first = rows[0];
  EXPECT_EQ(first.at("rollout/weight_version_lag"), 0);
  first.erase("rollout/weight_version_lag");
  first.erase("rollout/weight_version");
  EXPECT_EQ(first, metrics_of(plain.run_dir)[0]);
  for (size_t i = 1; i < 3; i++) {
    EXPECT_EQ(figure(rows, i, "rollout/weight_version_lag"), 1);
    EXPECT_EQ(figure(rows, i, "rollout/weight_version"), i - 1);
    // Old log-probs are those of the weights that sampled, and the ratio is not 1.
    EXPECT_EQ(figure(rows, i, "train/train_rollout_logprob_abs_diff"), 0);
    EXPECT_NE(figure(rows, i, "train/ppo_kl"), 0);
    EXPECT_LT(figure(rows, i, "train/ess_ratio"), 1);
    for (const auto& t : read_trajectories(folder / fmt::format("rollout_{}.jsonl", i))) {
      EXPECT_EQ(t.weight_version, static_cast<int64_t>(i) - 1);
    }
  }
  // The rollout's own log-probs are the same numbers, and threads change no bit.
  Settings own = s;
  own.run_dir = folder / "own";
  own.save_debug_rollout_data.clear();
  own.use_rollout_logprobs = true;
  own.threads = 2;
  run(own);
  EXPECT_TRUE(same_files(s.run_dir + "/hf", own.run_dir + "/hf"));
  EXPECT_EQ(metrics_of(own.run_dir)[2].at("train/grad_norm"), figure(rows, 2, "train/grad_norm"));
}

struct Killed {};

// Ends the run between the gradients of an optimizer step (from 0) and its update.
void run_until(Settings s, int64_t step) {
  int64_t steps = 0;
  const Faults faults{.before_update =
                          [&](Stream&) {
                            if (steps++ == step) throw Killed();
                          },
                      .after_rollout = {}};
  validate(s, Command::train);
  EXPECT_THROW(train(s, false, faults), Killed);
}

TEST(Async, AKilledRunEndsInTheSameBits) {
  const Folder folder;
  const std::pair<const char*, void (*)(Settings&)> kinds[] = {{"plain", [](Settings&) {}},
                                                               {"partial", [](Settings& s) {
                                                                  s.over_sampling_batch_size = 6;
                                                                  s.partial_rollout = true;
                                                                  s.num_steps_per_rollout = 2;
                                                                  s.eval_interval = 1;
                                                                  s.eval_prompt_data = {"sums", playground().prompts};
                                                                }}};
  for (const auto& [name, change] : kinds) {
    SCOPED_TRACE(name);
    Settings straight = ahead_run(folder / name, 4);
    straight.save_interval = 1;
    change(straight);
    run(straight);
    const int64_t steps = straight.num_steps_per_rollout.value_or(1);
    Settings killed = straight;
    killed.run_dir += "_killed";
    run_until(killed, 1 * steps);
    run_until(killed, 2 * steps - 1);  // rollouts 1 to 3 are left, so that this is in rollout 2 or 3
    run(killed);
    EXPECT_TRUE(same_files(straight.run_dir + "/hf", killed.run_dir + "/hf"));
    EXPECT_EQ(metrics_of(straight.run_dir), metrics_of(killed.run_dir));
    for (const char* id : {"0000002", "0000003"}) {
      const std::string state = fmt::format("/checkpoints/iter_{}/state.json", id);
      EXPECT_EQ(read_file(straight.run_dir + state), read_file(killed.run_dir + state));
      EXPECT_EQ(read_json_file(straight.run_dir + state).contains("ahead"), std::string(id) != "0000003");
    }
  }
}

// The rollout ahead in a checkpoint is learnt from whoever goes on.
TEST(Async, APlainRunGoesOnWithWhatIsAhead) {
  const Folder folder;
  Settings ahead = ahead_run(folder / "run", 2);
  ahead.save_interval = 1;
  run(ahead);
  Settings stopped = ahead;
  stopped.run_dir = folder / "stopped";
  run_until(stopped, 1);
  stopped.async_rollout = false;
  run(stopped);
  EXPECT_TRUE(same_files(ahead.run_dir + "/hf", stopped.run_dir + "/hf"));
}

TEST(Async, OnRanks) {
  const Folder folder;
  const Settings one = ahead_run(folder / "one", 2);
  run(one);
  Settings two = one;
  two.run_dir = folder / "two";
  two.expert_model_parallel_size = 2;
  validate(two, Command::train);
  run_ranks(2, [&](World& world) { train(two, world, false); });
  const auto want = metrics_of(one.run_dir), got = metrics_of(two.run_dir);
  for (size_t i = 0; i < 2; i++) expect_near(got.at(i), want.at(i), 1e-4);
}

TEST(AtOnce, IsRefusedWhereItCannotBe) {
  const Folder folder;
  const auto expect = [&](const char* part, const std::function<void(Settings&)>& change) {
    Settings s = small_run(folder / "run", 1);
    change(s);
    const std::string message = refusal(Exit::usage, s);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect("2 optimizer steps a rollout", [](Settings& s) {
    s.train_during_tail = true;
    s.num_steps_per_rollout = 2;
  });
  expect("conversations", [](Settings& s) {
    s.train_during_tail = true;
    s.custom_generate_url = "http://localhost:1/";
  });
  expect("follow the clock", [](Settings& s) {
    s.train_during_tail = true;
    s.rollout_speculative_cost_model = "measured";
  });
  expect("exclude each other", [](Settings& s) { s.train_during_tail = s.async_rollout = true; });
  expect("--tail-sequences needs", [](Settings& s) { s.tail_sequences = 3; });
  expect("both halves", [](Settings& s) { s.async_rollout = s.debug_rollout_only = true; });
  expect("--true-on-policy", [](Settings& s) { s.async_rollout = s.true_on_policy = true; });
  expect("--skip-actor-forward-only", [](Settings& s) { s.async_rollout = s.skip_actor_forward_only = true; });
  expect("keeps no routes", [](Settings& s) {
    s.async_rollout = s.use_rollout_routing_replay = true;
    s.mtp_num_layers.reset();
    s.enable_mtp_training = false;
  });
  expect("--pipeline-model-parallel-size 2", [](Settings& s) {
    s.async_rollout = true;
    s.pipeline_model_parallel_size = 2;
  });
  for (const bool tail : {true, false}) {
    Settings s = small_run(folder / "ranks", 1);
    (tail ? s.train_during_tail : s.async_rollout) = true;
    if (!tail) s.custom_generate_url = "http://localhost:1/";
    validate(s, Command::train);
    try {
      run_ranks(2, [&](World& world) { train(s, world, false); });
      ADD_FAILURE() << "not refused";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::usage);
      EXPECT_NE(std::string(e.what()).find("on 2 ranks"), std::string::npos) << e.what();
    }
  }
}

TEST(Beside, DoesPiecesInOrderAndHandsOnWhatTheyThrow) {
  for (const bool thread : {false, true}) {
    std::string done;
    Beside beside(thread);
    const auto work = [&](char name, int pieces) {
      beside.add([&done, name, pieces]() mutable {
        done += name;
        return --pieces > 0;
      });
    };
    work('a', 3);
    beside.tick();
    work('b', 2);
    beside.finish();
    EXPECT_EQ(done, "aaabb");
    EXPECT_GE(beside.seconds(), 0);
    beside.add([]() -> bool { throw Killed(); });
    EXPECT_THROW(beside.finish(), Killed);
  }
  // What has not begun is given up.
  int pieces = 0;
  {
    Beside beside(false);
    beside.add([&] { return ++pieces < 5; });
    beside.tick();
    beside.tick();
  }
  EXPECT_EQ(pieces, 2);
}

}  // namespace
}  // namespace furlong
