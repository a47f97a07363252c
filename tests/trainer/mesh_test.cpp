// Whole runs over ranks (threads): the figures of one process, on every layout, across a change of layout.
#include "checkpoint/resume.h"
#include "data/trajectory.h"
#include "parallel/threads.h"
#include "trainer/collect.h"
#include "trainer/fixture.h"

namespace furlong {
namespace {

struct RunLayout {
  int ranks = 1;
  ParallelSizes sizes;
  std::string dispatcher = "alltoall";
};

Settings laid_out(Settings s, const RunLayout& l) {
  s.tensor_model_parallel_size = l.sizes.tensor;
  s.pipeline_model_parallel_size = l.sizes.pipeline;
  s.context_parallel_size = l.sizes.context;
  s.expert_model_parallel_size = l.sizes.expert;
  s.expert_tensor_parallel_size = l.sizes.expert_tensor;
  s.moe_token_dispatcher_type = l.dispatcher;
  return s;
}

void run_over(const Settings& settings, const RunLayout& l) {
  Settings s = laid_out(settings, l);
  validate(s, Command::train);
  run_ranks(l.ranks, [&](World& world) { train(s, world, false); });
}

// Within the rounding of fp32, which a step's update may turn into a step of its own where a gradient is nothing else.
void expect_near(const std::vector<Row>& got, const std::vector<Row>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); i++) {
    EXPECT_EQ(got[i].size(), want[i].size());
    for (const char* name : {"train/loss", "train/mtp_loss", "train/grad_norm", "rollout/raw_reward"}) {
      const double value = figure(want, i, name);
      EXPECT_NEAR(figure(got, i, name), value, 1e-4 * std::max(1.0, std::abs(value))) << name << " of step " << i;
    }
  }
}

const RunLayout run_layouts[] = {{4, {.pipeline = 2, .expert = 2}},
                                 {4, {.tensor = 2, .context = 2, .expert = 4}},
                                 {4, {.pipeline = 2, .expert = 2}, "flex"},
                                 {8, {.tensor = 2, .pipeline = 2, .expert = 2}}};

// The training half: no layout changes what is learnt from recorded trajectories.
TEST(MeshRuns, LearnFromRecordedTrajectories) {
  const Folder folder;
  Settings record = small_run(folder / "record", 2);
  record.debug_rollout_only = true;
  record.save_debug_rollout_data = folder / "data-{rollout_id}.jsonl";
  run(record);
  Settings s = small_run(folder / "one", 2);
  s.load_debug_rollout_data = record.save_debug_rollout_data;
  run(s);
  const auto want = metrics_of(folder / "one");
  for (const RunLayout& layout : run_layouts) {
    s.run_dir = folder / fmt::format("on{}_{}_{}", layout.ranks, layout.sizes.tensor, layout.dispatcher);
    s.save.clear();
    run_over(s, layout);
    expect_near(metrics_of(s.run_dir), want);
    EXPECT_EQ(tensors_of(s.run_dir + "/hf", true).size(), tensors_of(folder / "one/hf", true).size());
  }
}

// Rollout, evaluation, training, checkpoints: rank 0 writes what one process writes.
TEST(MeshRuns, RollOutAndLearn) {
  const Folder folder;
  Settings s = small_run(folder / "one", 2);
  s.eval_interval = 1;
  s.eval_prompt_data = {"sums", playground().prompts};
  s.n_samples_per_eval_prompt = 2;
  s.save_debug_rollout_data = s.run_dir + "/data-{rollout_id}.jsonl";
  run(s);
  const auto want = metrics_of(folder / "one");
  for (const RunLayout& layout : run_layouts) {
    s.run_dir = folder / fmt::format("on{}_{}_{}", layout.ranks, layout.sizes.tensor, layout.dispatcher);
    s.save.clear();
    s.save_debug_rollout_data = s.run_dir + "/data-{rollout_id}.jsonl";
    run_over(s, layout);
    const auto got = metrics_of(s.run_dir);
    expect_near(got, want);
    // With whole heads, and experts whose outputs come home one by one, a row's bits are those of one process.
    if (layout.sizes.tensor == 1 && layout.dispatcher == "alltoall") {
      EXPECT_EQ(read_file(s.run_dir + "/data-0.jsonl"), read_file(folder / "one/data-0.jsonl"));
    }
    for (const char* name : {"eval_before_train/sums", "rollout/response_len/mean", "rollout/raw_reward"}) {
      EXPECT_EQ(figure(got, 0, name), figure(want, 0, name)) << name;
    }
    EXPECT_EQ(verify_checkpoint(s.run_dir + "/checkpoints/iter_0000001"), "");
  }
}

// Filters and commands where several ranks share out the groups; ranks of one batch ask once.
TEST(MeshRuns, KeepWhatAFilterPasses) {
  const Folder folder;
  Settings s = small_run(folder / "run", 2);
  s.rm_type.clear();
  s.custom_rm_command = "tee -a " + (folder / "asked") + " | " FURLONG_REWARD_COMMAND " boxed";
  s.custom_rm_processes = 1;
  s.dynamic_sampling_filter_path = "check_reward_nonzero_std";
  s.over_sampling_batch_size = 6;
  s.save_debug_rollout_data = folder / "data-{rollout_id}.jsonl";
  run_over(s, {4, {.tensor = 2, .expert = 2}});
  const auto rows = metrics_of(s.run_dir);
  ASSERT_EQ(rows.size(), 2u);
  double drawn = 0;
  for (size_t i = 0; i < 2; i++) {
    drawn += figure(rows, i, "rollout/groups_drawn");
    const auto kept = read_trajectories(folder / fmt::format("data-{}.jsonl", i));
    ASSERT_EQ(kept.size(), 16u);
    for (size_t first = 0; first < 16; first += 4) {
      EXPECT_EQ(drop_reason({kept.data() + first, 4}), "") << first;
      for (size_t j = 0; j < 4; j++) EXPECT_EQ(kept[first + j].group_index, kept[first].group_index);
    }
  }
  const std::string asked = read_file(folder / "asked");
  EXPECT_EQ(static_cast<double>(std::count(asked.begin(), asked.end(), '\n')), 4 * drawn);
  s.partial_rollout = true;
  try {
    run_over(s, {2, {.expert = 2}});
    ADD_FAILURE() << "partial rollouts on two ranks";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::usage) << e.what();
  }
}

// A run that goes on on other ranks, and one that goes on where it was, to the same bytes.
TEST(MeshRuns, ResumeOnAnyLayout) {
  const Folder folder;
  const RunLayout first{4, {.tensor = 2, .expert = 2}}, other{4, {.pipeline = 2, .expert = 2}};
  Settings s = small_run(folder / "whole", 2);
  s.save_interval = 1;
  run_over(s, first);
  const auto want = metrics_of(folder / "whole");
  for (const RunLayout& then : {first, other, RunLayout{}}) {
    s.run_dir = folder / fmt::format("pp{}_on{}", then.sizes.pipeline, then.ranks);
    s.save.clear();
    s.num_rollout = 1;
    run_over(s, first);
    s.num_rollout = 2;
    run_over(s, then);
    const auto got = metrics_of(s.run_dir);
    expect_near(got, want);
    if (then.ranks == first.ranks && then.sizes == first.sizes) {
      EXPECT_EQ(got, want);
      EXPECT_TRUE(same_files(folder / "whole/hf", s.run_dir + "/hf"));
    }
  }
}

TEST(MeshRuns, ALayoutThatDoesNotFitIsRefusedBeforeAnythingIsLoaded) {
  const Folder folder;
  Settings s = small_run(folder / "run", 1);
  const auto refused = [&](const RunLayout& l) -> std::string {
    try {
      run_over(s, l);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::usage);
      return e.what();
    }
    return "nothing";
  };
  EXPECT_NE(refused({1, {.tensor = 2}}).find("1 rank(s) cannot be split by tensor 2"), std::string::npos);
  const std::string heads = refused({3, {.tensor = 3}});
  EXPECT_NE(heads.find("attention heads cannot be split by tensor x context parallel size 3"), std::string::npos)
      << heads;
}

TEST(MeshRuns, SupervisedFineTuning) {
  const Folder folder;
  Settings s = small_run(folder / "one", 3);
  s.prompt_data = playground().chats;
  s.label_key.clear();
  s.rollout_batch_size = 3;
  Settings alone = s;
  validate(alone, Command::sft);
  supervised(alone, false);
  const auto want = metrics_of(folder / "one");
  const RunLayout layout{4, {.tensor = 2, .expert = 4}};
  Settings over = laid_out(s, layout);
  over.run_dir = folder / "four";
  validate(over, Command::sft);
  run_ranks(layout.ranks, [&](World& world) { supervised(over, world, false); });
  const auto got = metrics_of(folder / "four");
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); i++) {
    const double loss = figure(want, i, "train/loss");
    EXPECT_NEAR(figure(got, i, "train/loss"), loss, 1e-4 * loss) << i;
  }
}

// Routes reach the ranks that train on them.
TEST(MeshRuns, ReplayRoutes) {
  const Folder folder;
  Settings s = small_run(folder / "one", 2);
  s.use_rollout_routing_replay = true;
  s.save_debug_rollout_data = s.run_dir + "/data-{rollout_id}.jsonl";
  run(s);
  const auto want = metrics_of(folder / "one");
  for (const RunLayout& layout : {RunLayout{2, {}}, RunLayout{4, {.expert = 2}}, RunLayout{2, {.expert = 2}, "flex"}}) {
    s.run_dir = folder / fmt::format("on{}_{}_{}", layout.ranks, layout.sizes.expert, layout.dispatcher);
    s.save.clear();
    s.save_debug_rollout_data = s.run_dir + "/data-{rollout_id}.jsonl";
    run_over(s, layout);
    expect_near(metrics_of(s.run_dir), want);
    if (layout.dispatcher != "alltoall") continue;
    EXPECT_EQ(read_file(s.run_dir + "/data-0.routes.safetensors"), read_file(folder / "one/data-0.routes.safetensors"));
    EXPECT_EQ(figure(metrics_of(s.run_dir), 0, "train/replayed_routes_differ"), 0);
  }
  s = laid_out(small_run(folder / "refused", 1), {4, {.tensor = 2, .expert = 2}});
  s.use_rollout_routing_replay = true;
  EXPECT_NE(refusal(Exit::usage, s).find("--use-rollout-routing-replay needs whole rows"), std::string::npos);
}

}  // namespace
}  // namespace furlong
