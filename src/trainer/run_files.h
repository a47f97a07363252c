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
  Learner critic = {};   // zeros without one
  bool exported = true;  // false: the last rollout's weights have still to be exported
};

class RunFiles {
 public:
  // Makes the run directory, takes its lock (a second process is refused with Exit::usage, naming the first), opens
  // log.txt and writes
  // config.toml. Of several ranks the first does so, and the others write nothing there but what they add to
  // checkpoints. In a dry run nobody writes.
  RunFiles(const Settings& settings, Command command, int rank = 0);
  ~RunFiles();

  const std::string& directory() const { return directory_; }
  bool writes() const { return rank_ == 0; }
  // Fills session and optimizer from the run's own newest checkpoint, else from the newest of --load, and returns its
  // state; nullopt for a fresh start. Throws Error(Exit::input) when the run has none and --load names a folder
  // without. `more`: what the checkpoint holds beside the policy and its optimizer.
  std::optional<RunState> resume(Session&, TrainStep&, const std::vector<NamedWeights>& more = {});
  // False where the disk failed and there will be another time: earlier checkpoints stand, and a warning says so.
  // Throws Error(Exit::resources) at the third failure in a row, or when there is no other time.
  bool save(const Session&, TrainStep&, const RunState&, bool again_later = false,
            const std::vector<NamedWeights>& more = {});
  // What is to be kept after a step: the export where one is due, then the checkpoint. A run that is cut off in between
  // does the step again, and one whose checkpoint says so has exported. Whether the checkpoint is there.
  bool commit(const Session&, TrainStep&, RunState&, bool last, bool exports,
              const std::vector<NamedWeights>& more = {});
  // Exports the Hugging Face checkpoint; {rollout_id} in --save-hf is replaced. Returns its folder.
  std::string export_hf(const Session&, TrainStep&, int64_t rollout_id);
  void write_plan(const std::string& text);

 private:
  const Settings& settings_;
  std::string directory_;
  int rank_;
  int lock_ = -1;
  int failures_ = 0;  // saves in a row
};

// Ends the run where a signal has asked for it: throws Error(exit_interrupted or exit_terminated). Nothing without a
// signal. `kept`: what was committed, for the message.
[[noreturn]] void end_by_signal(int signal, const std::string& kept);
// The signal that some rank has had, the same on all; 0: none.
int agreed_signal(Group&);
// Thrown from within work that can be dropped.
struct Interrupted {
  int signal = 0;
};

// "{rollout_id}" replaced.
std::string numbered(const std::string& pattern, int64_t rollout_id);

}  // namespace furlong
