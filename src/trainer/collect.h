// One rollout's groups: drawn, sampled, judged, and kept or replaced until there are enough.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "trainer/rollout.h"

namespace furlong {

struct CollectRules {
  int64_t groups = 1;        // to keep
  int64_t at_a_time = 1;     // drawn when none is there; later in proportion to the missing
  int64_t most_drawn = 0;    // 0: no limit
  bool nonzero_std = false;  // keep only groups whose rewards differ
  bool partial = false;      // what is under way at the end goes on in the next rollout (one rank alone)
  double max_unscored = 1;   // of the samples judged, where others judge
};
CollectRules collect_rules(const Settings&);

struct Collected {
  std::vector<Trajectory> trajectories;  // of the groups kept, in order of their samples; all judged where it failed
  std::map<int64_t, int64_t> prompt_of;  // of every group_index here, the prompt
  Metrics metrics;                       // rollout/dynamic_filter/drop_*, rollout/groups_*, perf/reward_*
  std::optional<Error> failure;          // too much is unscored, or too few groups pass
};

// Groups that are learnt from before the rollout has ended.
struct EarlyGroups {
  // Once nothing is left to draw and fewer sequences than this are to be sampled to their ends ...
  int64_t below = 0;
  // ... this gets every group that is kept and has its rewards, once each, those of one engine step by group_index.
  std::function<void(std::vector<Trajectory>)> take;
};

// Groups are decided on in the order in which they finish, those of one engine step by group_index, and where others
// judge a fixed number of engine steps later: by no clock. `buffer`: groups of an earlier rollout to go on with; holds
// those of this one afterwards. On several ranks groups come in whole rounds.
Collected collect_rollout(const Session&, Engine&, const PreparedPrompts&, const RolloutTask&, const CollectRules&,
                          PromptCursor&, std::vector<SampleGroup>& buffer, const Engine::Progress& progress = {},
                          const EarlyGroups& early = {});

// Of a checkpoint: leaves out groups of another size, saying so. Throws Error(Exit::usage) on several ranks.
void check_buffer(std::vector<SampleGroup>& buffer, const Settings&, const Session&);

// Why a group is not to be learnt from: "zero_std_1.0", "unscored"; "" if it is.
std::string drop_reason(std::span<const Trajectory> group);

}  // namespace furlong
