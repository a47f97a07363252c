#include "reward/environment.h"

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "data/json_row.h"

namespace furlong {

std::string turn_question(const TurnQuery& turn) {
  std::string out = reward_question(turn.query, true);
  out.pop_back();
  out += ",\"messages\":[";
  for (size_t i = 0; i < turn.messages.size(); i++) {
    out += i > 0 ? ",{\"role\":" : "{\"role\":";
    append_json_string(out, turn.messages[i].role);
    out += ",\"content\":";
    append_json_string(out, turn.messages[i].content);
    out += '}';
  }
  return out + fmt::format("],\"turn\":{},\"group_index\":{},\"index\":{}}}", turn.turn, turn.group_index, turn.index);
}

EnvironmentTurn read_turn(const std::string& answer, const std::string& reward_key) {
  EnvironmentTurn out;
  try {
    const Json json = parse_json(answer, "the environment's answer");
    const auto done = json.find("done");
    if (json.is_object() && done != json.end() && *done == true) {
      out.scored = json.contains("reward") || json.contains("error");
      if (out.scored) out.score = read_rewards(answer, 1, reward_key, false)[0];
      return out;
    }
    if (json.is_object() && json.contains("messages") && json["messages"].is_array()) {
      for (const Json& m : json["messages"]) {
        const bool whole = m.is_object() && m.contains("role") && m["role"].is_string() && m.contains("content") &&
                           m["content"].is_string();
        if (!whole) fail(Exit::input, "a message without role and content, both text: {}", printable(m.dump()));
        out.messages.push_back({m["role"], m["content"]});
      }
      if (!out.messages.empty()) return out;
    }
    const bool says = json.is_object() && json.contains("error") && json["error"].is_string();
    out.error =
        says ? printable(json["error"].get<std::string>(), 300)
             : fmt::format("the environment's answer has neither messages nor \"done\":true: {}", printable(answer));
  } catch (const Error& e) {
    out.messages.clear();
    out.error = e.what();
  }
  return out;
}

}  // namespace furlong
