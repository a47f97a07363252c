// Which groups a rollout keeps, whose rewards they get, and that none of it depends on where a run was interrupted.
#include "trainer/collect.h"
#include "data/trajectory.h"
#include "trainer/evaluation.h"
#include "trainer/fixture.h"

namespace furlong {
namespace {

// Runs, and returns the trajectories of each rollout.
std::vector<std::vector<Trajectory>> trajectories_of(Settings s) {
  s.save_debug_rollout_data = s.run_dir + ".{rollout_id}.jsonl";
  run(s);
  std::vector<std::vector<Trajectory>> all;
  for (int64_t i = 0; i < *s.num_rollout; i++) {
    all.push_back(read_trajectories(fmt::format("{}.{}.jsonl", s.run_dir, i)));
  }
  return all;
}

std::vector<Trajectory> first_of(const Settings& s) { return trajectories_of(s).at(0); }

std::map<int64_t, std::vector<Trajectory>> groups_of(const std::vector<Trajectory>& trajectories) {
  std::map<int64_t, std::vector<Trajectory>> groups;
  for (const auto& t : trajectories) groups[t.group_index].push_back(t);
  return groups;
}

double sum_of(const Row& row, const std::string& prefix) {
  double sum = 0;
  for (const auto& [name, value] : row) sum += name.starts_with(prefix) ? value : 0;
  return sum;
}

std::string error_of(Exit code, const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

#define EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(DropReason, NamesWhatIsNotLearntFrom) {
  const auto reason = [](std::vector<std::optional<double>> rewards) {
    std::vector<Trajectory> group(rewards.size());
    for (size_t i = 0; i < rewards.size(); i++) group[i].reward = rewards[i];
    return drop_reason(group);
  };
  EXPECT_EQ(reason({0, 1}), "");
  EXPECT_EQ(reason({0, 1, std::nullopt}), "");
  EXPECT_EQ(reason({1, 1}), "zero_std_1.0");
  EXPECT_EQ(reason({-0.26, -0.26, -0.26}), "zero_std_-0.3");
  EXPECT_EQ(reason({0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1}), "zero_std_0.1");
  EXPECT_EQ(reason({1, std::nullopt}), "unscored");
  EXPECT_EQ(reason({std::nullopt, std::nullopt}), "unscored");
  EXPECT_EQ(reason({1, 1 + 1e-7}), "");
}

TEST(DynamicSampling, KeepsGroupsThatDiffer) {
  const Folder folder;
  Settings s = small_run(folder / "run", 3);
  s.dynamic_sampling_filter_path = "miles.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std";
  const auto rollouts = trajectories_of(s);
  const auto rows = metrics_of(s.run_dir);
  double dropped = 0;
  int64_t last = -1;
  for (size_t i = 0; i < 3; i++) {
    const auto groups = groups_of(rollouts[i]);
    EXPECT_EQ(groups.size(), 4u);
    for (const auto& [index, group] : groups) {
      EXPECT_EQ(group.size(), 4u);
      EXPECT_EQ(drop_reason(group), "") << index;
      EXPECT_GT(index, last);
      last = index;
    }
    dropped += sum_of(rows[i], "rollout/dynamic_filter/drop_");
    EXPECT_EQ(figure(rows, i, "rollout/frac_reward_zero_std"), 0);
    EXPECT_EQ(figure(rows, i, "rollout/groups_drawn"),
              4 + sum_of(rows[i], "rollout/dynamic_filter/drop_") + figure(rows, i, "rollout/groups_unused"));
  }
  EXPECT_GT(dropped, 0);
  // The same with threads, and without drafts.
  Settings again = s;
  again.run_dir = folder / "again";
  again.threads = 2;
  run(again);
  EXPECT_EQ(metrics_of(again.run_dir), rows);
  EXPECT_TRUE(same_files(s.run_dir + "/hf", again.run_dir + "/hf"));
}

TEST(DynamicSampling, EndsWhenNothingPasses) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.prompt_data = folder / "hopeless.jsonl";
  std::ofstream(s.prompt_data)
      << "{\"prompt\":[{\"role\":\"user\",\"content\":\"What is 1 + 1?\"}],\"label\":\"77\"}\n";
  s.dynamic_sampling_filter_path = "check_reward_nonzero_std";
  s.dynamic_sampling_max_groups = 6;
  const std::string message = refusal(Exit::input, s);
  EXPECT_HAS(message, "6 groups were drawn for a rollout and 0 of the 4");
  EXPECT_HAS(message, "6 zero_std_0.0");
  s.dynamic_sampling_filter_path = "my_filters.check_length";
  EXPECT_HAS(refusal(Exit::usage, s), "my_filters.check_length");
}

TEST(OverSampling, TakesTheFirstThatAreDone) {
  const Folder folder;
  Settings s = small_run(folder / "run", 2);
  s.over_sampling_batch_size = 7;
  s.rollout_max_running_requests = 6;
  const auto rollouts = trajectories_of(s);
  const auto rows = metrics_of(s.run_dir);
  for (size_t i = 0; i < 2; i++) {
    EXPECT_EQ(groups_of(rollouts[i]).size(), 4u);
    EXPECT_EQ(figure(rows, i, "rollout/groups_drawn"), 7);
    EXPECT_EQ(figure(rows, i, "rollout/groups_unused"), 3);
  }
  EXPECT_EQ(rollouts[1][0].group_index / 7, 1);
}

Settings partial_run(const std::string& run_dir, int64_t rollouts) {
  Settings s = small_run(run_dir, rollouts);
  s.over_sampling_batch_size = 8;
  s.partial_rollout = true;
  s.rollout_max_response_len = 24;
  s.rollout_temperature = 1.3;  // lengths differ more
  s.rollout_max_running_requests = 12;
  return s;
}

TEST(PartialRollout, GoesOnFromTheTokensItHas) {
  const Folder folder;
  Settings s = partial_run(folder / "run", 6);
  const auto rollouts = trajectories_of(s);
  int64_t mixed = 0;
  std::map<int64_t, int> seen;
  for (const auto& rollout : rollouts) {
    EXPECT_EQ(groups_of(rollout).size(), 4u);
    for (const auto& t : rollout) {
      EXPECT_EQ(seen[t.index]++, 0) << t.index;
      EXPECT_EQ(static_cast<int64_t>(t.rollout_log_probs.size()), t.response_length);
      EXPECT_LE(t.response_length, 24);
      EXPECT_TRUE(t.reward.has_value());
      for (const uint8_t m : t.loss_mask) EXPECT_EQ(m, 1);
      mixed += t.extra_json.find("weight_versions") != std::string::npos;
    }
  }
  EXPECT_GT(mixed, 0);
  // Every group drawn is used in the end, or still under way: none is lost.
  const auto rows = metrics_of(s.run_dir);
  double drawn = 0, unused = 0;
  for (size_t i = 0; i < rows.size(); i++) {
    drawn += figure(rows, i, "rollout/groups_drawn") - (i > 0 ? figure(rows, i - 1, "rollout/groups_under_way") : 0);
    unused += figure(rows, i, "rollout/groups_unused");
    EXPECT_EQ(figure(rows, i, "rollout/groups_drawn"),
              4 + figure(rows, i, "rollout/groups_unused") + figure(rows, i, "rollout/groups_under_way"));
  }
  EXPECT_GT(figure(rows, 1, "rollout/groups_under_way"), 0);
}

// On unchanged weights a response is the same however often it was put aside: its draws are keyed by what it is.
TEST(PartialRollout, DrawsWhatAnUninterruptedOneDraws) {
  const Folder folder;
  Settings s = partial_run(folder / "run", 6);
  s.debug_rollout_only = true;
  Settings whole = s;
  whole.run_dir = folder / "whole";
  whole.partial_rollout = false;
  whole.over_sampling_batch_size.reset();
  whole.num_rollout = 10;
  std::map<int64_t, Trajectory> wanted;
  for (const auto& rollout : trajectories_of(whole)) {
    for (const auto& t : rollout) wanted[t.index] = t;
  }
  for (const auto& rollout : trajectories_of(s)) {
    for (const auto& t : rollout) {
      ASSERT_TRUE(wanted.contains(t.index)) << t.index;
      EXPECT_EQ(t.tokens, wanted[t.index].tokens) << t.index;
      EXPECT_EQ(t.rollout_log_probs, wanted[t.index].rollout_log_probs) << t.index;
      EXPECT_EQ(t.reward, wanted[t.index].reward) << t.index;
    }
  }
}

TEST(PartialRollout, MasksOlderTokens) {
  const Folder folder;
  Settings s = partial_run(folder / "run", 5);
  s.mask_offpolicy_in_partial_rollout = true;
  int64_t masked = 0;
  for (const auto& rollout : trajectories_of(s)) {
    for (const auto& t : rollout) {
      // A masked part, then one that counts.
      EXPECT_TRUE(std::is_sorted(t.loss_mask.begin(), t.loss_mask.end())) << t.index;
      const bool some = std::count(t.loss_mask.begin(), t.loss_mask.end(), 0) > 0;
      masked += some;
      if (t.extra_json.find("weight_versions") != std::string::npos) {
        EXPECT_TRUE(some);
        EXPECT_EQ(t.loss_mask.back(), 1);
      }
    }
  }
  EXPECT_GT(masked, 0);
}

TEST(PartialRollout, IsPartOfCheckpoints) {
  const Folder folder;
  Settings straight = partial_run(folder / "straight", 5);
  straight.over_sampling_batch_size = 12;
  straight.dynamic_sampling_filter_path = "check_reward_nonzero_std";
  run(straight);
  for (const int64_t stop : {1, 2, 3}) {
    Settings stopped = straight;
    stopped.run_dir = folder / fmt::format("stopped{}", stop);
    stopped.num_rollout = stop;
    run(stopped);
    stopped.num_rollout = 5;
    run(stopped);
    EXPECT_EQ(metrics_of(straight.run_dir), metrics_of(stopped.run_dir)) << stop;
    EXPECT_TRUE(same_files(straight.run_dir + "/hf", stopped.run_dir + "/hf")) << stop;
  }
  double under_way = 0;
  for (const auto& row : metrics_of(straight.run_dir)) under_way += row.at("rollout/groups_under_way");
  EXPECT_GT(under_way, 0);
}

Settings commanded(const std::string& run_dir, int64_t rollouts) {
  Settings s = small_run(run_dir, rollouts);
  s.rm_type.clear();
  s.custom_rm_command = FURLONG_REWARD_COMMAND " boxed";
  s.custom_rm_processes = 2;
  return s;
}

TEST(RewardCommand, ScoresARun) {
  const Folder folder;
  Settings s = commanded(folder / "one", 2);
  const auto rollouts = trajectories_of(s);
  double positive = 0;
  for (const auto& rollout : rollouts) {
    for (const auto& t : rollout) {
      const size_t at = t.response_text->find("\\boxed{");
      ASSERT_TRUE(t.reward.has_value());
      EXPECT_EQ(*t.reward, at == std::string::npos ? 0 : (*t.response_text)[at + 7] - '0') << *t.response_text;
      positive += *t.reward > 0;
    }
  }
  EXPECT_GT(positive, 8);
  // Groups in one question get the same rewards, and so the same run.
  Settings grouped = s;
  grouped.run_dir = folder / "grouped";
  grouped.group_rm = true;
  run(grouped);
  EXPECT_EQ(metrics_of(grouped.run_dir), metrics_of(s.run_dir));
  EXPECT_TRUE(same_files(grouped.run_dir + "/hf", s.run_dir + "/hf"));
  EXPECT_TRUE(fs::exists(s.run_dir + "/reward/reward-0.err"));
}

TEST(RewardCommand, WithAFilterDecidesByNoClock) {
  const Folder folder;
  Settings s = commanded(folder / "one", 3);
  s.dynamic_sampling_filter_path = "check_reward_nonzero_std";
  s.over_sampling_batch_size = 6;
  s.partial_rollout = true;
  s.rollout_max_response_len = 24;
  s.rollout_temperature = 1.3;
  run(s);
  Settings slow = s;
  slow.run_dir = folder / "slow";
  slow.custom_rm_command = "sleep 0.2; exec " FURLONG_REWARD_COMMAND " boxed";
  slow.custom_rm_processes = 5;
  run(slow);
  EXPECT_EQ(metrics_of(slow.run_dir), metrics_of(s.run_dir));
  EXPECT_TRUE(same_files(slow.run_dir + "/hf", s.run_dir + "/hf"));
}

TEST(RewardCommand, ThatFailsStopsTheRunAndKeepsTheSamples) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.rm_type.clear();
  s.custom_rm_command = "exit 4";
  const std::string message = refusal(Exit::lost, s);
  EXPECT_HAS(message, "16 of 16 samples were not scored");
  EXPECT_HAS(message, "exit status 4");
  const auto kept = read_trajectories(s.run_dir + "/rollout/0.jsonl");
  EXPECT_EQ(kept.size(), 16u);
  for (const auto& t : kept) EXPECT_FALSE(t.reward.has_value());
  // Also where a filter would drop all of them.
  s.dynamic_sampling_filter_path = "check_reward_nonzero_std";
  EXPECT_HAS(refusal(Exit::lost, s), "samples were not scored");
  s.rm_max_unscored = 1;
  s.dynamic_sampling_max_groups = 5;
  EXPECT_HAS(refusal(Exit::input, s), "5 unscored");
}

Settings conversing(const std::string& run_dir, int64_t rollouts) {
  Settings s = small_run(run_dir, rollouts);
  s.rm_type.clear();
  s.custom_generate_command = FURLONG_REWARD_COMMAND " converse";
  s.custom_rm_processes = 2;
  s.rollout_max_response_len = 120;
  return s;
}

TEST(Conversation, LearnsFromTheModelsTurnsAlone) {
  const Folder folder;
  Settings s = conversing(folder / "run", 2);
  const Session session = open_session(s);
  const std::vector<int32_t> stops = session.stop_ids;
  int64_t scored = 0;
  for (const auto& rollout : trajectories_of(s)) {
    EXPECT_EQ(rollout.size(), 16u);
    for (const auto& t : rollout) {
      if (t.status == Trajectory::Status::truncated) continue;
      EXPECT_EQ(t.extra_json, "{\"turns\":3}");
      // Three turns, each ending with the model's own stop; between them what the template writes, masked.
      std::vector<std::vector<int32_t>> turns(1), replies;
      for (size_t i = 0; i < t.loss_mask.size(); i++) {
        const int32_t token = t.tokens[t.tokens.size() - t.loss_mask.size() + i];
        const bool begins = i > 0 && t.loss_mask[i] != t.loss_mask[i - 1];
        if (begins && t.loss_mask[i] == 1) turns.emplace_back();
        if (begins && t.loss_mask[i] == 0) replies.emplace_back();
        (t.loss_mask[i] == 1 ? turns : replies).back().push_back(token);
        if (t.loss_mask[i] == 0) {
          EXPECT_EQ(t.rollout_log_probs[i], 0);
        } else {
          EXPECT_LT(t.rollout_log_probs[i], 0);
        }
      }
      ASSERT_EQ(turns.size(), 3u);
      ASSERT_EQ(replies.size(), 2u);
      for (const auto& turn : turns) EXPECT_NE(std::find(stops.begin(), stops.end(), turn.back()), stops.end());
      EXPECT_EQ(decode_ids(session, replies[0]),
                "\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n<think>\n");
      EXPECT_EQ(decode_ids(session, replies[1]),
                "\n<|im_start|>user\n<tool_response>\nAnd then?\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
                "<think>\n");
      const std::string last = decode_ids(session, turns[2]);
      const size_t at = last.find("\\boxed{");
      if (at == std::string::npos) {
        EXPECT_FALSE(t.reward.has_value());
      } else {
        EXPECT_EQ(t.reward, 60 + last[at + 7] - '0') << last;
        scored++;
      }
    }
  }
  EXPECT_GT(scored, 8);
  for (const auto& row : metrics_of(s.run_dir)) EXPECT_EQ(row.at("train/train_rollout_logprob_abs_diff"), 0);
  Settings again = s;
  again.run_dir = folder / "again";
  again.custom_generate_command = "sleep 0.1; exec " FURLONG_REWARD_COMMAND " converse";
  again.custom_rm_processes = 5;
  again.rollout_max_running_requests = 3;
  again.rollout_speculative_algorithm = "none";
  run(again);
  EXPECT_TRUE(same_files(again.run_dir + "/hf", s.run_dir + "/hf"));
}

TEST(Conversation, EndsByItsLimits) {
  const Folder folder;
  Settings s = conversing(folder / "turns", 1);
  s.generate_max_turns = 2;
  s.rm_type = "deepscaler";  // judges what the environment has not
  for (const auto& t : first_of(s)) {
    EXPECT_NE(t.extra_json, "{\"turns\":3}");
    EXPECT_TRUE(t.reward.has_value());
  }
  s = conversing(folder / "tokens", 1);
  s.rollout_max_response_len = 30;
  s.rm_type = "deepscaler";
  for (const auto& t : first_of(s)) {
    EXPECT_LE(t.response_length, 30);
    EXPECT_EQ(t.status, Trajectory::Status::truncated);
  }
  s = conversing(folder / "silent", 1);
  s.custom_generate_command = "exit 3";
  EXPECT_HAS(refusal(Exit::lost, s), "16 of 16 samples were not scored");
}

TEST(Rows, ChooseTheirRule) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  s.prompt_data = folder / "prompts.jsonl";
  std::ofstream out(s.prompt_data);
  for (int i = 0; i < 4; i++) {
    out << fmt::format(
        "{{\"prompt\":[{{\"role\":\"user\",\"content\":\"What is 1 + "
        "1?\"}}],\"label\":\"2\",\"metadata\":{{\"rm_type\":\"{}"
        "\"}}}}\n",
        i % 2 == 0 ? "dapo" : "deepscaler");
  }
  out.close();
  s.rollout_shuffle = false;
  for (const auto& [index, group] : groups_of(trajectories_of(s)[0])) {
    for (const auto& t : group) {
      EXPECT_EQ(*t.reward < 0, index % 2 == 0) << *t.response_text;  // dapo: -1 without "Answer:"
    }
  }
  std::ofstream(s.prompt_data, std::ios::app)
      << "{\"prompt\":\"x\",\"label\":\"2\",\"metadata\":{\"rm_type\":\"dappo\"}}\n";
  EXPECT_HAS(refusal(Exit::input, s), "prompts.jsonl:5");
}

Settings evaluated(const Folder& folder, const std::string& config) {
  Settings s = small_run(folder / "eval", 1);
  s.eval_config = folder / "eval.yaml";
  s.eval_interval = 1;
  s.skip_eval_before_train = true;
  s.log_passrate = true;
  std::ofstream(s.eval_config) << config;
  return s;
}

TEST(Evaluation, OfSetsWithSettingsOfTheirOwn) {
  const Folder folder;
  const std::string prompts = playground().prompts;
  Settings s = evaluated(folder, fmt::format("eval:\n"
                                             "  defaults: {{n_samples_per_eval_prompt: 4, top_p: 1.0}}\n"
                                             "  datasets:\n"
                                             "    - name: sums\n"
                                             "      path: {}\n"
                                             "      temperature: 0.0\n"
                                             "    - name: graded\n"
                                             "      path: \"{}@[0:3]\"\n"
                                             "      n_samples_per_eval_prompt: 2\n"
                                             "      rm_type: dapo\n"
                                             "      max_response_len: 5\n",
                                             prompts, prompts));
  run(s);
  const auto row = metrics_of(s.run_dir)[0];
  const auto has = [&](const std::string& name) { return row.contains("eval/" + name); };
  for (const char* name : {"sums", "sums-truncated_ratio", "sums-none_reward_ratio", "sums-pass@1", "sums-pass@2",
                           "sums-pass@4", "sums/response_len/mean", "graded", "graded-pass@2"}) {
    EXPECT_TRUE(has(name)) << name;
  }
  EXPECT_FALSE(has("graded-pass@4"));
  EXPECT_EQ(row.at("eval/graded"), -1);  // no "Answer:" in them
  EXPECT_EQ(row.at("eval/graded-truncated_ratio"), 1);
  EXPECT_LE(row.at("eval/graded/response_len/max"), 5);
  EXPECT_EQ(row.at("eval/sums-pass@1"), row.at("eval/sums-pass@4"));  // greedy samples are alike
  EXPECT_EQ(row.at("eval/sums-none_reward_ratio"), 0);
}

TEST(Evaluation, ConfigsThatMeanNothingAreErrors) {
  const Folder folder;
  const auto error = [&](const std::string& config) {
    const Settings s = evaluated(folder, config);
    return error_of(Exit::input, [&] { eval_specs(s); });
  };
  EXPECT_HAS(error("eval: {datasets: [{name: a, path: b, temprature: 1}]}"), "did you mean temperature?");
  EXPECT_HAS(error("eval: {datasets: [{name: a, path: b, top_p: 2}]}"), "eval.datasets[0]: top_p is 2");
  EXPECT_HAS(error("eval: {datasets: [{name: a, path: b, n_samples_per_eval_prompt: x}]}"), "an integer");
  EXPECT_HAS(error("eval: {datasets: [{name: a}]}"), "a name and a path");
  EXPECT_HAS(error("eval: {datasets: [{name: a, path: b}, {name: a, path: c}]}"), "two sets are called a");
  EXPECT_HAS(error("eval: {datasets: []}"), "eval.datasets must be");
  EXPECT_HAS(error("datasets: [1]"), "the key eval");
  EXPECT_HAS(error("eval: {datasets: [{name: a, path: b, min_new_tokens: 3}]}"), "min_new_tokens");
#ifdef FURLONG_YAML
  EXPECT_HAS(error("eval:\n  datasets: [\n"), "eval.yaml:3");
  EXPECT_HAS(error("eval: &x {datasets: *x}"), "alias");
  EXPECT_HAS(error("a: 1\na: 2\n"), "occurs twice");
#endif
  const Settings named = evaluated(folder,
                                   "{\"eval\": {\"datasets\": {\"b\": {\"path\": \"p\"}, \"a\": {\"path\": \"q\", "
                                   "\"metadata_overrides\": {\"k\": [1]}, \"rm_type\": \"math\"}}}}");
  const auto specs = eval_specs(named);
  ASSERT_EQ(specs.size(), 2u);
  EXPECT_EQ(specs[0].name, "a");
  EXPECT_EQ(specs[0].metadata_overrides, "{\"k\":[1],\"rm_type\":\"math\"}");
  EXPECT_EQ(specs[1].max_response, 14);
}

}  // namespace
}  // namespace furlong
