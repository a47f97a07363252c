// Whole runs: what must not change their bits, what each switch adds, and that they learn.
#include "data/trajectory.h"
#include "trainer/evaluation.h"
#include "trainer/fixture.h"

namespace furlong {
namespace {

TEST(Resume, EndsInTheBytesOfAnUninterruptedRun) {
  const Folder folder;
  Settings straight = small_run(folder / "straight", 4);
  straight.save_interval = 2;
  run(straight);
  Settings stopped = straight;
  stopped.run_dir = folder / "stopped";
  stopped.num_rollout = 2;
  run(stopped);
  EXPECT_EQ(metrics_of(folder / "stopped").size(), 2u);
  EXPECT_FALSE(same_files(folder / "straight/hf", folder / "stopped/hf"));
  stopped.num_rollout = 4;
  run(stopped);
  EXPECT_TRUE(same_files(folder / "straight/hf", folder / "stopped/hf"));
  EXPECT_EQ(metrics_of(folder / "straight"), metrics_of(folder / "stopped"));
  const std::string last = "/checkpoints/iter_0000003";
  EXPECT_TRUE(same_files((folder / "straight") + last, (folder / "stopped") + last));
  EXPECT_TRUE(same_files((folder / "straight") + last, (folder / "stopped") + last, "state.json"));
  // There was something to learn and to draft.
  const auto rows = metrics_of(folder / "straight");
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_FALSE(same_files(playground().model, folder / "straight/hf"));
  for (size_t i = 0; i < 4; i++) EXPECT_GT(figure(rows, i, "train/grad_norm"), 0);
  EXPECT_GT(figure(rows, 0, "rollout/raw_reward"), 0);
  EXPECT_GT(figure(rows, 0, "rollout/spec_accept_length"), 1.2);
}

TEST(Resume, AFallingRateGoesOn) {
  const Folder folder;
  Settings straight = small_run(folder / "straight", 4);
  straight.global_batch_size = 8;  // two optimizer steps a rollout
  straight.lr_decay_style = "linear";
  straight.lr_warmup_fraction = 0.25;
  run(straight);
  const auto rows = metrics_of(folder / "straight");
  for (size_t i = 0; i < 4; i++) {
    const auto rate = [&](size_t step) { return step < 2 ? 0.5e-3 * step : 1e-3 * (8 - step) / 6; };
    EXPECT_NEAR(figure(rows, i, "train/lr-pg_0"), (rate(2 * i) + rate(2 * i + 1)) / 2, 1e-12);
  }
  Settings stopped = straight;
  stopped.run_dir = folder / "stopped";
  stopped.num_rollout = 2;
  stopped.lr_decay_iters = 8;
  run(stopped);
  stopped.num_rollout = 4;
  stopped.lr_decay_iters.reset();
  run(stopped);
  EXPECT_TRUE(same_files(folder / "straight/hf", folder / "stopped/hf"));
  EXPECT_EQ(rows, metrics_of(folder / "stopped"));
}

TEST(Epochs, TellTheLengthOfADecay) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.num_rollout.reset();
  s.num_epoch = 3;  // of one rollout each: 6 prompts, 4 a rollout
  s.lr_decay_style = "linear";
  run(s);
  const auto rows = metrics_of(folder / "run");
  ASSERT_EQ(rows.size(), 3u);
  for (size_t i = 0; i < 3; i++) {
    EXPECT_NEAR(figure(rows, i, "train/lr-pg_0"), 1e-3 * (3 - static_cast<double>(i)) / 3, 1e-12);
  }
  s.run_dir = folder / "warm";
  s.lr_warmup_iters = 3;
  EXPECT_NE(refusal(Exit::usage, s).find("a run of 3 optimizer steps"), std::string::npos);
}

TEST(Resume, FromTheCheckpointsOfAnotherRun) {
  const Folder folder;
  Settings first = small_run(folder / "first", 1);
  run(first);
  Settings whole = small_run(folder / "whole", 2);
  run(whole);
  Settings second = small_run(folder / "second", 2);
  second.load = folder / "first/checkpoints";
  run(second);
  EXPECT_TRUE(same_files(folder / "whole/hf", folder / "second/hf"));
  EXPECT_EQ(metrics_of(folder / "second").back(), metrics_of(folder / "whole").back());
  EXPECT_EQ(metrics_of(folder / "second").size(), 1u);
}

TEST(Resume, OwnCheckpointsComeBeforeThoseOfAnotherRun) {
  const Folder folder;
  run(small_run(folder / "first", 1));
  Settings whole = small_run(folder / "whole", 3);
  run(whole);
  Settings second = small_run(folder / "second", 2);
  second.load = folder / "first/checkpoints";
  run(second);
  second.num_rollout = 3;
  log::set_level(log::Level::info);  // for the file
  run(second);                       // the first rollout of this start is the third of the run
  EXPECT_EQ(metrics_of(folder / "second").size(), 2u);
  EXPECT_TRUE(same_files(folder / "whole/hf", folder / "second/hf"));
  log::set_level(log::Level::error);
  EXPECT_NE(read_file(folder / "second/log.txt").find("was for the start"), std::string::npos);
  // The other run may even be gone.
  fs::remove_all(folder / "first");
  second.num_rollout = 4;
  run(second);
  EXPECT_EQ(metrics_of(folder / "second").size(), 3u);
}

TEST(Resume, Bf16WithMasters) {
  const Folder folder;
  Settings straight = small_run(folder / "straight", 3);
  straight.dtype = "bf16";
  run(straight);
  Settings stopped = straight;
  stopped.run_dir = folder / "stopped";
  stopped.num_rollout = 1;
  run(stopped);
  stopped.num_rollout = 3;
  run(stopped);
  EXPECT_TRUE(same_files(folder / "straight/hf", folder / "stopped/hf"));
  EXPECT_EQ(metrics_of(folder / "straight"), metrics_of(folder / "stopped"));
}

TEST(Resume, PrecisionAwareAndOffloadOnTheHost) {
  const Folder folder;
  Settings straight = small_run(folder / "straight", 3);
  straight.dtype = "bf16";
  straight.use_precision_aware_optimizer = true;
  straight.main_grads_dtype = straight.main_params_dtype = "bf16";
  straight.exp_avg_dtype = straight.exp_avg_sq_dtype = "bf16";
  run(straight);
  Settings stopped = straight;
  stopped.run_dir = folder / "stopped";
  stopped.num_rollout = 1;
  run(stopped);
  EXPECT_FALSE(fs::exists(folder / "stopped/checkpoints/iter_0000000/masters.safetensors"));
  stopped.num_rollout = 3;
  stopped.optimizer_cpu_offload = stopped.overlap_cpu_optimizer_d2h_h2d = true;  // nothing to offload from
  run(stopped);
  EXPECT_TRUE(same_files(folder / "straight/hf", folder / "stopped/hf"));
  EXPECT_EQ(metrics_of(folder / "straight"), metrics_of(folder / "stopped"));
  // State in other dtypes is refused by name.
  stopped.num_rollout = 4;
  stopped.exp_avg_dtype = "fp32";
  const std::string message = refusal(Exit::input, stopped);
  EXPECT_NE(message.find("--exp-avg-dtype"), std::string::npos) << message;
  stopped.main_params_dtype = "fp32";
  EXPECT_NE(refusal(Exit::input, stopped).find("--main-params-dtype"), std::string::npos);
}

TEST(Resume, Supervised) {
  const Folder folder;
  Settings s = small_run(folder / "straight", 6);
  s.prompt_data = playground().chats;
  s.label_key.clear();
  s.global_batch_size = 4;
  s.enable_mtp_training = false;
  s.rollout_speculative_algorithm = "none";
  s.save_interval = 3;
  const auto teach = [](Settings settings) {
    validate(settings, Command::sft);
    supervised(settings, false);
  };
  teach(s);
  Settings stopped = s;
  stopped.run_dir = folder / "stopped";
  stopped.num_rollout = 3;
  teach(stopped);
  stopped.num_rollout = 6;
  teach(stopped);
  EXPECT_TRUE(same_files(folder / "straight/hf", folder / "stopped/hf"));
  const auto rows = metrics_of(folder / "straight");
  EXPECT_EQ(rows, metrics_of(folder / "stopped"));
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_LT(figure(rows, 5, "train/loss"), 0.9 * figure(rows, 0, "train/loss"));
  EXPECT_EQ(tensors_of(folder / "straight/hf", true), tensors_of(playground().model, true));
}

TEST(Bits, RecomputeThreadsAndDraftsChangeNothing) {
  const Folder folder;
  run(small_run(folder / "plain", 2));
  Settings s = small_run(folder / "recompute", 2);
  s.recompute_granularity = "full";
  run(s);
  EXPECT_TRUE(same_files(folder / "plain/hf", folder / "recompute/hf"));
  EXPECT_EQ(metrics_of(folder / "plain"), metrics_of(folder / "recompute"));
  s = small_run(folder / "threads", 2);
  s.threads = 2;
  run(s);
  EXPECT_TRUE(same_files(folder / "plain/hf", folder / "threads/hf"));
  EXPECT_EQ(metrics_of(folder / "plain"), metrics_of(folder / "threads"));
  s = small_run(folder / "undrafted", 2);
  s.rollout_speculative_algorithm = "none";
  s.rollout_max_running_requests = 3;
  s.log_probs_chunk_size = 5;
  run(s);
  EXPECT_TRUE(same_files(folder / "plain/hf", folder / "undrafted/hf"));
}

TEST(Bits, TheTrainerSeesTheRolloutsLogProbs) {
  const Folder folder;
  for (const std::string dtype : {"fp32", "bf16"}) {
    Settings s = small_run(folder / dtype, 3);
    s.dtype = dtype;
    run(s);
    const auto rows = metrics_of(folder / dtype);
    for (size_t i = 0; i < 3; i++) {
      EXPECT_EQ(figure(rows, i, "train/train_rollout_logprob_abs_diff"), 0) << dtype << ", rollout " << i;
      EXPECT_EQ(figure(rows, i, "train/train_rollout_kl"), 0) << dtype << ", rollout " << i;
      EXPECT_EQ(figure(rows, i, "train/pg_clipfrac"), 0);
    }
  }
}

TEST(Bits, TrueOnPolicyStopsAtTheFirstDifference) {
  const Folder folder;
  Settings s = small_run(folder / "exact", 2);
  s.true_on_policy = true;
  s.dtype = "bf16";
  run(s);
  EXPECT_EQ(metrics_of(folder / "exact").size(), 2u);
  // One bit of one log-prob of the second rollout.
  s = small_run(folder / "changed", 2);
  s.true_on_policy = true;
  int rollout = 0;
  const Faults faults{.before_update = {}, .after_rollout = [&](std::vector<Trajectory>& trajectories) {
                        float& changed = trajectories.back().rollout_log_probs.back();
                        if (rollout++ == 1) changed = std::nextafter(changed, 1.0f);
                      }};
  try {
    validate(s, Command::train);
    train(s, false, faults);
    ADD_FAILURE() << "a difference passed";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::numerics);
    EXPECT_NE(std::string(e.what()).find("--true-on-policy"), std::string::npos) << e.what();
  }
}

TEST(Mtp, IsLeftAloneUnlessTrained) {
  const Folder folder;
  Settings s = small_run(folder / "without", 2);
  s.enable_mtp_training = false;
  s.mtp_num_layers.reset();
  s.clip_grad = 0;
  run(s);
  EXPECT_EQ(tensors_of(folder / "without/hf", true), tensors_of(playground().model, true));
  EXPECT_NE(tensors_of(folder / "without/hf", false), tensors_of(playground().model, false));
  // Its training reaches no tensor of the trunk (the gradient norm joins them, so clipping is off here).
  Settings with = small_run(folder / "with", 2);
  with.clip_grad = 0;
  run(with);
  EXPECT_NE(tensors_of(folder / "with/hf", true), tensors_of(playground().model, true));
  EXPECT_EQ(tensors_of(folder / "with/hf", false), tensors_of(folder / "without/hf", false));
  const auto rows = metrics_of(folder / "with");
  EXPECT_GT(figure(rows, 0, "train/mtp_loss"), 0);
  EXPECT_EQ(metrics_of(folder / "without")[0].count("train/mtp_loss"), 0u);
}

TEST(Steps, SeveralOfOneRollout) {
  const Folder folder;
  Settings s = small_run(folder / "two", 2);
  s.num_steps_per_rollout = 2;
  run(s);
  const auto rows = metrics_of(folder / "two", true);
  for (size_t i = 0; i < 2; i++) {
    EXPECT_GT(figure(rows, i, "perf/log_probs_time"), 0);
    // Old log-probs come from the weights that sampled; the second step's ratio is no longer 1.
    EXPECT_EQ(figure(rows, i, "train/train_rollout_logprob_abs_diff"), 0);
    EXPECT_NE(figure(rows, i, "train/ppo_kl"), 0);
    EXPECT_LT(figure(rows, i, "train/ess_ratio"), 1);
  }
  const Json state = read_json_file(folder / "two/checkpoints/iter_0000001/state.json");
  EXPECT_EQ(state.at("optimizer_steps"), 4);
  // The rollout's own log-probs are the same numbers here.
  Settings own = small_run(folder / "own", 2);
  own.num_steps_per_rollout = 2;
  own.use_rollout_logprobs = true;
  run(own);
  EXPECT_TRUE(same_files(folder / "two/hf", folder / "own/hf"));
  EXPECT_EQ(metrics_of(folder / "own", true)[0].count("perf/log_probs_time"), 0u);
}

TEST(Reference, CoefficientAndObservation) {
  const Folder folder;
  run(small_run(folder / "plain", 3));
  Settings s = small_run(folder / "kl", 3);
  s.use_kl_loss = true;
  s.kl_loss_coef = 0.5;
  s.kl_loss_type = "low_var_kl";
  run(s);
  const auto rows = metrics_of(folder / "kl");
  EXPECT_EQ(figure(rows, 0, "train/kl_loss"), 0);  // the reference is the start
  EXPECT_GT(figure(rows, 1, "train/kl_loss"), 0);
  EXPECT_GT(figure(rows, 2, "train/kl_loss"), 0);
  EXPECT_FALSE(same_files(folder / "plain/hf", folder / "kl/hf"));
  EXPECT_NEAR(figure(rows, 1, "train/loss"), figure(rows, 1, "train/pg_loss") + 0.5 * figure(rows, 1, "train/kl_loss"),
              1e-9);

  // Looking changes nothing but the rows looked at.
  Settings observed = small_run(folder / "observed", 3);
  observed.use_kl_loss = true;
  observed.observe_kl = 2;
  run(observed);
  EXPECT_TRUE(same_files(folder / "plain/hf", folder / "observed/hf"));
  auto seen = metrics_of(folder / "observed");
  EXPECT_EQ(seen[0].count("train/kl_loss"), 1u);
  EXPECT_EQ(seen[1].count("train/kl_loss"), 0u);
  EXPECT_GT(figure(seen, 2, "train/kl_loss"), 0);
  for (auto& row : seen) row.erase("train/kl_loss");
  EXPECT_EQ(seen, metrics_of(folder / "plain"));

  // Another model as the reference is felt at once.
  Settings other = s;
  other.run_dir = folder / "other";
  other.num_rollout = 1;
  other.ref_load = folder / "plain/hf";
  run(other);
  EXPECT_GT(figure(metrics_of(folder / "other"), 0, "train/kl_loss"), 0);
}

TEST(Reference, SurvivesAResume) {
  const Folder folder;
  Settings s = small_run(folder / "straight", 2);
  s.use_kl_loss = true;
  s.kl_loss_coef = 0.5;
  s.entropy_coef = 0.01;
  run(s);
  Settings stopped = s;
  stopped.run_dir = folder / "stopped";
  stopped.num_rollout = 1;
  run(stopped);
  stopped.num_rollout = 2;
  run(stopped);
  EXPECT_TRUE(same_files(folder / "straight/hf", folder / "stopped/hf"));
  EXPECT_EQ(metrics_of(folder / "straight"), metrics_of(folder / "stopped"));
}

TEST(Halves, TheTrajectoryFileJoinsThem) {
  const Folder folder;
  Settings joined = small_run(folder / "joined", 2);
  joined.save_debug_rollout_data = folder / "rollout_{rollout_id}.jsonl";
  run(joined);
  Settings rollout = small_run(folder / "rollout", 1);
  rollout.debug_rollout_only = true;
  rollout.save_debug_rollout_data = folder / "only_{rollout_id}.jsonl";
  run(rollout);
  EXPECT_EQ(read_file(folder / "only_0.jsonl"), read_file(folder / "rollout_0.jsonl"));
  EXPECT_FALSE(fs::exists(folder / "rollout/hf"));
  Settings learn = small_run(folder / "learn", 2);
  learn.debug_train_only = true;
  learn.load_debug_rollout_data = folder / "rollout_{rollout_id}.jsonl";
  run(learn);
  EXPECT_TRUE(same_files(folder / "joined/hf", folder / "learn/hf"));
  EXPECT_EQ(metrics_of(folder / "learn"), metrics_of(folder / "joined"));
}

TEST(Trajectories, AreWhatWasSampled) {
  const Folder folder;
  Settings s = small_run(folder / "run", 2);
  s.save_debug_rollout_data = folder / "rollout_{rollout_id}.jsonl";
  run(s);
  std::map<int64_t, int> groups;
  int64_t index = 0;
  bool right = false, wrong = false;
  for (int64_t rollout = 0; rollout < 2; rollout++) {
    const auto all = read_trajectories(folder / fmt::format("rollout_{}.jsonl", rollout));
    ASSERT_EQ(all.size(), 16u);
    for (const auto& t : all) {
      EXPECT_EQ(t.index, index++);
      EXPECT_EQ(t.weight_version, rollout);
      groups[t.group_index]++;
      ASSERT_TRUE(t.reward);
      (*t.reward == 1 ? right : wrong) = true;
      ASSERT_TRUE(t.response_text && t.label);
      EXPECT_EQ(*t.reward == 1, t.response_text->find("\\boxed{" + t.label->text + "}") != std::string::npos)
          << *t.response_text;
      EXPECT_EQ(static_cast<int32_t>(t.rollout_log_probs.size()), t.response_length);
      EXPECT_EQ(t.status == Trajectory::Status::completed, t.tokens.back() == 498 || t.tokens.back() == 496);
      if (t.status == Trajectory::Status::truncated) {
        EXPECT_EQ(t.response_length, 14);
      }
    }
  }
  EXPECT_TRUE(right && wrong);
  ASSERT_EQ(groups.size(), 8u);
  for (const auto& [group, count] : groups) EXPECT_EQ(count, 4) << "group " << group;
  EXPECT_EQ(groups.rbegin()->first, 7);
}

TEST(Learning, TheRewardRises) {
  const Folder folder;
  std::ofstream(folder / "prompts.jsonl") << R"({"prompt":[{"role":"user","content":"What is 1 + 2?"}],"label":"3"})"
                                          << "\n";
  Settings s = small_run(folder / "run", 14);
  s.prompt_data = folder / "prompts.jsonl";
  s.n_samples_per_prompt = 8;
  s.lr = 3e-3;
  s.weight_decay = 0;
  s.eval_interval = 14;
  s.eval_prompt_data = {"sums", s.prompt_data};
  s.n_samples_per_eval_prompt = 16;
  s.log_passrate = true;
  run(s);
  const auto rows = metrics_of(folder / "run");
  EXPECT_LT(figure(rows, 0, "rollout/raw_reward"), 0.6);
  EXPECT_GT(figure(rows, 13, "rollout/raw_reward"), 0.85);
  EXPECT_LT(figure(rows, 0, "eval_before_train/sums"), 0.6);
  EXPECT_GT(figure(rows, 13, "eval/sums"), 0.85);
  EXPECT_EQ(figure(rows, 13, "eval/sums"), figure(rows, 13, "eval/sums-pass@1"));
  EXPECT_EQ(figure(rows, 13, "eval/sums-pass@16"), 1);
}

TEST(Evaluation, RepeatsItselfOnUnchangedWeights) {
  const Folder folder;
  Settings s = small_run(folder / "run", 2);
  s.lr = 0;
  s.eval_interval = 1;
  s.eval_prompt_data = {"a", playground().prompts, "b", playground().prompts + "@[0:2]"};
  s.n_samples_per_eval_prompt = 2;
  s.log_passrate = true;
  run(s);
  const auto rows = metrics_of(folder / "run");
  int compared = 0;
  for (const auto& [key, value] : rows[0]) {
    if (!key.starts_with("eval/")) continue;
    EXPECT_EQ(figure(rows, 1, key), value) << key;
    EXPECT_EQ(figure(rows, 0, "eval_before_train/" + key.substr(5)), value) << key;
    compared++;
  }
  EXPECT_GE(compared, 10);
  // A learning rate of 0 leaves every number as it was (a zero may lose its sign).
  for (const bool mtp : {false, true}) {
    const auto before = tensors_of(playground().model, mtp), after = tensors_of(folder / "run/hf", mtp);
    for (const auto& [name, bytes] : before) EXPECT_EQ(floats_of(bytes), floats_of(after.at(name))) << name;
  }
}

TEST(PassAtK, Values) {
  EXPECT_DOUBLE_EQ(pass_at_k(4, 0, 1), 0);
  EXPECT_DOUBLE_EQ(pass_at_k(4, 4, 1), 1);
  EXPECT_DOUBLE_EQ(pass_at_k(4, 1, 1), 0.25);
  EXPECT_DOUBLE_EQ(pass_at_k(4, 1, 2), 0.5);                // 1 - C(3,2)/C(4,2)
  EXPECT_NEAR(pass_at_k(10, 3, 4), 1 - 35.0 / 210, 1e-15);  // 1 - C(7,4)/C(10,4)
  EXPECT_DOUBLE_EQ(pass_at_k(4, 1, 4), 1);
  EXPECT_DOUBLE_EQ(pass_at_k(5, 0, 5), 0);
  EXPECT_DOUBLE_EQ(pass_at_k(8, 6, 4), 1);  // fewer than 4 wrong ones
  for (int64_t c = 0; c < 32; c++) EXPECT_LE(pass_at_k(32, c, 8), pass_at_k(32, c + 1, 8));
}

// Replayed routes are the trainer's own in fp32, so that they change no bit of a run; recorded ones are used as they
// are.
TEST(RoutingReplay, ChangesNoBitWhereNothingDiffers) {
  const Folder folder;
  Settings plain = small_run(folder / "plain", 2);
  plain.global_batch_size = 8;  // two optimizer steps a rollout, so that old log-probs are computed
  run(plain);
  Settings replayed = plain;
  replayed.run_dir = folder / "replayed";
  replayed.save.clear();
  replayed.use_rollout_routing_replay = true;
  replayed.save_debug_rollout_data = folder / "data-{rollout_id}.jsonl";
  run(replayed);
  const auto want = metrics_of(folder / "plain"), got = metrics_of(folder / "replayed");
  // Log-probs are compared before the first step. The second one's routers are not those that sampled any more.
  for (size_t i = 0; i < 2; i++) {
    EXPECT_EQ(figure(got, i, "train/train_rollout_logprob_abs_diff"), 0) << i;
    EXPECT_LT(figure(got, i, "train/replayed_routes_differ"), 0.2);
  }
  EXPECT_EQ(figure(got, 0, "rollout/raw_reward"), figure(want, 0, "rollout/raw_reward"));
  EXPECT_TRUE(fs::exists(folder / "data-1.routes.safetensors"));

  // The training half alone, from the files.
  Settings again = replayed;
  again.run_dir = folder / "again";
  again.load_debug_rollout_data = again.save_debug_rollout_data;
  again.save_debug_rollout_data.clear();
  run(again);
  EXPECT_TRUE(same_files(folder / "replayed/hf", folder / "again/hf"));
  fs::remove(folder / "data-0.routes.safetensors");
  again.run_dir = folder / "lost";
  again.save.clear();
  EXPECT_NE(refusal(Exit::input, again).find("data-0.routes.safetensors"), std::string::npos);

  // One step a rollout: the same bits as without.
  plain = small_run(folder / "one_plain", 2);
  run(plain);
  plain.run_dir = folder / "one_replayed";
  plain.save.clear();
  plain.use_rollout_routing_replay = true;
  plain.recompute_granularity = "full";
  run(plain);
  EXPECT_TRUE(same_files(folder / "one_plain/hf", folder / "one_replayed/hf"));
  for (const auto& row : metrics_of(folder / "one_replayed")) EXPECT_EQ(row.at("train/replayed_routes_differ"), 0);
}

}  // namespace
}  // namespace furlong
