// What no single value shows to be wrong: the rules between settings, by their topic, gathering complaints.
#pragma once
#include <fmt/format.h>

#include <optional>
#include <string>
#include <utility>

#include "trainer/settings.h"

namespace furlong {

// Of a command's settings; rules may fill in what follows from others.
class SettingsRules {
 public:
  SettingsRules(Settings& settings, Command command, Texts& complaints)
      : s_(settings), command_(command), complaints_(complaints) {}

 protected:
  bool is(Command command) const { return command_ == command; }
  template <class... Args>
  void complain(fmt::format_string<Args...> format, Args&&... args) {
    complaints_.push_back(fmt::format(format, std::forward<Args>(args)...));
  }
  void require(const std::string& value, const char* flag, const char* what) {
    if (value.empty()) complain("`furlong {}` needs {} ({})", name_of(command_), flag, what);
  }
  void top_k(const char* flag, std::optional<int64_t> k) {
    if (k && *k == 0) complain("{} 0: needs -1 (all tokens), or 1 and more", flag);
  }

  Settings& s_;
  Command command_;
  Texts& complaints_;
};

// Of the algorithm: estimators, clipping, divergence, importance weights (train alone).
void algorithm_conflicts(Settings& settings, Texts& complaints);
// Of sampling, rewards and evaluation.
void rollout_conflicts(Settings& settings, Command command, Texts& complaints);

}  // namespace furlong
