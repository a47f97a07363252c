#include "trainer/rollout.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/log.h"
#include "data/rollout_stats.h"

namespace furlong {
namespace {

std::vector<int32_t> stop_ids(const Session& session, const Settings& settings) {
  std::vector<int32_t> ids;
  if (!settings.ignore_eos) ids = session.stop_ids;
  for (const int64_t id : settings.rollout_stop_token_ids) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

int64_t context_limit(const Session& session, const Settings& settings) {
  const int64_t model = session.config.max_position_embeddings > 0 ? session.config.max_position_embeddings
                                                                   : std::numeric_limits<int32_t>::max();
  return std::min(model, settings.rollout_max_context_len.value_or(model));
}

// The draws of this rank's data parallel rank: every so manieth group.
std::vector<PromptCursor::Draw> draws_here(const std::vector<PromptCursor::Draw>& all, const MeshRank& place) {
  std::vector<PromptCursor::Draw> mine;
  for (const auto& draw : all) {
    if (draw.group_index % place.data_size == place.data) mine.push_back(draw);
  }
  return mine;
}

// Everyone's trajectories, in the order of their samples.
std::vector<Trajectory> gather(std::vector<Trajectory> mine, const Mesh& mesh) {
  if (mesh.is_alone()) return mine;
  std::string rows;
  // The ranks that share a batch have sampled the same.
  if (mesh.place().stage == 0 && mesh.place().row_part() == 0) {
    for (const auto& t : mine) rows += trajectory_row(t) + "\n";
  }
  std::vector<Trajectory> all;
  const auto messages = mesh.world().gather_bytes(rows);
  for (size_t r = 0; r < messages.size(); r++) {
    const std::string where = fmt::format("trajectories of rank {}", r);
    for (size_t begin = 0; begin < messages[r].size();) {
      const size_t end = messages[r].find('\n', begin);
      all.push_back(parse_trajectory(std::string_view(messages[r]).substr(begin, end - begin), where));
      begin = end + 1;
    }
  }
  std::sort(all.begin(), all.end(), [](const Trajectory& a, const Trajectory& b) { return a.index < b.index; });
  return all;
}

}  // namespace

SamplingLimits rollout_limits(const Session& session, const Settings& s) {
  if (!s.rollout_max_response_len)
    fail(Exit::usage, "--rollout-max-response-len N is needed: tokens of a response at most");
  return {.params = {s.rollout_temperature, s.rollout_top_k, s.rollout_top_p},
          .max_response = *s.rollout_max_response_len,
          .max_context = context_limit(session, s),
          .stop_ids = stop_ids(session, s),
          .stop_when = stop_rule(session, s.rollout_stop)};
}

SamplingLimits eval_limits(const Session& session, const Settings& s) {
  const auto length = s.eval_max_response_len ? s.eval_max_response_len : s.rollout_max_response_len;
  if (!length) fail(Exit::usage, "--eval-max-response-len N (or --rollout-max-response-len) is needed");
  return {.params = {s.eval_temperature.value_or(s.rollout_temperature), s.eval_top_k.value_or(s.rollout_top_k),
                     s.eval_top_p.value_or(s.rollout_top_p)},
          .max_response = *length,
          .max_context = context_limit(session, s),
          .stop_ids = stop_ids(session, s),
          .stop_when = stop_rule(session, s.rollout_stop)};
}

std::vector<Trajectory> generate_trajectories(const Session& session, Engine& engine, const PreparedPrompts& prompts,
                                              const std::vector<PromptCursor::Draw>& all_draws, int64_t n_samples,
                                              const SamplingLimits& limits, const Scorer* scorer,
                                              const std::string& reward_key, uint64_t seed, int64_t weight_version,
                                              const Engine::Progress& progress) {
  const auto draws = draws_here(all_draws, session.mesh->place());
  std::vector<Request> requests;
  for (const auto& draw : draws) {
    const auto& tokens = prompts.tokens[static_cast<size_t>(draw.prompt)];
    requests.push_back(
        {.prompt = tokens,
         .samples = n_samples,
         .params = limits.params,
         .max_new_tokens = std::min(limits.max_response, limits.max_context - static_cast<int64_t>(tokens.size())),
         .stop_ids = limits.stop_ids,
         .seed = seed,
         .group_index = draw.group_index});
    if (!prompts.past_responses.empty()) {
      requests.back().expected_new = prompts.past_responses[static_cast<size_t>(draw.prompt)];
    }
  }
  std::vector<Trajectory> trajectories;
  std::string unscored;
  for (auto& c : engine.generate(requests, progress)) {
    const auto& draw = draws[c.request];
    const Prompt& prompt = prompts.set[draw.prompt];
    Trajectory t;
    t.tokens = requests[c.request].prompt;
    t.tokens.insert(t.tokens.end(), c.tokens.begin(), c.tokens.end());
    t.response_length = static_cast<int32_t>(c.tokens.size());
    t.loss_mask.assign(c.tokens.size(), 1);
    t.group_index = draw.group_index;
    t.index = draw.first_index + c.sample;
    t.rollout_log_probs = std::move(c.log_probs);
    t.status = c.reason == FinishReason::stop    ? Trajectory::Status::completed
               : c.reason == FinishReason::abort ? Trajectory::Status::aborted
                                                 : Trajectory::Status::truncated;
    t.weight_version = weight_version;
    t.label = prompt.label;
    t.spec_accepted = c.accepted;
    t.spec_drafted = c.drafted;
    t.spec_verify_steps = c.verify_steps;
    if (session.tokenizer) t.response_text = decode_ids(session, c.tokens);
    if (scorer != nullptr && t.response_text) {
      const Score score = scorer->score(*t.response_text, label_of(prompt.label));
      t.reward = reward_of(score, reward_key);
      if (!t.reward && unscored.empty()) unscored = fmt::format("{}: {}", prompts.set.where(draw.prompt), score.error);
    }
    trajectories.push_back(std::move(t));
  }
  if (!unscored.empty()) log::warn("some responses could not be scored and do not count; the first: {}", unscored);
  return gather(std::move(trajectories), *session.mesh);
}

std::vector<EvalSet> load_eval_sets(const Session& session, const Settings& s) {
  std::vector<EvalSet> sets;
  const int64_t max_prompt = s.eval_max_prompt_len.value_or(0);
  for (size_t i = 0; i + 1 < s.eval_prompt_data.size(); i += 2) {
    const PromptOptions options{.path = s.eval_prompt_data[i + 1],
                                .input_key = s.eval_input_key.empty() ? s.input_key : s.eval_input_key,
                                .label_key = s.eval_label_key.empty() ? s.label_key : s.eval_label_key,
                                .metadata_key = s.metadata_key,
                                .tool_key = s.tool_key,
                                .apply_chat_template = s.apply_chat_template};
    sets.push_back(
        {s.eval_prompt_data[i], prepare_prompts(session, options, max_prompt, eval_limits(session, s).max_context)});
  }
  return sets;
}

double pass_at_k(int64_t n, int64_t c, int64_t k) {
  if (n - c < k) return 1.0;
  double missed = 1;
  for (int64_t i = n - c + 1; i <= n; i++) missed *= 1.0 - static_cast<double>(k) / static_cast<double>(i);
  return 1.0 - missed;
}

Metrics evaluate(const Session& session, const Settings& s, Engine& engine, const std::vector<EvalSet>& sets,
                 const Scorer& scorer, std::vector<Trajectory>* kept) {
  Metrics metrics;
  const SamplingLimits limits = eval_limits(session, s);
  const std::string& key = s.eval_reward_key.empty() ? s.reward_key : s.eval_reward_key;
  const int64_t n = s.n_samples_per_eval_prompt;
  for (const auto& set : sets) {
    std::vector<PromptCursor::Draw> draws;
    for (int64_t i = 0; i < set.prompts.set.size(); i++) draws.push_back({i, i, i * n, 0});
    // Draws of their own: the same on every evaluation, never those of a rollout.
    auto found = generate_trajectories(session, engine, set.prompts, draws, n, limits, &scorer, key,
                                       ~static_cast<uint64_t>(s.rollout_seed), 0);
    double sum = 0, truncated = 0;
    int64_t scored = 0;
    std::map<int64_t, int64_t> correct;
    for (const auto& t : found) {
      truncated += t.status == Trajectory::Status::truncated;
      if (!t.reward) continue;
      sum += *t.reward;
      scored++;
      correct[t.group_index] += *t.reward == 1.0;
    }
    const auto total = static_cast<double>(found.size());
    const std::string name = "eval/" + set.name;
    if (scored > 0) metrics.emplace_back(name, sum / static_cast<double>(scored));
    metrics.emplace_back(name + "-truncated_ratio", truncated / total);
    metrics.emplace_back(name + "-none_reward_ratio", 1.0 - static_cast<double>(scored) / total);
    for (int64_t k = 1; s.log_passrate && k <= n; k *= 2) {
      double pass = 0;
      for (const auto& [group, c] : correct) pass += pass_at_k(n, c, k) / static_cast<double>(correct.size());
      metrics.emplace_back(fmt::format("{}-pass@{}", name, k), pass);
    }
    for (const auto& [metric, value] : rollout_metrics(found)) {
      if (metric.starts_with("rollout/response_len/") || metric.starts_with("rollout/spec_")) {
        metrics.emplace_back(name + metric.substr(std::string("rollout").size()), value);
      }
    }
    if (kept != nullptr)
      kept->insert(kept->end(), std::make_move_iterator(found.begin()), std::make_move_iterator(found.end()));
  }
  return metrics;
}

}  // namespace furlong
