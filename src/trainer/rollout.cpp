#include "trainer/rollout.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>

#include "base/error.h"
#include "base/log.h"
#include "trainer/conversation.h"

namespace furlong {
namespace {

// The draws of this rank's data parallel rank: every so manieth group.
std::vector<PromptCursor::Draw> draws_here(const std::vector<PromptCursor::Draw>& all, const MeshRank& place) {
  std::vector<PromptCursor::Draw> mine;
  for (const auto& draw : all) {
    if (draw.group_index % place.data_size == place.data) mine.push_back(draw);
  }
  return mine;
}

void append_part(std::string& to, const RouteRows& part) {
  const int64_t sizes[] = {part.width, std::ssize(part.ids)};
  to.append(reinterpret_cast<const char*>(sizes), sizeof sizes);
  to.append(reinterpret_cast<const char*>(part.ids.data()), part.ids.size() * sizeof part.ids[0]);
  to.append(reinterpret_cast<const char*>(part.weights.data()), part.weights.size() * sizeof part.weights[0]);
}

RouteRows take_part(std::string_view& from) {
  const auto take = [&](void* to, size_t bytes) {
    CHECK(bytes <= from.size(), "routes of {} bytes in {}", bytes, from.size());
    std::memcpy(to, from.data(), bytes);
    from.remove_prefix(bytes);
  };
  RouteRows part;
  int64_t sizes[2];
  take(sizes, sizeof sizes);
  part.width = sizes[0];
  part.ids.resize(static_cast<size_t>(sizes[1]));
  part.weights.resize(part.ids.size());
  take(part.ids.data(), part.ids.size() * sizeof part.ids[0]);
  take(part.weights.data(), part.weights.size() * sizeof part.weights[0]);
  return part;
}

// Hands everyone the routes that each rank has recorded of its own trajectories, a group at a time: the prompt's and
// each sample's. `all` is in the order of samples, `mine` holds this rank's.
void share_routes(std::vector<Trajectory>& all, const std::vector<Trajectory>& mine, const Mesh& mesh) {
  auto own = mine.begin();
  for (size_t begin = 0, end = 0; begin < all.size(); begin = end) {
    const int64_t group = all[begin].group_index;
    std::string bytes;
    for (; end < all.size() && all[end].group_index == group; end++) {
      if (own == mine.end() || own->index != all[end].index) continue;
      if (bytes.empty()) append_part(bytes, *own->routes->prompt);
      append_part(bytes, own->routes->response);
      ++own;
    }
    for (const std::string& message : mesh.world().gather_bytes(bytes)) {
      if (message.empty()) continue;
      std::string_view rest = message;
      const auto prompt = std::make_shared<const RouteRows>(take_part(rest));
      for (size_t i = begin; i < end; i++) {
        all[i].routes = std::make_shared<const Routes>(Routes{prompt, take_part(rest)});
      }
    }
  }
}

// Everyone's trajectories, in the order of their samples.
std::vector<Trajectory> gather(std::vector<Trajectory> mine, const Mesh& mesh, bool routes) {
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
  if (routes) share_routes(all, mine, mesh);
  return all;
}

// Runs these groups to their ends. Samples go to the judge as they finish, or where requests cannot come and go (on
// several ranks) at the end.
void run_groups(const GroupMaker& maker, Engine& engine, std::vector<SampleGroup>& groups,
                const Engine::Progress& progress) {
  std::vector<Request> requests;
  std::map<int64_t, SampleGroup*> groups_by_index;
  for (SampleGroup& group : groups) {
    groups_by_index[group.draw.group_index] = &group;
    for (auto& request : maker.requests(group)) requests.push_back(std::move(request));
  }
  longest_first(requests);
  const auto take = [&](const Request& request, const Completion& c) {
    maker.take(*groups_by_index.at(request.group_index), static_cast<size_t>(request.first_sample + c.sample), c);
  };
  if (!maker.session().mesh->is_alone()) {
    for (const auto& c : engine.generate(requests, progress)) take(requests[c.request], c);
    return;
  }
  size_t done = 0;
  for (const Request& request : requests) {
    engine.submit(request, [&](const Emitted& e) {
      if (e.finished == nullptr) return;
      done++;
      take(request, *e.finished);
    });
  }
  while (engine.step()) {
    if (progress) progress(done, engine.stats().emitted);
  }
}

}  // namespace

int64_t context_limit(const Session& session, const Settings& settings) {
  const int64_t model = session.config.max_position_embeddings > 0 ? session.config.max_position_embeddings
                                                                   : std::numeric_limits<int32_t>::max();
  return std::min(model, settings.rollout_max_context_len.value_or(model));
}

std::vector<int32_t> stop_ids_with(const Session& session, const Settings& settings, const Integers& more) {
  std::vector<int32_t> ids;
  if (!settings.ignore_eos) ids = session.stop_ids;
  for (const int64_t id : more) ids.push_back(static_cast<int32_t>(id));
  return ids;
}

SamplingLimits rollout_limits(const Session& session, const Settings& s) {
  if (!s.rollout_max_response_len)
    fail(Exit::usage, "--rollout-max-response-len N is needed: tokens of a response at most");
  return {.params = {s.rollout_temperature, s.rollout_top_k, s.rollout_top_p},
          .max_response = *s.rollout_max_response_len,
          .max_context = context_limit(session, s),
          .stop_ids = stop_ids_with(session, s, s.rollout_stop_token_ids),
          .stop_when = stop_rule(session, s.rollout_stop),
          .routes = s.use_rollout_routing_replay};
}

JudgeOptions judge_options(const Settings& s, const std::string& directory) {
  const bool talks = !s.custom_generate_command.empty() || !s.custom_generate_url.empty();
  JudgeOptions options{.rm_type = s.rm_type, .nltk_data = s.nltk_data, .may_lack_rule = talks, .service = {}};
  CallOptions& service = options.service;
  service.url = s.rm_url;
  service.command = s.custom_rm_command;
  service.log_directory = directory;
  service.name = "reward";
  service.workers = s.custom_rm_command.empty() ? s.rm_concurrency : s.custom_rm_processes;
  service.batch = s.rm_batch_size;
  service.timeout = s.rm_timeout;
  service.tries = s.rm_tries;
  service.breaker_after = std::max<int64_t>(32, 2 * service.workers);
  service.seed = static_cast<uint64_t>(s.seed);
  return options;
}

std::unique_ptr<CallPool> make_environment(const Settings& s, const Session& session, const std::string& directory) {
  if (s.custom_generate_url.empty() && s.custom_generate_command.empty()) return nullptr;
  const MeshRank& place = session.mesh->place();
  if (place.row_parts() > 1 || place.sizes.pipeline > 1) {
    fail(Exit::usage,
         "conversations (--custom-generate-command, -url) need ranks with samples of their own: tensor, context and "
         "pipeline parallel size 1");
  }
  if (!session.tokenizer || !session.chat) {
    fail(Exit::usage, "conversations need a tokenizer and a chat template: {}", session.chat_error);
  }
  JudgeOptions options = judge_options(s, directory);
  options.service.url = s.custom_generate_url;
  options.service.command = s.custom_generate_command;
  options.service.name = "environment";
  options.service.batch = 1;
  if (!s.custom_generate_command.empty()) options.service.workers = s.custom_rm_processes;
  return std::make_unique<CallPool>(options.service);
}

std::vector<Trajectory> generate_trajectories(const Session& session, Engine& engine, const PreparedPrompts& prompts,
                                              const std::vector<PromptCursor::Draw>& draws, const RolloutTask& task,
                                              const Engine::Progress& progress) {
  GroupMaker maker(session, prompts, task);
  std::vector<SampleGroup> groups;
  for (const auto& draw : draws_here(draws, session.mesh->place())) groups.push_back(maker.begin(draw));
  if (task.environment != nullptr) {
    run_conversations(maker, engine, groups, *task.environment, task.max_turns, progress);
  } else {
    run_groups(maker, engine, groups, progress);
  }
  std::vector<Trajectory> trajectories;
  for (SampleGroup& group : groups) {
    maker.settle(group);
    for (auto& sample : group.samples) trajectories.push_back(std::move(sample.trajectory));
  }
  if (!maker.unscored().empty()) {
    log::warn("some responses could not be scored and do not count; the first: {}", maker.unscored());
  }
  return gather(std::move(trajectories), *session.mesh, task.limits.routes);
}

}  // namespace furlong
