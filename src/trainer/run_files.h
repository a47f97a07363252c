// The run directory and the state that a run resumes from.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/resume.h"
#include "data/prompts.h"
#include "trainer/groups.h"
#include "trainer/session.h"
#include "trainer/train_step.h"

namespace furlong {

// A folder that stands for none, in --save and --save-hf.
inline constexpr std::string_view nowhere = "none";

// A rollout that was sampled beside the training before it, and its figures but for perf/...
struct RolloutAhead {
  std::vector<Trajectory> trajectories;
  Metrics metrics;
};

// What a training checkpoint holds beside the tensors.
struct RunState {
  int64_t next_rollout = 0;
  int64_t optimizer_steps = 0;
  int64_t weight_version = 0;
  int64_t skipped_steps = 0, skipped_in_a_row = 0;
  PromptCursorState cursor;
  std::vector<SampleGroup> buffer;    // groups under way, to be gone on with
  std::optional<RolloutAhead> ahead;  // to be learnt from next
  struct Learner {
    int64_t optimizer_steps = 0, skipped = 0, skipped_in_a_row = 0;
  };
  Learner critic = {};  // zeros without one
};

class RunFiles {
 public:
  // Makes the run directory, takes its lock (a second process is refused with Exit::usage), opens log.txt and writes
  // config.toml. Of several ranks the first does so, and the others write nothing there but what they add to
  // checkpoints. In a dry run nobody writes.
  RunFiles(const Settings& settings, Command command, int rank = 0);
  ~RunFiles();

  const std::string& directory() const { return directory_; }
  bool writes() const { return rank_ == 0; }
  // Fills session and optimizer from the newest checkpoint of --load (default: the run's own) and returns its state;
  // nullopt for a fresh start. Throws Error(Exit::input) when --load names a folder without checkpoints.
  // `more`: what the checkpoint holds beside the policy and its optimizer.
  std::optional<RunState> resume(Session&, TrainStep&, const std::vector<NamedWeights>& more = {});
  void save(const Session&, TrainStep&, const RunState&, const std::vector<NamedWeights>& more = {});
  // Exports the Hugging Face checkpoint; {rollout_id} in --save-hf is replaced. Returns its folder.
  std::string export_hf(const Session&, TrainStep&, int64_t rollout_id);
  void write_plan(const std::string& text);

 private:
  const Settings& settings_;
  std::string directory_;
  int rank_;
  int lock_ = -1;
};

// "{rollout_id}" replaced.
std::string numbered(const std::string& pattern, int64_t rollout_id);

}  // namespace furlong
