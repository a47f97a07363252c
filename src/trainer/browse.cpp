#include "trainer/browse.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "base/text.h"
#include "data/rollout_stats.h"
#include "monitor/metrics.h"
#include "monitor/table.h"

namespace furlong {
namespace {

bool scored(const Trajectory& t) { return t.reward && std::isfinite(*t.reward); }

std::set<int64_t> mixed_groups(std::span<const Trajectory> trajectories) {
  std::map<int64_t, std::set<double>> rewards;
  for (const Trajectory& t : trajectories) {
    if (scored(t)) rewards[t.group_index].insert(*t.reward);
  }
  std::set<int64_t> mixed;
  for (const auto& [group, values] : rewards) {
    if (values.size() > 1) mixed.insert(group);
  }
  return mixed;
}

std::string reward_text(const Trajectory& t) { return scored(t) ? fmt::format("{:.6g}", *t.reward) : "-"; }

std::string log_prob_text(const Trajectory& t) {
  if (t.rollout_log_probs.empty()) return "-";
  const double sum = std::accumulate(t.rollout_log_probs.begin(), t.rollout_log_probs.end(), 0.0);
  return fmt::format("{:.4f}", sum / static_cast<double>(t.rollout_log_probs.size()));
}

std::string accept_text(const Trajectory& t) {
  if (t.spec_verify_steps <= 0) return "-";
  const double steps = static_cast<double>(t.spec_verify_steps);
  return fmt::format("{:.2f}", (static_cast<double>(t.spec_accepted) + steps) / steps);
}

// What several samples have in common, in the columns of the table.
std::vector<std::string> summary(const std::string& name, std::span<const Trajectory* const> samples) {
  std::vector<double> rewards, prompts, responses;
  size_t completed = 0;
  for (const Trajectory* t : samples) {
    if (scored(*t)) rewards.push_back(*t->reward);
    prompts.push_back(static_cast<double>(t->prompt_length()));
    responses.push_back(t->response_length);
    completed += t->status == Trajectory::Status::completed;
  }
  const std::string reward =
      rewards.empty() ? "-" : fmt::format("{:.3f}±{:.3f}", mean_of(rewards), sample_std_of(rewards));
  return {name,
          fmt::format("{} sample{}", samples.size(), samples.size() == 1 ? "" : "s"),
          reward,
          short_number(mean_of(prompts)),
          short_number(mean_of(responses)),
          fmt::format("{} completed", completed),
          "",
          "",
          ""};
}

// A text with its lines, each after two spaces.
std::string block(const std::string& text) {
  std::string out;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    out += line.empty() ? "\n" : "  " + printable(line, std::string::npos) + "\n";
    begin = end + 1;
  }
  return out;
}

}  // namespace

std::vector<const Trajectory*> matching(std::span<const Trajectory> trajectories, const SampleFilter& f) {
  const std::set<int64_t> mixed = f.mixed ? mixed_groups(trajectories) : std::set<int64_t>();
  std::vector<const Trajectory*> out;
  for (const Trajectory& t : trajectories) {
    if (f.group && t.group_index != *f.group) continue;
    if (f.sample && t.index != *f.sample) continue;
    if (!f.status.empty() && f.status != status_name(t.status)) continue;
    if (f.min_reward && !(scored(t) && *t.reward >= *f.min_reward)) continue;
    if (f.max_reward && !(scored(t) && *t.reward <= *f.max_reward)) continue;
    if (f.mixed && mixed.count(t.group_index) == 0) continue;
    if (!f.contains.empty() && (!t.response_text || t.response_text->find(f.contains) == std::string::npos)) continue;
    out.push_back(&t);
  }
  std::stable_sort(out.begin(), out.end(), [](const Trajectory* a, const Trajectory* b) {
    return std::pair(a->group_index, a->index) < std::pair(b->group_index, b->index);
  });
  return out;
}

std::string sample_table(std::span<const Trajectory* const> shown) {
  using Align = Table::Align;
  Table table({{"group"},
               {"sample", Align::right},
               {"reward", Align::right},
               {"prompt", Align::right},
               {"response", Align::right},
               {"status"},
               {"log-prob", Align::right},
               {"accept", Align::right},
               {"weights", Align::right}});
  for (size_t begin = 0; begin < shown.size();) {
    const int64_t group = shown[begin]->group_index;
    size_t end = begin;
    while (end < shown.size() && shown[end]->group_index == group) end++;
    table.add(summary(fmt::format("{}", group), shown.subspan(begin, end - begin)));
    for (; begin < end; begin++) {
      const Trajectory& t = *shown[begin];
      table.add({"", fmt::format("{}", t.index), reward_text(t), fmt::format("{}", t.prompt_length()),
                 fmt::format("{}", t.response_length), status_name(t.status), log_prob_text(t), accept_text(t),
                 fmt::format("{}", t.weight_version)});
    }
  }
  if (!shown.empty()) {
    table.add_rule();
    table.add(summary("all", shown));
  }
  return table.str();
}

std::string sample_texts(std::span<const Trajectory* const> shown) {
  std::string out;
  for (const Trajectory* t : shown) {
    out += fmt::format("\ngroup {}, sample {}: reward {}, {}, {} tokens\n", t->group_index, t->index, reward_text(*t),
                       status_name(t->status), t->response_length);
    if (t->label) out += fmt::format("label: {}\n", printable(t->label->text, 400));
    if (!t->extra_json.empty()) out += fmt::format("more: {}\n", printable(t->extra_json, 400));
    out += "prompt:\n" + (t->prompt_text ? block(*t->prompt_text) : std::string("  (not in the file)\n"));
    out += "response:\n" + (t->response_text ? block(*t->response_text) : std::string("  (not in the file)\n"));
  }
  return out;
}

}  // namespace furlong
