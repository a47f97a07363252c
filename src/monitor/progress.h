// A bar for long work on a terminal; silent elsewhere.
#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace furlong {

class Progress {
 public:
  // `terminal` says whether `out` is one (the caller knows; without it nothing is written). The bar takes one line of
  // at most 79 columns, is drawn at most ten times a second and is wiped by clear() or at the end of its life. Control
  // characters in the label are shown as "?". Not for use from several threads at once.
  Progress(std::string label, int64_t total, bool terminal, std::FILE* out = stderr);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done);  // clipped to 0..total
  void advance(int64_t n = 1) { update(done_ + n); }
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(Clock::time_point now);

  std::string label_;
  int64_t total_;
  int64_t done_ = 0;
  std::FILE* out_;  // null: silent
  Clock::time_point start_, drawn_;
  bool visible_ = false;
};

// The bar's text: "label  [####----]  40%  4/10  ETA 1m05s", at most 79 columns. seconds is the time spent so far.
std::string progress_text(const std::string& label, int64_t done, int64_t total, double seconds);

}  // namespace furlong
