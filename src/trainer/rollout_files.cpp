#include "trainer/rollout_files.h"

#include <algorithm>
#include <atomic>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/text.h"

namespace furlong {
namespace {

std::string rollout_folder(const std::string& run_dir) { return run_dir + "/rollout"; }

void write_with_prompts(const std::string& path, const Session& session, const std::vector<Trajectory>& trajectories) {
  FileWriter file(path);
  const auto write = [&](const std::string& line) { file.write((line + "\n").data(), line.size() + 1); };
  write(trajectory_header());
  std::string prompt;
  const Trajectory* of = nullptr;  // whose prompt that is
  for (const Trajectory& t : trajectories) {
    if (!session.tokenizer || t.prompt_text) {
      write(trajectory_row(t));
      continue;
    }
    const auto end = t.tokens.begin() + t.prompt_length();
    const bool same = of != nullptr && of->group_index == t.group_index && of->prompt_length() == t.prompt_length();
    if (!same) prompt = decode_ids(session, {t.tokens.begin(), end});
    of = &t;
    Trajectory shown = t;
    shown.prompt_text = prompt;
    write(trajectory_row(shown));
  }
  file.commit();
}

}  // namespace

std::string rollout_path(const std::string& run_dir, int64_t rollout_id) {
  return fmt::format("{}/{}.jsonl", rollout_folder(run_dir), rollout_id);
}

std::vector<int64_t> kept_rollouts(const std::string& run_dir) {
  std::vector<int64_t> found;
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator(rollout_folder(run_dir), code)) {
    const std::filesystem::path name = entry.path().filename();
    const auto number = parse_integer(name.stem().string());
    if (name.extension() == ".jsonl" && number && *number >= 0) found.push_back(*number);
  }
  std::sort(found.begin(), found.end());
  return found;
}

void keep_rollout(const std::string& run_dir, int64_t rollout_id, int64_t count, const Session& session,
                  const std::vector<Trajectory>& trajectories) {
  static std::atomic<bool> warned{false};
  if (count <= 0) return;
  try {
    make_directories(rollout_folder(run_dir));
    // Later ones are of a past that a resumed run does not have.
    for (const int64_t id : kept_rollouts(run_dir)) {
      if (id <= rollout_id - count || id > rollout_id) std::filesystem::remove(rollout_path(run_dir, id));
    }
    write_with_prompts(rollout_path(run_dir, rollout_id), session, trajectories);
  } catch (const std::exception& e) {
    if (!warned.exchange(true)) log::warn("trajectories could not be kept, the run goes on: {}", e.what());
  }
}

}  // namespace furlong
