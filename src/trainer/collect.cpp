#include "trainer/collect.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "data/rollout_stats.h"

namespace furlong {
namespace {

// Steps of the engine between a group's end and the decision on it, where others judge.
constexpr int64_t judging_steps = 32;

class Collector {
 public:
  Collector(const Session& session, Engine& engine, const PreparedPrompts& prompts, const RolloutTask& task,
            const CollectRules& rules, PromptCursor& cursor, std::vector<SampleGroup>& buffer,
            const Engine::Progress& progress, const EarlyGroups& early)
      : maker_(session, prompts, task),
        engine_(engine),
        rules_(rules),
        cursor_(cursor),
        buffer_(buffer),
        progress_(progress),
        early_(early),
        remote_(task.environment != nullptr || (task.judge != nullptr && task.judge->asks_others())) {}

  Collected run() {
    if (Judge* judge = maker_.task().judge) failed_before_ = judge->stats().failed_tries;
    if (maker_.session().mesh->is_alone() && maker_.task().environment == nullptr) {
      stream();
    } else {
      rounds();
    }
    if (!maker_.unscored().empty()) {
      log::warn("some responses could not be scored and do not count; the first: {}", maker_.unscored());
    }
    check_unscored();
    auto& all = out_.trajectories;
    if (out_.failure) all.insert(all.end(), dropped_.begin(), dropped_.end());
    std::sort(all.begin(), all.end(), [](const Trajectory& a, const Trajectory& b) { return a.index < b.index; });
    add_metrics();
    return std::move(out_);
  }

 private:
  struct Finished {
    int64_t due;  // the engine step by which it is decided on
    std::unique_ptr<SampleGroup> group;
  };

  struct Chosen {
    int64_t due;  // the engine step from which it may be learnt from
    std::unique_ptr<SampleGroup> group;
    bool settled, handed_out = false;
  };

  bool full() const { return kept_ == rules_.groups || out_.failure.has_value(); }

  // How many groups to draw now that `coming` may still be kept.
  int64_t wanted(int64_t coming) const {
    const int64_t missing = rules_.groups - kept_ - coming;
    if (missing <= 0) return 0;
    const int64_t more = (missing * rules_.at_a_time + rules_.groups - 1) / rules_.groups;
    return rules_.most_drawn == 0 ? more : std::min(more, rules_.most_drawn - drawn_);
  }

  void stream() {
    for (;;) {
      fill();
      if (full() || (open_.empty() && waiting_.empty())) break;
      engine_.step();
      step_++;
      queue_finished();
      decide();
      hand_out();
      if (progress_) progress_(static_cast<size_t>(kept_ + std::ssize(waiting_)) * samples(), engine_.stats().emitted);
      if (full()) break;
    }
    if (!full()) give_up();
    stop();
    for (auto& kept : chosen_) {
      if (!kept.settled) settle(*kept.group);
      take(out_.trajectories, *kept.group);
    }
  }

  size_t samples() const { return static_cast<size_t>(maker_.task().samples); }

  void fill() {
    std::vector<Request> requests;
    for (int64_t n = wanted(std::ssize(open_) + std::ssize(waiting_)); n > 0; n--) {
      auto group = std::make_unique<SampleGroup>();
      if (!buffer_.empty()) {
        *group = std::move(buffer_.front());
        buffer_.erase(buffer_.begin());
        maker_.resume(*group);
      } else {
        *group = maker_.begin(cursor_.next(maker_.task().samples));
      }
      drawn_++;
      const int64_t key = group->draw.group_index;
      out_.prompt_of[key] = group->draw.prompt;
      for (auto& request : maker_.requests(*group)) requests.push_back(std::move(request));
      if (group->finished()) ended_.push_back(key);
      open_[key] = std::move(group);
    }
    longest_first(requests);
    for (auto& request : requests) start(std::move(request));
    queue_finished();
  }

  void start(Request request) {
    const int64_t key = request.group_index, first = request.first_sample;
    SampleGroup& group = *open_.at(key);
    const auto sink = [this, key, first, &group](const Emitted& e) {
      if (e.finished == nullptr) return;
      maker_.take(group, static_cast<size_t>(first + e.sample), *e.finished);
      if (e.finished->reason != FinishReason::abort && group.finished()) ended_.push_back(key);
    };
    ids_[key].push_back(engine_.submit(std::move(request), sink));
  }

  // The groups that ended in this step, by group_index.
  void queue_finished() {
    std::sort(ended_.begin(), ended_.end());
    for (const int64_t key : ended_) {
      waiting_.push_back({step_ + (remote_ && rules_.nonzero_std ? judging_steps : 0), std::move(open_[key])});
      open_.erase(key);
      ids_.erase(key);
    }
    ended_.clear();
  }

  void decide() {
    while (!full() && !waiting_.empty() && (waiting_.front().due <= step_ || open_.empty())) {
      std::unique_ptr<SampleGroup> group = std::move(waiting_.front().group);
      waiting_.pop_front();
      std::string reason;
      if (rules_.nonzero_std) {
        settle(*group);
        std::vector<Trajectory> taken;
        for (const auto& sample : group->samples) taken.push_back(sample.trajectory);
        reason = drop_reason(taken);
      }
      if (!reason.empty()) {
        drops_[reason]++;
        if (remote_) take(dropped_, *group);
        check_unscored();
        continue;
      }
      chosen_.push_back({.due = step_ + (remote_ && !rules_.nonzero_std ? judging_steps : 0),
                         .group = std::move(group),
                         .settled = rules_.nonzero_std});
      kept_++;
    }
  }

  // Kept groups to be learnt from already, which thereby get their rewards.
  void hand_out() {
    if (early_.below <= 0 || full()) return;
    int64_t left = 0;
    for (const auto& [key, group] : open_) {
      left += std::count_if(group->samples.begin(), group->samples.end(), [](const auto& s) { return s.open; });
    }
    if (left >= early_.below) return;
    std::map<int64_t, Chosen*> ready;
    for (auto& kept : chosen_) {
      if (!kept.handed_out && kept.due <= step_) ready[kept.group->draw.group_index] = &kept;
    }
    for (auto& [key, kept] : ready) {
      if (!std::exchange(kept->settled, true)) settle(*kept->group);
      kept->handed_out = true;
      std::vector<Trajectory> group;
      for (const auto& sample : kept->group->samples) group.push_back(sample.trajectory);
      early_.take(std::move(group));
    }
  }

  // What is not needed any more: thrown away, or kept for the next rollout.
  void stop() {
    for (auto& [key, requests] : ids_) {
      for (const uint64_t id : requests) engine_.cancel(id);
    }
    while (engine_.step()) {
    }
    for (auto& late : waiting_) {
      unused_++;
      maker_.drop(*late.group);
    }
    for (auto& [key, group] : open_) {
      if (!rules_.partial) {
        unused_++;
        maker_.drop(*group);
        continue;
      }
      maker_.settle(*group);
      buffer_.push_back(std::move(*group));
    }
  }

  void settle(SampleGroup& group) {
    const auto start = std::chrono::steady_clock::now();
    maker_.settle(group);
    waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    for (const auto& sample : group.samples) {
      judged_++;
      unscored_ += !sample.trajectory.reward;
    }
  }

  static void take(std::vector<Trajectory>& into, SampleGroup& group) {
    for (auto& sample : group.samples) into.push_back(std::move(sample.trajectory));
  }

  // Whole rounds: all ranks sample their share, and decide alike on everyone's groups.
  void rounds() {
    while (!full()) {
      const int64_t n = wanted(0);
      if (n <= 0) return give_up();
      std::vector<PromptCursor::Draw> draws;
      for (int64_t i = 0; i < n; i++) draws.push_back(cursor_.next(maker_.task().samples));
      for (const auto& draw : draws) out_.prompt_of[draw.group_index] = draw.prompt;
      drawn_ += n;
      auto found = generate_trajectories(maker_.session(), engine_, maker_.prompts(), draws, maker_.task(), progress_);
      std::map<int64_t, std::vector<Trajectory>> groups;
      for (auto& t : found) groups[t.group_index].push_back(std::move(t));
      for (auto& [key, group] : groups) {
        for (const auto& t : group) {
          judged_++;
          unscored_ += !t.reward;
        }
        const std::string reason = rules_.nonzero_std ? drop_reason(group) : "";
        const bool keeps = reason.empty() && kept_ < rules_.groups;
        if (keeps) kept_++;
        if (!reason.empty()) drops_[reason]++;
        unused_ += reason.empty() && !keeps;
        auto& into = keeps ? out_.trajectories : dropped_;
        if (keeps || remote_) std::move(group.begin(), group.end(), std::back_inserter(into));
      }
      check_unscored();
    }
  }

  // At the end of a rollout, and when as many samples as it has were judged.
  void check_unscored() {
    const int64_t enough = rules_.groups * maker_.task().samples;
    if (out_.failure || !remote_ || judged_ < std::max<int64_t>(1, enough)) return;
    if (static_cast<double>(unscored_) <= rules_.max_unscored * static_cast<double>(judged_)) return;
    out_.failure.emplace(
        Exit::lost,
        fmt::format("{} of {} samples were not scored, more than --rm-max-unscored {} allows. The first: {}. Mend the "
                    "service or command and start the same command again",
                    unscored_, judged_, rules_.max_unscored,
                    maker_.unscored().empty() ? "see the warnings above" : maker_.unscored()));
  }

  void give_up() {
    if (out_.failure) return;
    std::vector<std::string> reasons;
    for (const auto& [reason, count] : drops_) reasons.push_back(fmt::format("{} {}", count, reason));
    out_.failure.emplace(
        Exit::input,
        fmt::format("{} groups were drawn for a rollout and {} of the {} it needs passed check_reward_nonzero_std; "
                    "dropped: {}. Prompts that are always or never solved teach nothing: choose others, sample more "
                    "(--n-samples-per-prompt), or raise --dynamic-sampling-max-groups",
                    drawn_, kept_, rules_.groups, fmt::join(reasons, ", ")));
  }

  void add_metrics() {
    for (const auto& [reason, count] : drops_) {
      out_.metrics.emplace_back("rollout/dynamic_filter/drop_" + reason, static_cast<double>(count));
    }
    if (remote_) {
      out_.metrics.emplace_back("perf/reward_wait_time", waited_);
      if (Judge* judge = maker_.task().judge) {
        const auto failed = static_cast<double>(judge->stats().failed_tries - failed_before_);
        out_.metrics.emplace_back("perf/reward_failed_tries", failed);
      }
    }
    if (!rules_.nonzero_std && rules_.at_a_time == rules_.groups) return;
    out_.metrics.emplace_back("rollout/groups_drawn", static_cast<double>(drawn_));
    out_.metrics.emplace_back("rollout/groups_unused", static_cast<double>(unused_));
    if (rules_.partial) out_.metrics.emplace_back("rollout/groups_under_way", static_cast<double>(buffer_.size()));
  }

  GroupMaker maker_;
  Engine& engine_;
  const CollectRules& rules_;
  PromptCursor& cursor_;
  std::vector<SampleGroup>& buffer_;
  const Engine::Progress& progress_;
  const EarlyGroups& early_;
  bool remote_;
  double waited_ = 0;  // seconds, for rewards
  int64_t failed_before_ = 0;
  int64_t step_ = 0, drawn_ = 0, kept_ = 0, unused_ = 0, judged_ = 0, unscored_ = 0;
  std::map<int64_t, std::unique_ptr<SampleGroup>> open_;  // by group_index
  std::map<int64_t, std::vector<uint64_t>> ids_;          // their requests
  std::vector<int64_t> ended_;                            // in this step
  std::deque<Finished> waiting_;                          // for a decision
  std::vector<Chosen> chosen_;
  std::vector<Trajectory> dropped_;
  std::map<std::string, int64_t> drops_;
  Collected out_;
};

}  // namespace

CollectRules collect_rules(const Settings& s) {
  const int64_t groups = *s.rollout_batch_size;
  return {.groups = groups,
          .at_a_time = s.over_sampling_batch_size.value_or(groups),
          .most_drawn = s.dynamic_sampling_max_groups.value_or(0),
          .nonzero_std = !s.dynamic_sampling_filter_path.empty(),
          .partial = s.partial_rollout,
          .max_unscored = s.rm_max_unscored};
}

std::string drop_reason(std::span<const Trajectory> group) {
  std::vector<double> rewards;
  for (const auto& t : group) {
    if (t.reward) rewards.push_back(*t.reward);
  }
  if (rewards.size() < 2) return "unscored";
  if (sample_std_of(rewards) > 1e-8) return "";
  return "zero_std_" + reward_bucket(rewards[0]);
}

void check_buffer(std::vector<SampleGroup>& buffer, const Settings& s, const Session& session) {
  if (buffer.empty()) return;
  if (!session.mesh->is_alone()) {
    fail(Exit::usage, "the checkpoint holds {} groups under way of --partial-rollout, which go on on one rank alone",
         buffer.size());
  }
  const auto samples = static_cast<size_t>(s.n_samples_per_prompt);
  const size_t gone = std::erase_if(buffer, [&](const SampleGroup& group) { return group.samples.size() != samples; });
  if (gone > 0) {
    log::warn("{} groups under way had another --n-samples-per-prompt than {} and are left out", gone, samples);
  }
}

Collected collect_rollout(const Session& session, Engine& engine, const PreparedPrompts& prompts,
                          const RolloutTask& task, const CollectRules& rules, PromptCursor& cursor,
                          std::vector<SampleGroup>& buffer, const Engine::Progress& progress,
                          const EarlyGroups& early) {
  CHECK(rules.groups > 0 && rules.at_a_time >= rules.groups, "{} groups, {} at a time", rules.groups, rules.at_a_time);
  return Collector(session, engine, prompts, task, rules, cursor, buffer, progress, early).run();
}

}  // namespace furlong
