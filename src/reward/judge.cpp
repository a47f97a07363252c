#include "reward/judge.h"

#include <cmath>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "data/json_row.h"

namespace furlong {
namespace {

constexpr const char* remote = "remote_rm";

Score no_score(std::string why) { return {std::nullopt, std::move(why), {}, {}}; }

// A number, or what an object has under `key` or "reward".
Score read_reward(const Json& value, const std::string& key) {
  if (value.is_boolean()) return {value.get<bool>() ? 1.0 : 0.0, {}, {}, {}};
  if (value.is_number()) {
    const auto x = value.get<double>();
    return std::isfinite(x) ? Score{x, {}, {}, {}} : no_score("the reward is not finite");
  }
  if (value.is_object()) {
    for (const std::string& name : {key, std::string("reward")}) {
      const auto it = name.empty() ? value.end() : value.find(name);
      if (it == value.end()) continue;
      if (!it->is_null()) return read_reward(*it, key);
      if (!value.contains("error")) return no_score("the reward is null");
    }
    const auto error = value.find("error");
    if (error != value.end() && error->is_string()) return no_score(printable(error->get<std::string>(), 300));
  }
  return no_score(fmt::format("no reward in the answer {}; expected a number{}",
                              printable(value.dump(-1, ' ', false, Json::error_handler_t::replace)),
                              value.is_object() ? ", or name the key that holds it with --reward-key" : ""));
}

}  // namespace

Label label_of(const LabelValue& value) {
  switch (value.kind) {
    case LabelValue::Kind::none: return Label::none();
    case LabelValue::Kind::string: return Label::string(value.text);
    case LabelValue::Kind::integer: return {Label::Kind::integer, value.text};
    case LabelValue::Kind::floating: return Label::real(value.number);
    case LabelValue::Kind::boolean: return Label::boolean(value.number != 0);
    case LabelValue::Kind::other: break;
  }
  return Label::other();
}

std::optional<double> reward_of(const Score& score, const std::string& reward_key) {
  if (reward_key == "acc") return score.acc ? std::optional<double>(*score.acc ? 1.0 : 0.0) : std::nullopt;
  if (!reward_key.empty() && reward_key != "score") {
    fail(Exit::usage, "--reward-key {}: the rewards here have the keys score and acc", reward_key);
  }
  return score.reward;
}

std::string reward_question(const RewardQuery& query, bool with_metadata) {
  std::string out = "{\"prompt\":" + query.prompt + ",\"response\":";
  append_json_string(out, query.response);
  out += ",\"label\":";
  append_json_label(out, query.label);
  if (with_metadata) out += ",\"metadata\":" + query.metadata;
  return out + "}";
}

std::vector<Score> read_rewards(const std::string& answer, size_t count, const std::string& reward_key, bool is_list) {
  std::vector<Score> scores;
  try {
    const Json json = parse_json(answer, "the answer");
    if (!is_list) return {read_reward(json, reward_key)};
    const Json& list = json.is_object() && json.contains("rewards") ? json["rewards"] : json;
    if (list.is_array() && list.size() == count) {
      for (const Json& item : list) scores.push_back(read_reward(item, reward_key));
      return scores;
    }
    const bool says = json.is_object() && json.contains("error") && json["error"].is_string();
    const std::string why =
        says ? printable(json["error"].get<std::string>(), 300)
             : fmt::format("the answer to {} samples is not a list of {}: {}", count, count, printable(answer));
    return std::vector<Score>(count, no_score(why));
  } catch (const Error& e) {
    return std::vector<Score>(count, no_score(e.what()));
  }
}

Judge::Judge(const JudgeOptions& options) : options_(options) {
  if (!options_.service.url.empty() || !options_.service.command.empty()) {
    pool_ = std::make_unique<CallPool>(options_.service);
  }
  const bool by_command = !options_.service.command.empty();
  if (options_.rm_type == remote) {
    if (!pool_ || by_command) fail(Exit::usage, "--rm-type {} needs --rm-url URL: the service to ask", remote);
  } else if (!options_.rm_type.empty()) {
    rule(options_.rm_type);
  }
}

const Scorer& Judge::rule(const std::string& name) {
  auto& scorer = rules_[name];
  if (!scorer) {
    try {
      scorer = make_scorer(name, options_.nltk_data);
    } catch (...) {
      rules_.erase(name);
      throw;
    }
  }
  return *scorer;
}

// The rule of a sample; "" where others judge it.
std::string Judge::rm_type_of(const RewardQuery& query) const {
  if (!options_.service.command.empty()) return "";
  std::string name = options_.rm_type;
  // Most rows have no metadata; the rest were checked.
  if (query.metadata.find("rm_type") != std::string::npos) {
    const Json json = parse_json(query.metadata, "metadata");
    const auto it = json.find("rm_type");
    if (it != json.end() && it->is_string() && !it->get_ref<const std::string&>().empty()) name = *it;
  }
  return name == remote ? "" : name;
}

void Judge::check(const std::string& metadata, const std::string& where) {
  if (!options_.service.command.empty()) return;
  const std::string name = rm_type_of({.metadata = metadata});
  if (name.empty()) {
    if (pool_ || options_.may_lack_rule) return;
    fail(Exit::input,
         "{}: nothing says how its responses are scored; give --rm-type RULE, or \"rm_type\" in its metadata{}", where,
         options_.rm_type.empty() ? "" : "; remote_rm needs --rm-url");
  }
  try {
    rule(name).check(metadata);
  } catch (const Error& e) {
    fail(Exit::input, "{}: metadata: {}", where, e.what());
  }
}

uint64_t Judge::submit(const std::vector<RewardQuery>& samples, bool together) {
  CHECK(!together || options_.service.batch == 1, "groups in batches");
  Pending pending;
  pending.together = together;
  std::vector<std::string> bodies;
  // A single question over HTTP has the three keys that such services know.
  const bool bare = options_.service.command.empty() && !together && options_.service.batch == 1;
  for (size_t i = 0; i < samples.size(); i++) {
    const RewardQuery& query = samples[i];
    pending.reward_keys.push_back(query.reward_key);
    pending.scores.emplace_back();
    const std::string name = rm_type_of(query);
    if (name.empty() && !pool_) {
      CHECK(options_.may_lack_rule, "a sample without a rule");
      pending.scores.back().error = "the environment gave no reward, and there is no --rm-type";
      continue;
    }
    if (name.empty()) {
      pending.asked.push_back(i);
      bodies.push_back(reward_question(query, !bare));
      continue;
    }
    const Label label = label_of(query.label);
    Score score = rule(name).score({.response = query.response,
                                    .label = label,
                                    .metadata = query.metadata,
                                    .tokens = query.tokens,
                                    .number = query.number});
    score.reward = reward_of(score, query.reward_key);
    if (!score.reward && score.error.empty()) score.error = fmt::format("{} gives no {}", name, query.reward_key);
    pending.scores.back() = std::move(score);
  }
  if (together && !bodies.empty()) {
    std::string body = "{\"samples\":[";
    for (size_t i = 0; i < bodies.size(); i++) body += (i > 0 ? "," : "") + bodies[i];
    pending.calls.push_back(pool_->submit(body + "]}"));
  } else {
    for (auto& body : bodies) pending.calls.push_back(pool_->submit(std::move(body)));
  }
  pending_[next_] = std::move(pending);
  return next_++;
}

void Judge::forget(uint64_t ticket) {
  const auto it = pending_.find(ticket);
  if (it == pending_.end()) return;
  for (const uint64_t call : it->second.calls) pool_->forget(call);
  pending_.erase(it);
}

std::vector<Score> Judge::wait(uint64_t ticket) {
  const auto it = pending_.find(ticket);
  CHECK(it != pending_.end(), "ticket {}", ticket);
  Pending pending = std::move(it->second);
  pending_.erase(it);
  const size_t each = pending.calls.empty() ? 0 : pending.asked.size() / pending.calls.size();
  for (size_t call = 0; call < pending.calls.size(); call++) {
    const Called called = pool_->wait(pending.calls[call]);
    const size_t first = call * each;
    const std::string& key = pending.reward_keys[pending.asked[first]];
    const auto found = called.error.empty() ? read_rewards(called.text, each, key, pending.together)
                                            : std::vector<Score>(each, no_score(called.error));
    for (size_t i = 0; i < each; i++) pending.scores[pending.asked[first + i]] = found[i];
  }
  return std::move(pending.scores);
}

}  // namespace furlong
