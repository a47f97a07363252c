#include "trainer/tail.h"

#include <algorithm>
#include <iterator>
#include <memory>

#include "base/check.h"

namespace furlong {

void TailTraining::take(std::vector<Trajectory> group) {
  std::move(group.begin(), group.end(), std::back_inserter(waiting_));
  if (!is_full()) return;
  std::sort(waiting_.begin(), waiting_.end(), [](const auto& a, const auto& b) { return a.index < b.index; });
  for (const auto& t : waiting_) {
    taken_.insert(t.group_index);
    tokens_ += std::ssize(t.tokens);
  }
  hand_over(std::exchange(waiting_, {}), false);
}

bool TailTraining::is_full() const {
  if (!pack_.dynamic) return std::ssize(waiting_) >= pack_.micro_batch_size;
  int64_t tokens = 0;
  for (const auto& t : waiting_) tokens += std::ssize(t.tokens);
  return tokens >= pack_.max_tokens;
}

void TailTraining::hand_over(std::vector<Trajectory> trajectories, bool last) {
  const bool first = !std::exchange(begun_, true);
  beside_.add([this, first, last, given = std::move(trajectories), added = false]() mutable {
    if (added) return step_.advance();
    added = true;
    if (first) step_.begin(samples_);
    auto targets = targets_(given);
    step_.add(std::move(given), std::move(targets), last);
    return true;
  });
}

Metrics TailTraining::finish(const std::vector<Trajectory>& all) {
  CHECK(begun_, "a tail without training");
  const double seconds = beside_.seconds();
  std::vector<Trajectory> rest;
  for (const auto& t : all) {
    if (!taken_.contains(t.group_index)) rest.push_back(t);
  }
  hand_over(std::move(rest), true);
  beside_.finish();
  Metrics metrics = step_.finish();
  metrics.emplace_back("perf/tail_train_time", seconds);
  metrics.emplace_back("perf/tail_tokens", static_cast<double>(tokens_));
  return metrics;
}

}  // namespace furlong
