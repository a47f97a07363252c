#include "trainer/conversation.h"

#include <algorithm>
#include <map>

#include "base/check.h"
#include "base/error.h"
#include "reward/environment.h"

namespace furlong {
namespace {

// Stands for the model's turn where the template is asked what follows one.
constexpr const char* turn_marker = "furlong-turn-0c2f7a91";

struct Conversation {
  SampleGroup* group;
  size_t sample;
  std::vector<ChatMessage> messages;
  int64_t turns = 0;
  uint64_t ticket = 0;
  SampleGroup::Sample& state() const { return group->samples[sample]; }
  Trajectory& trajectory() const { return state().trajectory; }
};

bool any_rank(const Mesh& mesh, bool here) {
  if (mesh.is_alone()) return here;
  const auto all = mesh.world().gather_bytes(here ? "1" : "");
  return std::any_of(all.begin(), all.end(), [](const std::string& s) { return !s.empty(); });
}

class Talk {
 public:
  Talk(GroupMaker& maker, Engine& engine, std::vector<SampleGroup>& groups, CallPool& environment, int64_t max_turns)
      : maker_(maker), engine_(engine), groups_(groups), environment_(environment), max_turns_(max_turns) {
    for (SampleGroup& group : groups) {
      for (size_t i = 0; i < group.samples.size(); i++) {
        const Prompt& prompt = maker.prompts().set[group.draw.prompt];
        auto messages = prompt.messages;
        if (messages.empty()) messages.push_back({"user", prompt.text});
        open_[{group.draw.group_index, i}] = {&group, i, std::move(messages)};
      }
    }
  }

  void run(const Engine::Progress& progress) {
    const size_t all = open_.size();
    while (any_rank(*maker_.session().mesh, !open_.empty())) {
      sample_turns();
      hear_answers();
      if (progress) progress(all - open_.size(), engine_.stats().emitted);
    }
  }

 private:
  using Key = std::pair<int64_t, size_t>;

  void sample_turns() {
    std::vector<Request> requests;
    for (SampleGroup& group : groups_) {
      for (auto& request : maker_.requests(group)) requests.push_back(std::move(request));
    }
    for (const auto& c : engine_.generate(requests)) {
      const Request& request = requests[c.request];
      const Key key{request.group_index, static_cast<size_t>(request.first_sample + c.sample)};
      Conversation& talk = open_.at(key);
      maker_.extend(*talk.group, talk.sample, c);
      talk.turns++;
      if (c.reason != FinishReason::stop || talk.turns == max_turns_) {
        end(key, c.reason == FinishReason::stop ? Trajectory::Status::completed : Trajectory::Status::truncated);
        continue;
      }
      ask(talk, c.tokens);
    }
  }

  void ask(Conversation& talk, std::vector<int32_t> tokens) {
    const auto& stops = maker_.task().limits.stop_ids;
    if (std::find(stops.begin(), stops.end(), tokens.back()) != stops.end()) tokens.pop_back();
    const std::string text = decode_ids(maker_.session(), tokens);
    talk.messages.push_back({"assistant", text});
    TurnQuery turn{.query = maker_.query(*talk.group, talk.sample, text),
                   .messages = talk.messages,
                   .turn = talk.turns,
                   .group_index = talk.group->draw.group_index,
                   .index = talk.trajectory().index};
    talk.ticket = environment_.submit(turn_question(turn));
  }

  void hear_answers() {
    std::vector<Key> asked;
    for (const auto& [key, talk] : open_) asked.push_back(key);
    for (const Key& key : asked) {
      Conversation& talk = open_.at(key);
      const Called called = environment_.wait(talk.ticket);
      EnvironmentTurn turn;
      turn.error = called.error;
      if (called.error.empty()) turn = read_turn(called.text, maker_.task().reward_key);
      if (!turn.error.empty()) {
        maker_.note_unscored(*talk.group, turn.error);
        end(key, Trajectory::Status::failed);
      } else if (!turn.messages.empty()) {
        go_on(key, talk, std::move(turn.messages));
      } else {
        if (turn.scored) {
          talk.trajectory().reward = turn.score.reward;
          talk.state().judged = true;
          if (!turn.score.reward) maker_.note_unscored(*talk.group, turn.score.error);
        }
        end(key, Trajectory::Status::completed);
      }
    }
  }

  void go_on(const Key& key, Conversation& talk, std::vector<ChatMessage> messages) {
    Trajectory& t = talk.trajectory();
    std::vector<int32_t> reply;
    try {
      reply = encode_reply(maker_.session(), messages, t.tokens.back());
    } catch (const Error& e) {
      maker_.note_unscored(*talk.group, e.what());
      return end(key, Trajectory::Status::failed);
    }
    if (std::ssize(reply) >= maker_.room_for(t)) return end(key, Trajectory::Status::truncated);
    t.tokens.insert(t.tokens.end(), reply.begin(), reply.end());
    t.response_length += static_cast<int32_t>(reply.size());
    t.loss_mask.resize(static_cast<size_t>(t.response_length), 0);
    t.rollout_log_probs.resize(static_cast<size_t>(t.response_length), 0);
    for (auto& message : messages) talk.messages.push_back(std::move(message));
  }

  void end(const Key& key, Trajectory::Status status) {
    const auto it = open_.find(key);
    Conversation& talk = it->second;
    if (status == Trajectory::Status::failed) talk.state().judged = true;
    talk.trajectory().extra_json = fmt::format("{{\"turns\":{}}}", talk.turns);
    maker_.close(*talk.group, talk.sample, status);
    open_.erase(it);
  }

  GroupMaker& maker_;
  Engine& engine_;
  std::vector<SampleGroup>& groups_;
  CallPool& environment_;
  int64_t max_turns_;
  std::map<Key, Conversation> open_;
};

}  // namespace

std::vector<int32_t> encode_reply(const Session& session, const std::vector<ChatMessage>& messages, int32_t last) {
  if (!session.chat) fail(Exit::usage, "{}", session.chat_error);
  std::vector<Message> all = {{.role = "user", .content = "?"}, {.role = "assistant", .content = turn_marker}};
  for (const auto& m : messages) all.push_back(message_of(m));
  const std::string text = render_chat(*session.chat, all, true, session.chat_values);
  const std::string marker = turn_marker;
  const size_t at = text.find(marker);
  if (at == std::string::npos) fail(Exit::input, "the chat template leaves out the turn before a reply");
  std::string rest = text.substr(at + marker.size());
  // The model has ended its turn itself.
  const std::string end = session.tokenizer->contains(last) ? session.tokenizer->token_text(last) : "";
  if (!end.empty() && rest.starts_with(end)) rest.erase(0, end.size());
  return encode_text(session, rest);
}

void run_conversations(GroupMaker& maker, Engine& engine, std::vector<SampleGroup>& groups, CallPool& environment,
                       int64_t max_turns, const Engine::Progress& progress) {
  const MeshRank& place = maker.session().mesh->place();
  CHECK(place.row_parts() == 1 && place.sizes.pipeline == 1, "conversations on ranks that share a batch");
  Talk(maker, engine, groups, environment, max_turns).run(progress);
}

}  // namespace furlong
