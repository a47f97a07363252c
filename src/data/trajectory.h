// Trajectories (one sampled response each) and their jsonl file, which joins rollout and training.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/label.h"
#include "data/routes.h"

namespace furlong {

class LineAppender;

struct Trajectory {
  enum class Status { completed, truncated, aborted, failed };

  std::vector<int32_t> tokens;           // prompt, then response
  int32_t response_length = 0;           // the last tokens; less than tokens.size()
  std::vector<uint8_t> loss_mask;        // (response_length) 0 or 1
  std::optional<double> reward;          // none: unscored
  int64_t group_index = 0;               // of the prompt's draw, rising over the run
  int64_t index = 0;                     // of the sample, rising over the run
  std::vector<float> rollout_log_probs;  // (response_length), or empty when unknown; natural logarithm
  // (response_length) old and reference log-probs to use instead of computing them.
  std::optional<std::vector<float>> log_probs, ref_log_probs;
  Status status = Status::completed;
  int64_t weight_version = 0;  // of the weights that sampled it
  std::optional<std::string> prompt_text, response_text;
  std::optional<LabelValue> label;
  // Speculative decoding: drafts accepted, drafts made, verification steps. 0 without it.
  int64_t spec_accepted = 0, spec_drafted = 0, spec_verify_steps = 0;
  // Of every token but the last, where they were recorded. Not in the jsonl file.
  std::shared_ptr<const Routes> routes;
  // A JSON object with the row's other keys, in file order and with their text unchanged; "" when there are none.
  std::string extra_json;

  int64_t prompt_length() const { return static_cast<int64_t>(tokens.size()) - response_length; }
};

const char* status_name(Trajectory::Status status);

// Reads a trajectory file (path, path@[a:b] or -; the slice counts trajectories). Its first row may be
// {"format":"furlong.trajectory","version":1}. tokens, response_length, reward (a number or null), group_index and
// index are needed; an absent loss_mask means all ones, an absent status "completed". Throws Error(Exit::input) with
// file:line and the key for anything malformed; a torn last line is dropped with a warning. A file without rows gives
// none.
std::vector<Trajectory> read_trajectories(const std::string& spec);

// The one row {"format":...} and a trajectory's row, without newline. Floats are written with the fewest digits that
// read back as the same float. A reward that is not finite is written as unscored; a log-prob that is not finite
// throws Error(Exit::numerics).
std::string trajectory_header();
std::string trajectory_row(const Trajectory& trajectory);
// The trajectory of such a row; `where` stands for the file in errors.
Trajectory parse_trajectory(std::string_view row, const std::string& where);

// Writes a whole file, complete or not at all. Throws Error(Exit::resources).
void write_trajectories(const std::string& path, std::span<const Trajectory> trajectories);

// Appends to a trajectory file, which it makes, with its header row, if need be; a torn last line is cut off first.
// Errors are Error(Exit::resources).
class TrajectoryWriter {
 public:
  explicit TrajectoryWriter(const std::string& path);
  ~TrajectoryWriter();
  void add(const Trajectory& trajectory);
  void close();  // puts everything on the disk; nothing may be added afterwards

 private:
  std::unique_ptr<LineAppender> file_;
};

}  // namespace furlong
