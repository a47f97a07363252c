// A prompt's samples on their way from the draw to their rewards.
#pragma once
#include <functional>
#include <vector>

#include "data/trajectory.h"
#include "reward/judge.h"
#include "trainer/session.h"

namespace furlong {

struct SamplingLimits {
  SampleParams params;
  int64_t max_response = 0;  // tokens
  int64_t max_context = 0;   // prompt and response
  std::vector<int32_t> stop_ids;
  std::function<bool(std::span<const int32_t>)> stop_when;
  bool routes = false;  // trajectories get their routes
};

// What is wanted of each prompt.
struct RolloutTask {
  int64_t samples = 1;
  SamplingLimits limits;
  Judge* judge = nullptr;  // none: no rewards
  std::string reward_key;
  bool group_rm = false;    // one question for all of a group's samples
  bool mask_older = false;  // tokens of earlier weights are not trained on
  // Prompts whose responses were long start first. Not where the first groups to end are kept: a resumed run does not
  // know past lengths.
  bool longest_first = false;
  uint64_t seed = 0;
  int64_t weight_version = 0;
  CallPool* environment = nullptr;  // answers the model's turns; none: a response is one turn
  int64_t max_turns = 1;
};

struct SampleGroup {
  struct Sample {
    Trajectory trajectory;     // aborted while it is under way
    bool open = true;          // more tokens are to come
    bool judged = false;       // by an environment, or never to be
    bool handed_over = false;  // to the judge
    uint64_t ticket = 0;
  };
  PromptCursor::Draw draw;
  std::vector<Sample> samples;
  bool finished() const;
};

// As Engine::generate orders them: what is expected to end last starts first.
void longest_first(std::vector<Request>& requests);

// The groups of one prompt set and task. On a mesh the ranks that share a batch make the same ones; one of them judges.
class GroupMaker {
 public:
  GroupMaker(const Session& session, const PreparedPrompts& prompts, const RolloutTask& task);

  const Session& session() const { return session_; }
  const PreparedPrompts& prompts() const { return prompts_; }
  const RolloutTask& task() const { return task_; }
  // A fresh group: every sample open, with the prompt's tokens alone.
  SampleGroup begin(const PromptCursor::Draw& draw) const;
  // An earlier one to be gone on with: samples without room for more are closed, closed ones without a reward judged.
  void resume(SampleGroup& group);
  // What is left to sample: one request for all samples of a fresh group, else one for each open sample.
  std::vector<Request> requests(const SampleGroup& group) const;
  // Adds what was drawn to the sample.
  void extend(SampleGroup& group, size_t sample, const Completion& completion) const;
  // The same, and closes it unless it was aborted.
  void take(SampleGroup& group, size_t sample, const Completion& completion) const;
  // Closes a sample; what is closed goes to the judge, with group_rm once all of the group is.
  void close(SampleGroup& group, size_t sample, Trajectory::Status status) const;
  // Waits for the rewards of what was handed over.
  void settle(SampleGroup& group);
  // Nobody will settle this one.
  void drop(SampleGroup& group) const;
  // A sample that will not be judged.
  void note_unscored(const SampleGroup& group, const std::string& why);
  // How many more tokens a sample may have.
  int64_t room_for(const Trajectory& trajectory) const;
  // What is asked about a sample whose response is this text.
  RewardQuery query(const SampleGroup& group, size_t sample, const std::string& response) const;
  // The first reason for which a sample is unscored, with its place in the prompt file; "" for none.
  const std::string& unscored() const { return unscored_; }

 private:
  void hand_over(SampleGroup& group, size_t first, size_t last) const;
  const Session& session_;
  const PreparedPrompts& prompts_;
  const RolloutTask& task_;
  bool judges_;
  std::string unscored_;
};

}  // namespace furlong
