// train, sft and eval.
#include <unistd.h>

#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "furlong/commands.h"
#include "monitor/metrics.h"
#include "trainer/evaluation.h"
#include "trainer/memory_plan.h"
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
  const std::string reward_logs = settings.run_dir + "/reward";
  if (!settings.custom_rm_command.empty() || !settings.custom_generate_command.empty()) make_directories(reward_logs);
  Judge judge(judge_options(settings, reward_logs));
  const auto environment = make_environment(settings, session, reward_logs);
  const auto sets = load_eval_sets(session, settings, judge);
  if (sets.empty()) fail(Exit::usage, "--eval-prompt-data NAME FILE is needed: what to evaluate on");
  const auto [longest, requests] = work_of(sets);
  const CheckedPlan memory =
      require_memory(session, settings, {.rolls = true, .longest = longest, .requests = requests});
  load_weights(session, settings);
  EngineOptions options = engine_options(session.config, session.directory, settings, longest, requests);
  options.memory_bytes = memory.plan.pool;
  Engine engine(session.config, session.weights, options, *session.threads);
  std::vector<Trajectory> trajectories;
  const Metrics metrics = evaluate(session, settings, engine, sets, judge, environment.get(), &trajectories);
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
