#include "trainer/groups.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/json.h"
#include "data/json_row.h"

namespace furlong {
namespace {

std::vector<int32_t> response_of(const Trajectory& t) { return {t.tokens.begin() + t.prompt_length(), t.tokens.end()}; }

// The weights that a response's parts come from, where they are several: {"weight_versions":[3,4]}.
std::string with_version(const std::string& extra, int64_t before, int64_t version) {
  Json json = extra.empty() ? Json::object() : parse_json(extra, "trajectory");
  if (!json.contains("weight_versions")) json["weight_versions"] = {before};
  json["weight_versions"].push_back(version);
  return json.dump();
}

}  // namespace

void longest_first(std::vector<Request>& requests) {
  std::stable_sort(requests.begin(), requests.end(),
                   [](const Request& a, const Request& b) { return a.expected_new > b.expected_new; });
}

bool SampleGroup::finished() const {
  return std::none_of(samples.begin(), samples.end(), [](const Sample& s) { return s.open; });
}

GroupMaker::GroupMaker(const Session& session, const PreparedPrompts& prompts, const RolloutTask& task)
    : session_(session), prompts_(prompts), task_(task) {
  const MeshRank& place = session.mesh->place();
  judges_ = task.judge != nullptr && session.tokenizer && place.stage == 0 && place.row_part() == 0;
}

SampleGroup GroupMaker::begin(const PromptCursor::Draw& draw) const {
  SampleGroup group{.draw = draw, .samples = {}};
  for (int64_t i = 0; i < task_.samples; i++) {
    Trajectory t;
    t.tokens = prompts_.tokens[static_cast<size_t>(draw.prompt)];
    t.group_index = draw.group_index;
    t.index = draw.first_index + i;
    t.status = Trajectory::Status::aborted;
    t.weight_version = task_.weight_version;
    t.label = prompts_.set[draw.prompt].label;
    group.samples.push_back({.trajectory = std::move(t)});
  }
  return group;
}

void GroupMaker::resume(SampleGroup& group) {
  for (size_t i = 0; i < group.samples.size(); i++) {
    auto& sample = group.samples[i];
    Trajectory& t = sample.trajectory;
    if (task_.mask_older) t.loss_mask.assign(t.loss_mask.size(), 0);
    if (sample.open && room_for(t) <= 0) {
      close(group, i, Trajectory::Status::truncated);
    } else if (!sample.open && !task_.group_rm) {
      hand_over(group, i, i);
    }
  }
}

std::vector<Request> GroupMaker::requests(const SampleGroup& group) const {
  std::vector<Request> requests;
  const auto add = [&](size_t first, int64_t samples) {
    const Trajectory& t = group.samples[first].trajectory;
    requests.push_back({.prompt = t.tokens,
                        .samples = samples,
                        .params = task_.limits.params,
                        .max_new_tokens = room_for(t),
                        .stop_ids = task_.limits.stop_ids,
                        .stop_when = task_.limits.stop_when,
                        .seed = task_.seed,
                        .group_index = group.draw.group_index,
                        .first_sample = static_cast<int64_t>(first),
                        .routes = task_.limits.routes});
    if (task_.longest_first && !prompts_.past_responses.empty()) {
      requests.back().expected_new = prompts_.past_responses[static_cast<size_t>(group.draw.prompt)];
    }
  };
  const bool fresh = std::all_of(group.samples.begin(), group.samples.end(), [](const SampleGroup::Sample& s) {
    return s.open && s.trajectory.response_length == 0;
  });
  if (fresh) {
    add(0, std::ssize(group.samples));
    return requests;
  }
  for (size_t i = 0; i < group.samples.size(); i++) {
    if (group.samples[i].open) add(i, 1);
  }
  return requests;
}

void GroupMaker::extend(SampleGroup& group, size_t sample, const Completion& c) const {
  Trajectory& t = group.samples[sample].trajectory;
  CHECK(group.samples[sample].open, "sample {} of group {} has ended", sample, group.draw.group_index);
  if (!c.tokens.empty() && t.response_length > 0 && t.weight_version != task_.weight_version) {
    t.extra_json = with_version(t.extra_json, t.weight_version, task_.weight_version);
  }
  if (!c.tokens.empty()) t.weight_version = task_.weight_version;
  t.tokens.insert(t.tokens.end(), c.tokens.begin(), c.tokens.end());
  t.response_length += static_cast<int32_t>(c.tokens.size());
  t.loss_mask.resize(static_cast<size_t>(t.response_length), 1);
  t.rollout_log_probs.insert(t.rollout_log_probs.end(), c.log_probs.begin(), c.log_probs.end());
  if (task_.limits.routes) t.routes = std::make_shared<const Routes>(c.routes);
  t.spec_accepted += c.accepted;
  t.spec_drafted += c.drafted;
  t.spec_verify_steps += c.verify_steps;
}

void GroupMaker::take(SampleGroup& group, size_t sample, const Completion& c) const {
  extend(group, sample, c);
  if (c.reason == FinishReason::abort) return;
  close(group, sample, c.reason == FinishReason::stop ? Trajectory::Status::completed : Trajectory::Status::truncated);
}

void GroupMaker::close(SampleGroup& group, size_t sample, Trajectory::Status status) const {
  auto& closed = group.samples[sample];
  closed.open = false;
  closed.trajectory.status = status;
  if (session_.tokenizer) closed.trajectory.response_text = decode_ids(session_, response_of(closed.trajectory));
  if (!task_.group_rm) {
    hand_over(group, sample, sample);
  } else if (group.finished()) {
    hand_over(group, 0, group.samples.size() - 1);
  }
}

void GroupMaker::hand_over(SampleGroup& group, size_t first, size_t last) const {
  if (!judges_ || group.samples[first].judged || group.samples[first].trajectory.reward) return;
  std::vector<RewardQuery> queries;
  for (size_t i = first; i <= last; i++) queries.push_back(query(group, i, *group.samples[i].trajectory.response_text));
  const uint64_t ticket = task_.judge->submit(queries, task_.group_rm);
  for (size_t i = first; i <= last; i++) {
    group.samples[i].handed_over = true;
    group.samples[i].ticket = ticket;
  }
}

void GroupMaker::settle(SampleGroup& group) {
  std::vector<Score> scores;
  size_t next = 0;
  for (size_t i = 0; i < group.samples.size(); i++) {
    auto& sample = group.samples[i];
    if (!sample.handed_over) continue;
    if (next == scores.size()) {
      scores = task_.judge->wait(sample.ticket);
      next = 0;
    }
    const Score& score = scores[next++];
    sample.handed_over = false;
    sample.trajectory.reward = score.reward;
    if (!score.reward) note_unscored(group, score.error);
  }
}

void GroupMaker::drop(SampleGroup& group) const {
  for (auto& sample : group.samples) {
    if (std::exchange(sample.handed_over, false)) task_.judge->forget(sample.ticket);
  }
}

void GroupMaker::note_unscored(const SampleGroup& group, const std::string& why) {
  if (unscored_.empty()) unscored_ = fmt::format("{}: {}", prompts_.set.where(group.draw.prompt), why);
}

int64_t GroupMaker::room_for(const Trajectory& t) const {
  return std::min(task_.limits.max_response - t.response_length, task_.limits.max_context - std::ssize(t.tokens));
}

RewardQuery GroupMaker::query(const SampleGroup& group, size_t sample, const std::string& response) const {
  const Trajectory& t = group.samples[sample].trajectory;
  const Prompt& prompt = prompts_.set[group.draw.prompt];
  RewardQuery query{.prompt = {},
                    .response = response,
                    .label = prompt.label,
                    .metadata = prompt.metadata,
                    .tokens = t.tokens,
                    .number = t.index,
                    .reward_key = task_.reward_key};
  if (prompts_.rendered) {
    append_json_string(query.prompt, decode_ids(session_, {t.tokens.begin(), t.tokens.begin() + t.prompt_length()}));
  } else if (prompt.is_chat()) {
    Json messages = Json::array();
    for (const auto& m : prompt.messages) {
      Json message = m.others.empty() ? Json::object() : parse_json(m.others, "message");
      message["role"] = m.role;
      if (!message.contains("content")) message["content"] = m.content;
      messages.push_back(std::move(message));
    }
    query.prompt = messages.dump();
  } else {
    append_json_string(query.prompt, prompt.text);
  }
  return query;
}

}  // namespace furlong
