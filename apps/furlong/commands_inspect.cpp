// inspect: what a checkpoint holds, what a recipe would take, and what a run has sampled.
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <numeric>

#include "base/error.h"
#include "base/host_memory.h"
#include "base/log.h"
#include "base/text.h"
#include "checkpoint/dist_folder.h"
#include "checkpoint/safetensors.h"
#include "furlong/commands.h"
#include "furlong/presets.h"
#include "monitor/table.h"
#include "trainer/browse.h"
#include "trainer/memory_plan.h"
#include "trainer/options.h"
#include "trainer/rollout_files.h"
#include "trainer/run_files.h"
#include "trainer/time_plan.h"

namespace furlong {
namespace {

constexpr double gib = 1073741824.0;
// Where no GPU is at hand: an H100 as its driver reports it, what the CUDA context of one takes, and the host of eight.
constexpr double assumed_gpu_gib = 79.6, assumed_taken_gib = 0.6, assumed_host_gib = 2048;
constexpr int64_t assumed_prompt = 512;

void print(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) {
    fail(Exit::resources, "cannot write to standard output");
  }
}

void list_tensors(const std::string& folder) {
  Table table({{"tensor"}, {"dtype"}, {"shape"}, {"size", Table::Align::right}});
  uint64_t bytes = 0, tensors = 0;
  const SafetensorsDirectory directory(folder);
  for (const auto& file : directory.files()) {
    for (const auto& entry : file.entries()) {
      table.add(
          {entry.name, entry.dtype, fmt::format("{}", fmt::join(entry.shape, " x ")), human_bytes(entry.bytes.size())});
      bytes += entry.bytes.size();
      tensors++;
    }
  }
  table.add_rule();
  table.add({fmt::format("{} tensors in {} files", tensors, directory.files().size()), "", "", human_bytes(bytes)});
  print(table.str());
}

void list_torch_dist(const std::string& folder) {
  Table table({{"tensor"}, {"dtype"}, {"shape"}, {"pieces", Table::Align::right}, {"size", Table::Align::right}});
  uint64_t bytes = 0;
  const TorchDistFolder dist(folder);
  for (const auto& t : dist.index().tensors) {
    const int64_t numel = std::accumulate(t.shape.begin(), t.shape.end(), int64_t{1}, std::multiplies<>());
    const auto size = static_cast<uint64_t>(numel) * static_cast<uint64_t>(bits_of_file_dtype(t.dtype) / 8);
    table.add({printable(t.key, 200), printable(t.dtype), fmt::format("{}", fmt::join(t.shape, " x ")),
               std::to_string(t.chunks.size()), human_bytes(size)});
    bytes += size;
  }
  table.add_rule();
  table.add({fmt::format("{} tensors in {} files", dist.index().tensors.size(), dist.index().files.size()), "", "", "",
             human_bytes(bytes)});
  print(table.str());
}

struct Model {
  ModelConfig config;
  std::string from;  // where it was taken from
};

// The checkpoint's config.json, else the preset that is given or whose name the folder bears.
Model model_of(const Settings& s) {
  if (!s.hf_checkpoint.empty() && std::filesystem::exists(s.hf_checkpoint + "/config.json")) {
    return {read_model_config(s.hf_checkpoint), s.hf_checkpoint + "/config.json"};
  }
  std::string name = s.preset, folder = std::filesystem::path(s.hf_checkpoint).filename().string();
  std::transform(folder.begin(), folder.end(), folder.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const std::string preset : preset_names) {
    if (name.empty() && preset.ends_with('b') && folder.ends_with("-" + preset)) name = preset;
  }
  if (name.empty() && folder.ends_with("35b-a3b")) name = "35b-a3b";
  if (name.empty()) {
    fail(Exit::usage,
         "inspect --plan needs a model: {}/config.json is not there; give --hf-checkpoint DIR or --preset NAME",
         s.hf_checkpoint.empty() ? "DIR" : s.hf_checkpoint);
  }
  const std::string absent = s.hf_checkpoint.empty() ? "" : " (" + s.hf_checkpoint + " is not there)";
  return {make_preset(name, std::nullopt).config, "the preset " + name + absent};
}

MachineMemory machine_of(const Settings& s) {
  MachineMemory there;
  const bool cuda = s.device == "cuda";
  bool found = false;
  if (cuda && cuda::built()) {
    try {
      cuda::open();
      there = machine_memory(Device::cuda, s);
      found = true;
    } catch (const Error&) {
      // No GPU here: plan for one elsewhere.
    }
  }
  if (!found) {
    if (cuda) {
      there.device_total = static_cast<uint64_t>(s.gpu_memory_gib.value_or(assumed_gpu_gib) * gib);
      there.device_taken = static_cast<uint64_t>(assumed_taken_gib * gib);
    }
    there.host_available = cuda ? static_cast<uint64_t>(assumed_host_gib * gib) : available_host_memory();
    if (s.host_memory_gib) there.host_available = static_cast<uint64_t>(*s.host_memory_gib * gib);
  }
  return there;
}

int plan(Settings s) {
  const auto [config, from] = model_of(s);
  if (!s.gpus && s.given.contains("actor_num_gpus_per_node")) s.gpus = s.actor_num_nodes * s.actor_num_gpus_per_node;
  const int64_t context = config.max_position_embeddings > 0 ? config.max_position_embeddings : INT32_MAX;
  const int64_t most = std::min(context, s.rollout_max_context_len.value_or(context));
  const int64_t prompt = std::min(most - 1, s.rollout_max_prompt_len.value_or(assumed_prompt));
  const int64_t response = std::min(most - prompt, s.rollout_max_response_len.value_or(1024));
  Workload work{.trains = true, .rolls = !s.debug_train_only, .longest = prompt + response, .shortest = prompt + 1};
  work.requests = s.rollout_batch_size.value_or(1) * s.n_samples_per_prompt;
  PlanInputs in = plan_inputs(s, config, work, machine_of(s));
  in.may_offload = in.may_spread = true;
  if (const auto problems = layout_problems(config, in.layout); !problems.empty()) {
    fail(Exit::usage, "this layout is not possible: {}", fmt::join(problems, "; "));
  }
  ThreadPool threads(1);
  const DryRuns runs = dry_runs(s, work, threads);
  const MemoryPlan found = plan_memory(in, runs);
  const PlanLayout& l = in.layout;
  print(fmt::format("model: {}\n{} {}: data {} x context {} x tensor {} x pipeline {}, experts {} x width {}\n\n{}\n",
                    from, l.gpus, in.cuda ? "GPUs" : "process", l.data(), l.context, l.tensor, l.pipeline, l.expert,
                    l.expert_tensor, plan_table(found, in)));
  if (in.cuda && !in.device_measured) {
    print(
        fmt::format("no GPU here: one of {} and a host of {} are planned with; --gpu-memory-gib and --host-memory-gib "
                    "say otherwise\n\n",
                    human_bytes(in.device_total), human_bytes(in.host_available)));
  }
  const TimeInputs step = time_inputs(s, in, found.sequences, prompt, response);
  print(time_table(step));
  if (s.num_rollout) print(time_estimate(step, *s.num_rollout));
  if (found.fits()) {
    print("\nit fits\n");
    return 0;
  }
  const auto nearest = nearest_that_fits(in, runs);
  print(fmt::format("\nit does not fit:\n  {}\n", fmt::join(found.problems, "\n  ")));
  print(nearest.empty() ? std::string("no setting makes it fit\n")
                        : fmt::format("what would fit:\n  {}\n", fmt::join(nearest, "\n  ")));
  return static_cast<int>(Exit::resources);
}

// The file of a kept rollout: of a trajectory file's pattern, or of a run directory.
std::string rollout_file(const Settings& s) {
  if (!s.load_debug_rollout_data.empty()) return numbered(s.load_debug_rollout_data, *s.rollout);
  const auto there = kept_rollouts(s.run_dir);
  if (there.empty()) {
    fail(Exit::input, "{}/rollout has no trajectories: is --run-dir a run's folder, made with --keep-rollouts above 0?",
         s.run_dir);
  }
  const int64_t id = *s.rollout < 0 ? there.back() : *s.rollout;
  if (std::find(there.begin(), there.end(), id) == there.end()) {
    fail(Exit::input, "{} is not there; rollouts {} are (--keep-rollouts says how many stay)",
         rollout_path(s.run_dir, id), fmt::join(there, ", "));
  }
  return rollout_path(s.run_dir, id);
}

int show_rollout(const Settings& s) {
  const std::string path = rollout_file(s);
  const auto trajectories = read_trajectories(path);
  const auto shown = matching(trajectories, {.group = s.group,
                                             .sample = s.sample,
                                             .status = s.status,
                                             .min_reward = s.min_reward,
                                             .max_reward = s.max_reward,
                                             .contains = s.contains,
                                             .mixed = s.mixed});
  print(fmt::format("{}: {} of {} samples\n\n", printable(path, 300), shown.size(), trajectories.size()));
  if (!shown.empty()) print(sample_table(shown));
  if (s.text) print(sample_texts(shown));
  return 0;
}

}  // namespace

int run_inspect(const Settings& settings) {
  if (settings.plan) return plan(settings);
  if (settings.rollout) return show_rollout(settings);
  const std::string& folder = settings.load.empty() ? settings.hf_checkpoint : settings.load;
  if (checkpoint_kind(folder) == CheckpointKind::torch_dist) {
    list_torch_dist(folder);
  } else {
    list_tensors(folder);
  }
  return 0;
}

}  // namespace furlong
