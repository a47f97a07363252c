// What a run reads before its first step: model, prompts, evaluation sets, the plan of its memory.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/evaluation.h"
#include "trainer/memory_plan.h"
#include "trainer/run_files.h"
#include "trainer/time_plan.h"

namespace furlong {

// What a run reads before it loads any weights, and the memory it will take.
struct RunInputs {
  const Settings& settings;
  World& world;
  RunFiles files;
  Session session;
  std::optional<PreparedPrompts> prompts;
  std::optional<PromptCursor> cursor;
  std::vector<EvalSet> eval_sets;
  std::unique_ptr<Judge> judge;
  std::unique_ptr<CallPool> environment;
  Workload work;
  int64_t rollouts = 0;
  CheckedPlan memory;
  Share block;  // used by rollout and training in turn, or a part by each

  // Loads the weights at its end, unless this is a dry run. Throws Error as its parts do.
  RunInputs(const Settings& s, World& w);
  // Training's part of the block.
  Share training_memory() const {
    const uint64_t at = memory.plan.training_at;
    return at == 0 ? block : block.part(at, block.bytes() - at);
  }
  // A step of this run, its responses as long as they may be.
  TimeInputs longest_step() const;
  // Memory, passes and time of the run from rollout `first` on. `measured`: seconds of a step so far.
  std::string plan_text(int64_t first, std::optional<double> measured = std::nullopt) const;

 private:
  void read_prompts();
  void read_lengths();
};

}  // namespace furlong
