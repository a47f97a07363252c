#include "trainer/run_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>

#include "base/ending.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "checkpoint/dist_folder.h"
#include "checkpoint/folder.h"
#include "checkpoint/hf.h"
#include "checkpoint/resume.h"
#include "ops/ops.h"
#include "parallel/agree.h"

namespace furlong {
namespace {

constexpr const char* state_format = "furlong.run_state";
constexpr int no_writer = -1;  // in place of a rank

Json group_json(const SampleGroup& group) {
  Json samples = Json::array();
  for (const auto& sample : group.samples) {
    samples.push_back({{"open", sample.open}, {"trajectory", trajectory_row(sample.trajectory)}});
  }
  return {{"prompt", group.draw.prompt},
          {"group_index", group.draw.group_index},
          {"first_index", group.draw.first_index},
          {"epoch", group.draw.epoch},
          {"samples", samples}};
}

SampleGroup group_of(const Json& json, const std::string& where) {
  SampleGroup group{.draw = {json.at("prompt"), json.at("group_index"), json.at("first_index"), json.at("epoch")},
                    .samples = {}};
  for (const Json& sample : json.at("samples")) {
    group.samples.push_back(
        {.trajectory = parse_trajectory(sample.at("trajectory").get<std::string>(), where), .open = sample.at("open")});
  }
  return group;
}

std::string to_json(const RunState& s) {
  Json json = {{"format", state_format},
               {"version", 1},
               {"next_rollout", s.next_rollout},
               {"optimizer_steps", s.optimizer_steps},
               {"weight_version", s.weight_version},
               {"skipped_steps", s.skipped_steps},
               {"skipped_in_a_row", s.skipped_in_a_row},
               {"exported", s.exported},
               {"isa", ops::isa_name()},
               {"cursor",
                {{"prompts", s.cursor.prompts},
                 {"epoch", s.cursor.epoch},
                 {"offset", s.cursor.offset},
                 {"group_index", s.cursor.group_index},
                 {"index", s.cursor.index}}}};
  if (s.critic.optimizer_steps + s.critic.skipped > 0) {
    json["critic"] = {{"optimizer_steps", s.critic.optimizer_steps},
                      {"skipped_steps", s.critic.skipped},
                      {"skipped_in_a_row", s.critic.skipped_in_a_row}};
  }
  for (const SampleGroup& group : s.buffer) json["buffer"].push_back(group_json(group));
  if (s.ahead) {
    Json& ahead = json["ahead"] = {{"trajectories", Json::array()}, {"metrics", Json::object()}};
    for (const auto& t : s.ahead->trajectories) ahead["trajectories"].push_back(trajectory_row(t));
    for (const auto& [name, value] : s.ahead->metrics) {
      if (!name.starts_with("perf/")) ahead["metrics"][name] = value;
    }
  }
  return json.dump(1);
}

RunState from_json(const std::string& text, const std::string& where) {
  const Json json = parse_json(text, where);
  try {
    if (json.at("format") != state_format || json.at("version") != 1) {
      fail(Exit::input, "{}: not the state of a furlong run of version 1", where);
    }
    RunState s;
    s.next_rollout = json.at("next_rollout");
    s.optimizer_steps = json.at("optimizer_steps");
    s.weight_version = json.at("weight_version");
    s.skipped_steps = json.at("skipped_steps");
    s.skipped_in_a_row = json.at("skipped_in_a_row");
    s.exported = json.value("exported", true);
    const Json& c = json.at("cursor");
    s.cursor = {c.at("prompts"), c.at("epoch"), c.at("offset"), c.at("group_index"), c.at("index")};
    if (json.contains("critic")) {
      const Json& critic = json["critic"];
      s.critic = {critic.at("optimizer_steps"), critic.at("skipped_steps"), critic.at("skipped_in_a_row")};
    }
    if (json.contains("buffer")) {
      for (const Json& group : json["buffer"]) s.buffer.push_back(group_of(group, where));
    }
    if (json.contains("ahead")) {
      RolloutAhead& ahead = s.ahead.emplace();
      for (const Json& row : json["ahead"].at("trajectories")) {
        ahead.trajectories.push_back(parse_trajectory(row.get<std::string>(), where));
      }
      for (const auto& [name, value] : json["ahead"].at("metrics").items()) ahead.metrics.emplace_back(name, value);
    }
    if (json.at("isa") != ops::isa_name()) {
      log::warn(
          "{} was written with the instruction set {}, this machine runs {}: the run goes on, its bits will differ",
          where, json.at("isa").get<std::string>(), ops::isa_name());
    }
    return s;
  } catch (const nlohmann::json::exception& e) {
    fail(Exit::input, "{}: a key of the run's state is missing or of the wrong type ({})", where, e.what());
  }
}

std::vector<NamedWeights> named_sets(const Session& session, TrainStep& step, const std::vector<NamedWeights>& more) {
  Optimizer& optimizer = step.optimizer();
  std::vector<NamedWeights> sets = {{"weights", &session.weights}};
  if (optimizer.has_masters()) sets.push_back({"masters", &optimizer.masters()});
  sets.push_back({"exp_avg", &optimizer.exp_avg()});
  sets.push_back({"exp_avg_sq", &optimizer.exp_avg_sq()});
  sets.insert(sets.end(), more.begin(), more.end());
  return sets;
}

// Who holds a lock is written into its file, for those who come second.
void take_lock(int fd, const std::string& directory) {
  std::array<char, 300> text{};
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const ssize_t n = pread(fd, text.data(), text.size() - 1, 0);
    std::string holder(text.data(), n > 0 ? static_cast<size_t>(n) : 0);
    holder = printable(holder.substr(0, holder.find('\n')));
    fail(Exit::usage,
         "another process is using the run directory {}{}; wait for it, end it, or choose another --run-dir", directory,
         holder.empty() ? "" : fmt::format(" ({})", holder));
  }
  gethostname(text.data(), text.size() - 1);
  const std::string own = fmt::format("process {} on {}\n", getpid(), text.data());
  // Only a message would lack it.
  [[maybe_unused]] const bool written = ftruncate(fd, 0) == 0 && pwrite(fd, own.data(), own.size(), 0) > 0;
}

bool same_place(const std::string& a, const std::string& b) {
  return std::filesystem::weakly_canonical(a) == std::filesystem::weakly_canonical(b);
}

bool inside(const std::string& path, const std::string& directory) {
  const auto relative =
      std::filesystem::weakly_canonical(path).lexically_relative(std::filesystem::weakly_canonical(directory));
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

std::string numbered(const std::string& pattern, int64_t rollout_id) {
  std::string out = pattern;
  const std::string key = "{rollout_id}";
  for (size_t at = out.find(key); at != std::string::npos; at = out.find(key))
    out.replace(at, key.size(), std::to_string(rollout_id));
  return out;
}

RunFiles::RunFiles(const Settings& settings, Command command, int rank)
    : settings_(settings), directory_(settings.run_dir), rank_(settings.dry_run ? no_writer : rank) {
  if (!writes()) return;
  if (const auto kind = checkpoint_kind(settings.save);
      kind == CheckpointKind::hf || kind == CheckpointKind::torch_dist) {
    fail(Exit::usage,
         "--save {} holds a checkpoint of another kind, {}; choose another folder for training checkpoints",
         settings.save, kind == CheckpointKind::hf ? "in the Hugging Face layout" : "torch_dist");
  }
  make_directories(directory_);
  const std::string lock = directory_ + "/.lock";
  lock_ = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock_ < 0) fail(Exit::resources, "cannot write in the run directory {}: {}", directory_, std::strerror(errno));
  take_lock(lock_, directory_);
  log::open_file(directory_ + "/log.txt");
  write_file_atomic(directory_ + "/config.toml", fmt::format("# {} settings; instruction set {}\n{}", name_of(command),
                                                             ops::isa_name(), to_toml(settings, command)));
}

RunFiles::~RunFiles() {
  if (lock_ >= 0) close(lock_);
}

std::optional<RunState> RunFiles::resume(Session& session, TrainStep& step, const std::vector<NamedWeights>& more) {
  const std::string &own = settings_.save, &other = settings_.load;
  const bool from_other = !other.empty() && !loads_weights_alone(settings_) && !same_place(other, own);
  const auto newest_of = [&](const std::string& directory) -> std::optional<LoadedCheckpoint> {
    if (directory == nowhere) return std::nullopt;
    // The first rank has looked for all: folders may appear on one host before they do on another.
    const bool there = !from_first(session.mesh->world(), std::filesystem::exists(directory) ? "there" : "").empty();
    if (!there) return std::nullopt;
    return load_latest(directory, named_sets(session, step, more), {}, *session.mesh);
  };
  std::optional<LoadedCheckpoint> found = newest_of(own);
  if (from_other && found && writes()) {
    log::info(
        "--load {} was for the start: this run has checkpoints of its own and goes on from the newest. To start from "
        "--load again, choose another --run-dir",
        other);
  }
  if (from_other && !found) {
    found = newest_of(other);
    if (!found && !inside(other, directory_)) {
      fail(Exit::input,
           "--load {}: there is no training checkpoint in that folder. Check the path, or leave --load out to start "
           "from --hf-checkpoint.",
           other);
    }
  }
  if (!found) {
    if (own != nowhere) log::info("no checkpoint in {} yet: a fresh start", own);
    return std::nullopt;
  }
  const RunState state = from_json(found->state, found->path + "/state.json");
  step.weights_loaded();
  step.optimizer().set_steps(state.optimizer_steps);
  step.set_skipped(state.skipped_steps, state.skipped_in_a_row);
  log::info("resuming {} at rollout {} (optimizer step {})", found->path, state.next_rollout, state.optimizer_steps);
  return state;
}

bool RunFiles::save(const Session& session, TrainStep& step, const RunState& state, bool again_later,
                    const std::vector<NamedWeights>& more) {
  constexpr int most_failures = 3;
  try {
    save_checkpoint(settings_.save, state.next_rollout - 1, named_sets(session, step, more), to_json(state),
                    {.keep = static_cast<int>(settings_.keep_checkpoints)}, *session.mesh);
    failures_ = 0;
    return true;
  } catch (const Error& error) {
    failures_++;
    if (error.code() != Exit::resources || !again_later) throw;
    if (failures_ >= most_failures) {
      fail(Exit::resources, "{} saves in a row have failed; earlier checkpoints are as they were. The last: {}",
           failures_, error.what());
    }
    if (writes()) {
      log::warn(
          "the checkpoint after rollout {} could not be saved; the run goes on and tries again after {} ({} of {} "
          "failures). "
          "{}",
          state.next_rollout, settings_.save_interval ? "--save-interval" : "the last rollout", failures_,
          most_failures, error.what());
    }
    return false;
  }
}

bool RunFiles::commit(const Session& session, TrainStep& step, RunState& state, bool last, bool exports,
                      const std::vector<NamedWeights>& more) {
  std::exception_ptr failed;
  if (exports && settings_.save_hf != nowhere) {
    try {
      const std::string folder = export_hf(session, step, state.next_rollout - 1);
      if (writes()) log::info("Hugging Face checkpoint: {}", folder);
    } catch (const Error& error) {
      if (error.code() != Exit::resources) throw;
      failed = std::current_exception();
    }
  }
  state.exported = !failed;
  const bool saved = settings_.save != nowhere && save(session, step, state, !last, more);
  if (failed) std::rethrow_exception(failed);
  return saved;
}

int agreed_signal(Group& ranks) {
  if (ranks.size() == 1) return ending_signal();
  for (const auto& of_rank : ranks.gather_bytes(std::to_string(ending_signal()))) {
    if (of_rank != "0") return std::stoi(of_rank);
  }
  return 0;
}

void end_by_signal(int signal, const std::string& kept) {
  const bool interrupted = signal == SIGINT;
  fail(interrupted ? exit_interrupted : exit_terminated,
       "{}: the run has ended; {}. The same command goes on from there.", interrupted ? "SIGINT" : "SIGTERM", kept);
}

std::string RunFiles::export_hf(const Session& session, TrainStep& step, int64_t rollout_id) {
  const std::string pattern = settings_.save_hf.empty() ? directory_ + "/hf" : settings_.save_hf;
  SaveHfOptions options{
      .source_dir = session.directory, .output_dir = numbered(pattern, rollout_id), .config_text = {}};
  if (settings_.save_hf_dtype == "bf16") options.dtype = HfDtype::bf16;
  if (settings_.save_hf_dtype == "fp32") options.dtype = HfDtype::f32;
  if (writes()) {
    remove_left_folders(options.output_dir);
    remove_left_folders(options.output_dir + "/new");  // of an export that was to replace one
  }
  save_hf(options, step.optimizer().masters(), *session.mesh);
  return options.output_dir;
}

void RunFiles::write_plan(const std::string& text) {
  if (writes()) write_file_atomic(directory_ + "/plan.txt", text);
}

}  // namespace furlong
