// The trajectories of a run's newest rollouts, which stay in its directory to be looked at: RUN/rollout/N.jsonl.
#pragma once
#include <string>
#include <vector>

#include "data/trajectory.h"
#include "trainer/session.h"

namespace furlong {

// "RUN/rollout/N.jsonl".
std::string rollout_path(const std::string& run_dir, int64_t rollout_id);

// Keeps the rollout as a trajectory file whose rows have the prompt's text too (special tokens as in the checkpoint's
// vocabulary), and removes the files of all rollouts but the `count` up to this one. The same trajectories give the
// same bytes. What cannot be written is warned of, once in a process, and nothing more.
void keep_rollout(const std::string& run_dir, int64_t rollout_id, int64_t count, const Session&,
                  const std::vector<Trajectory>& trajectories);

// The numbers of the rollouts that a run directory holds, rising.
std::vector<int64_t> kept_rollouts(const std::string& run_dir);

}  // namespace furlong
