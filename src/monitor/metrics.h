// The run's numbers: metrics.jsonl, one object a step, and the line a step prints. Losing a metric never stops a run.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace furlong {

class EventWriter;
class LineAppender;

class MetricsWriter {
 public:
  // Continues the file so that step `next_step` comes next: rows of this and later steps are dropped (the file is
  // rewritten whole or not at all), a torn last line too. next_step = 0 starts over. Nothing here throws on a file
  // that cannot be read or written: one warning says so, and the run goes on. `events`: a folder for the same numbers
  // as TensorBoard's events (monitor/tensorboard.h); "" for none.
  MetricsWriter(std::string path, int64_t next_step, const std::string& events = "");
  ~MetricsWriter();

  // Appends {"step":step, name:value, ...} in the given order, doubles with the fewest digits that read back equal. A
  // value that is not finite is written as null and warned of once per name. Names are distinct and not "step".
  void write(int64_t step, std::span<const std::pair<std::string, double>> values);
  // Puts the rows on the disk; call it before a checkpoint that counts on them is committed.
  void sync();

 private:
  void open();
  void warn_once(const std::string& why);
  std::string path_;
  int64_t next_step_;
  std::unique_ptr<LineAppender> file_;
  std::unique_ptr<EventWriter> events_;
  bool warned_ = false;
  std::set<std::string> not_finite_;
};

// The last `count` values of that name in a file of metrics, in its order; none where there is no such file. What
// cannot be read is left out.
std::vector<double> newest_values(const std::string& path, const std::string& name, size_t count);

// One step as the terminal shows it. Times in seconds, lengths in tokens; what is absent is left out.
struct StepLine {
  int64_t step = 0;   // from 0
  int64_t steps = 0;  // of the run
  std::optional<double> reward, reward_std;
  std::optional<double> response_length;  // mean
  std::optional<double> kl;               // between train and rollout log-probs
  std::optional<double> grad_norm;        // before clipping
  std::optional<double> accept_length;    // tokens per verification
  std::optional<double> rollout_seconds, train_seconds;
  std::optional<double> tokens_per_second;
  std::optional<double> eta_seconds;
  std::optional<double> limit_share;  // the least time of such a step (plan/time.h) over the step's
};

// At most 120 columns whatever the values, without a newline. Where figures are at their widest the speed gives way,
// then the share of the limit.
std::string format_step_line(const StepLine& line);

// A number in at most 6 columns, three digits where they fit: "0.512", "2.91", "12.3k", "1.2e-4", "nan".
std::string short_number(double value);
// A time span in at most 6 columns: "0.42s", "12.3s", "4m05s", "3h12m", "12d04h", ">999d"; "?" when it is none.
std::string short_duration(double seconds);

}  // namespace furlong
