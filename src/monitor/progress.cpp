#include "monitor/progress.h"

#include <fmt/format.h>

#include <algorithm>

#include "monitor/metrics.h"
#include "monitor/table.h"

namespace furlong {
namespace {

constexpr auto draw_interval = std::chrono::milliseconds(100);
constexpr size_t label_columns = 22;
constexpr int bar_columns = 20;

}  // namespace

std::string progress_text(const std::string& label, int64_t done, int64_t total, double seconds) {
  const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1.0;
  const int filled = static_cast<int>(share * bar_columns);
  std::string text = fmt::format("{}  [{:#<{}}{:-<{}}] {:3}%", clip_columns(label, label_columns), "", filled, "",
                                 bar_columns - filled, static_cast<int>(share * 100));
  if (total < 1000000) text += fmt::format("  {}/{}", done, total);
  if (done > 0 && done < total) text += fmt::format("  ETA {}", short_duration(seconds * (1 - share) / share));
  return text;
}

Progress::Progress(std::string label, int64_t total, bool terminal, std::FILE* out)
    : label_(std::move(label)), total_(std::max<int64_t>(total, 0)), out_(terminal ? out : nullptr) {
  for (char& c : label_) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  start_ = drawn_ = Clock::now();
}

Progress::~Progress() { clear(); }

void Progress::update(int64_t done) {
  done_ = std::clamp<int64_t>(done, 0, total_);
  if (out_ == nullptr) return;
  const auto now = Clock::now();
  if (now - drawn_ < draw_interval) return;
  draw(now);
}

void Progress::draw(Clock::time_point now) {
  const double seconds = std::chrono::duration<double>(now - start_).count();
  // Carriage return, the text, erase to the end of the line.
  std::fputs(fmt::format("\r{}\x1b[K", progress_text(label_, done_, total_, seconds)).c_str(), out_);
  std::fflush(out_);
  drawn_ = now;
  visible_ = true;
}

void Progress::clear() {
  if (!visible_) return;
  std::fputs("\r\x1b[K", out_);
  std::fflush(out_);
  visible_ = false;
}

}  // namespace furlong
