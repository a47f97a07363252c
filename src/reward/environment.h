// An environment outside the program that answers the model's turns with messages, or ends the conversation.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "data/prompts.h"
#include "reward/judge.h"

namespace furlong {

// What a conversation has come to; `query.response` is the newest turn's text.
struct TurnQuery {
  RewardQuery query;
  std::vector<ChatMessage> messages;  // all, the newest turn included
  int64_t turn = 1;                   // of the model, from 1
  int64_t group_index = 0, index = 0;
};

struct EnvironmentTurn {
  std::vector<ChatMessage> messages;  // to go on with; none: the conversation is over
  bool scored = false;                // it has said what the reward is
  Score score;
  std::string error;  // no answer that can be used
};

std::string turn_question(const TurnQuery& turn);
// {"messages":[{"role":...,"content":...}, ...]}, or {"done":true} with "reward" (a number; null: unscored, with an
// "error") or without, where the run's own rule is to judge.
EnvironmentTurn read_turn(const std::string& answer, const std::string& reward_key);

}  // namespace furlong
