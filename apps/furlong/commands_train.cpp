// train, sft and eval.
#include <unistd.h>

#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "furlong/commands.h"
#include "monitor/metrics.h"
#include "trainer/memory_plan.h"
#include "trainer/rollout.h"
#include "trainer/trainer.h"

namespace furlong {

int run_train(const Settings& settings, World& world) {
  train(settings, world, isatty(STDERR_FILENO) == 1);
  return 0;
}

int run_sft(const Settings& settings, World& world) {
  supervised(settings, world, isatty(STDERR_FILENO) == 1);
  return 0;
}

int run_eval(const Settings& settings, World& world) {
  Session session = open_session(settings, world);
  if (settings.rm_type.empty())
    fail(Exit::usage, "--rm-type RULE is needed: how responses are scored (deepscaler, dapo, math)");
  const auto scorer = make_scorer(settings.rm_type);
  const auto sets = load_eval_sets(session, settings);
  if (sets.empty()) fail(Exit::usage, "--eval-prompt-data NAME FILE is needed: what to evaluate on");
  const SamplingLimits limits = eval_limits(session, settings);
  int64_t longest = 0, requests = 0;
  for (const auto& set : sets) {
    longest = std::max(longest, std::min(limits.max_context, set.prompts.longest + limits.max_response));
    requests = std::max(requests, set.prompts.set.size() * settings.n_samples_per_eval_prompt);
  }
  const CheckedPlan memory =
      require_memory(session, settings, {.rolls = true, .longest = longest, .requests = requests});
  load_weights(session, settings);
  EngineOptions options = engine_options(session.config, session.directory, settings, longest, requests);
  options.memory_bytes = memory.plan.pool;
  Engine engine(session.config, session.weights, options, *session.threads);
  std::vector<Trajectory> trajectories;
  const Metrics metrics = evaluate(session, settings, engine, sets, *scorer, &trajectories);
  for (const auto& [name, value] : metrics) {
    const std::string line = fmt::format("{} {}\n", name, value);
    if (fwrite(line.data(), 1, line.size(), stdout) != line.size())
      fail(Exit::resources, "cannot write to standard output");
  }
  if (!settings.run_dir.empty()) {
    make_directories(settings.run_dir);
    std::filesystem::remove(settings.run_dir + "/metrics.jsonl");
    MetricsWriter writer(settings.run_dir + "/metrics.jsonl", 0);
    writer.write(0, metrics);
    writer.sync();
    write_trajectories(settings.run_dir + "/trajectories.jsonl", trajectories);
  }
  return 0;
}

}  // namespace furlong
