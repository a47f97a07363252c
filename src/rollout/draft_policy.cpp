#include "rollout/draft_policy.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace furlong {
namespace {

// Verifications that the estimate remembers, about; and what it begins with, that drafts are tried at all.
constexpr double remembered = 4096, supposed = 8, supposed_rate = 0.6;
// After so many steps without drafts a few try them; twice as many after each try that was in vain, up to the last.
constexpr int64_t first_pause = 128, longest_pause = 1024, tried_for = 4;

}  // namespace

double StepCosts::ratio(int64_t n) const {
  const auto right = std::lower_bound(sequences.begin(), sequences.end(), n);
  const auto value = [&](size_t i) { return drafted[i] / plain[i]; };
  if (right == sequences.begin()) return value(0);
  if (right == sequences.end()) return value(sequences.size() - 1);
  const auto i = static_cast<size_t>(right - sequences.begin());
  const double a = static_cast<double>(sequences[i - 1]), b = static_cast<double>(sequences[i]);
  const double t = (static_cast<double>(n) - a) / (b - a);
  const auto between = [&](const std::vector<double>& y) { return y[i - 1] + t * (y[i] - y[i - 1]); };
  return between(drafted) / between(plain);
}

DraftPolicy::DraftPolicy(int64_t drafts, StepCosts costs)
    : drafts_(drafts),
      costs_(std::move(costs)),
      pause_(first_pause),
      verifications_(supposed),
      emitted_(supposed * (1 + supposed_rate * static_cast<double>(drafts))) {
  CHECK(costs_.plain.size() == costs_.sequences.size() && costs_.drafted.size() == costs_.sequences.size(),
        "costs of {} numbers of sequences: {} and {}", costs_.sequences.size(), costs_.plain.size(),
        costs_.drafted.size());
}

bool DraftPolicy::pays(int64_t sequences) {
  if (!costs_.defined() || sequences == 0) return true;
  if (accept_length() >= costs_.ratio(sequences)) {
    left_out_ = 0;
    pause_ = first_pause;
    return true;
  }
  left_out_++;
  if (left_out_ <= pause_) return false;
  if (left_out_ == pause_ + tried_for) {
    left_out_ = 0;
    pause_ = std::min(2 * pause_, longest_pause);
  }
  return true;
}

void DraftPolicy::record(int64_t verifications, int64_t emitted) {
  verifications_ += static_cast<double>(verifications);
  emitted_ += static_cast<double>(emitted);
  if (verifications_ < remembered) return;
  verifications_ /= 2;
  emitted_ /= 2;
}

std::string DraftPolicy::text() const {
  if (!costs_.defined()) return "";
  std::string at, ratios;
  for (size_t i = 0; i < costs_.sequences.size(); i++) {
    const char* comma = i == 0 ? "" : ", ";
    at += fmt::format("{}{}", comma, costs_.sequences[i]);
    ratios += fmt::format("{}{:.2f}", comma, costs_.drafted[i] / costs_.plain[i]);
  }
  return fmt::format(
      "speculation: with {} drafts a step of {} sequences takes {} times as long as without; where fewer tokens than "
      "that are accepted, drafts are left out",
      drafts_, at, ratios);
}

}  // namespace furlong
