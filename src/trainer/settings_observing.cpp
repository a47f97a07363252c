// Rows of the table of settings: what a run shows of itself, and how inspect reads it.
#include "trainer/settings_row.h"

namespace furlong::setting {

void add_observing(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::observing, a...); };
  t.insert(
      t.end(),
      {
          row("dry_run", &Settings::dry_run, T,
              "print the plan of this run, its memory, passes and time, and end: no weights are read, nothing is "
              "written")
              .differs("not in miles"),
          row("keep_rollouts", &Settings::keep_rollouts, T,
              "newest rollouts whose trajectories stay in the run directory (rollout/N.jsonl); 0: none")
              .unit("rollouts")
              .from(0)
              .differs("not in miles, where --save-debug-rollout-data keeps all or none"),
          row("machine_tflops", &Settings::machine_tflops, T,
              "ceiling of arithmetic to measure steps against; default: as measured on H100, H200 or Zen 4 cores")
              .unit("TFLOP/s a GPU, or of the CPU")
              .above(0)
              .to(1e6)
              .differs("not in miles"),
          row("machine_bandwidth", &Settings::machine_bandwidth, T,
              "ceiling of memory traffic to measure steps against; default: as --machine-tflops")
              .unit("GB/s a GPU, or of the CPU")
              .above(0)
              .to(1e6)
              .differs("not in miles"),
          row("use_wandb", &Settings::use_wandb, T | S,
              "say the command that brings the run's metrics.jsonl to Weights & Biases")
              .differs("nothing is sent: the program talks to no service"),
          row("wandb_project", &Settings::wandb_project, T | S, "project in that command"),
          row("wandb_team", &Settings::wandb_team, T | S, "entity in that command"),
          row("rollout", &Settings::rollout, X,
              "show the trajectories of this rollout of --run-dir (or of --load-debug-rollout-data); -1: the newest")
              .unit("number")
              .from(-1)
              .differs("not in miles, as the rest of these"),
          row("group", &Settings::group, X, "only this group (group_index)").from(0),
          row("sample", &Settings::sample, X, "only this sample (index)").from(0),
          row("status", &Settings::status, X, "only samples that ended so")
              .choices({"completed", "truncated", "aborted", "failed"}),
          row("min_reward", &Settings::min_reward, X, "only samples with at least this reward").from(-1e9).to(1e9),
          row("max_reward", &Settings::max_reward, X, "only samples with at most this reward").from(-1e9).to(1e9),
          row("mixed", &Settings::mixed, X, "only groups whose rewards differ: those that teach something"),
          row("contains", &Settings::contains, X, "only samples whose response holds this text"),
          row("text", &Settings::text, X, "prompts and responses too, control characters escaped"),
      });
}

}  // namespace furlong::setting
