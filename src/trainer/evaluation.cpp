#include "trainer/evaluation.h"

#include <algorithm>
#include <map>

#include "data/rollout_stats.h"

namespace furlong {

std::vector<EvalSet> load_eval_sets(const Session& session, const Settings& s, Judge& judge) {
  std::vector<EvalSet> sets;
  for (EvalSpec& spec : eval_specs(s)) {
    const PromptOptions options{.path = spec.path,
                                .input_key = spec.input_key,
                                .label_key = spec.label_key,
                                .metadata_key = spec.metadata_key,
                                .tool_key = spec.tool_key,
                                .apply_chat_template = s.apply_chat_template};
    SamplingLimits limits{.params = {spec.temperature, spec.top_k, spec.top_p},
                          .max_response = spec.max_response,
                          .max_context = context_limit(session, s),
                          .stop_ids = stop_ids_with(session, s, spec.stop_token_ids),
                          .stop_when = stop_rule(session, spec.stop)};
    PreparedPrompts prompts = prepare_prompts(session, options, s.eval_max_prompt_len.value_or(0), limits.max_context);
    prompts.set.merge_metadata(spec.metadata_overrides);
    for (int64_t i = 0; i < prompts.set.size(); i++) judge.check(prompts.set[i].metadata, prompts.set.where(i));
    sets.push_back({std::move(spec), std::move(limits), std::move(prompts)});
  }
  return sets;
}

EvalWork work_of(const std::vector<EvalSet>& sets) {
  EvalWork work;
  for (const EvalSet& set : sets) {
    work.longest =
        std::max(work.longest, std::min(set.limits.max_context, set.prompts.longest + set.limits.max_response));
    work.requests = std::max(work.requests, set.prompts.set.size() * set.spec.samples);
  }
  return work;
}

double pass_at_k(int64_t n, int64_t c, int64_t k) {
  if (n - c < k) return 1.0;
  double missed = 1;
  for (int64_t i = n - c + 1; i <= n; i++) missed *= 1.0 - static_cast<double>(k) / static_cast<double>(i);
  return 1.0 - missed;
}

namespace {

void add_figures(Metrics& metrics, const EvalSet& set, const std::vector<Trajectory>& found, bool passrate) {
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
  const std::string name = "eval/" + set.spec.name;
  if (scored > 0) metrics.emplace_back(name, sum / static_cast<double>(scored));
  metrics.emplace_back(name + "-truncated_ratio", truncated / total);
  metrics.emplace_back(name + "-none_reward_ratio", 1.0 - static_cast<double>(scored) / total);
  for (int64_t k = 1; passrate && scored > 0 && k <= set.spec.samples; k *= 2) {
    double pass = 0;
    for (const auto& [group, c] : correct) {
      pass += pass_at_k(set.spec.samples, c, k) / static_cast<double>(correct.size());
    }
    metrics.emplace_back(fmt::format("{}-pass@{}", name, k), pass);
  }
  for (const auto& [metric, value] : rollout_metrics(found)) {
    if (metric.starts_with("rollout/response_len/") || metric.starts_with("rollout/spec_")) {
      metrics.emplace_back(name + metric.substr(std::string("rollout").size()), value);
    }
  }
}

}  // namespace

Metrics evaluate(const Session& session, const Settings& s, Engine& engine, const std::vector<EvalSet>& sets,
                 Judge& judge, CallPool* environment, std::vector<Trajectory>* kept) {
  Metrics metrics;
  for (const auto& set : sets) {
    std::vector<PromptCursor::Draw> draws;
    for (int64_t i = 0; i < set.prompts.set.size(); i++) draws.push_back({i, i, i * set.spec.samples, 0});
    // Draws of their own: the same on every evaluation, never those of a rollout.
    const RolloutTask task{.samples = set.spec.samples,
                           .limits = set.limits,
                           .judge = &judge,
                           .reward_key = s.eval_reward_key.empty() ? s.reward_key : s.eval_reward_key,
                           .seed = ~static_cast<uint64_t>(s.rollout_seed),
                           .environment = environment,
                           .max_turns = s.generate_max_turns};
    auto found = generate_trajectories(session, engine, set.prompts, draws, task);
    add_figures(metrics, set, found, s.log_passrate);
    if (kept != nullptr)
      kept->insert(kept->end(), std::make_move_iterator(found.begin()), std::make_move_iterator(found.end()));
  }
  return metrics;
}

}  // namespace furlong
