// Conversations: the model's turns are sampled, an environment's messages follow as tokens that are not learnt from.
#pragma once
#include <vector>

#include "trainer/groups.h"

namespace furlong {

// The tokens that lead from the end of the model's turn, whose last token is `last`, to its next one: what the chat
// template puts around these messages. The tokens before stay as they are. Throws Error(Exit::input) where the template
// refuses the messages.
std::vector<int32_t> encode_reply(const Session& session, const std::vector<ChatMessage>& messages, int32_t last);

// Runs these groups to their ends, turn by turn: all conversations' next turns together, then the environment's answers
// to them in their order. A turn cut by a limit ends its conversation as truncated, an environment without an answer as
// failed and unscored. All ranks of a mesh call; ranks that share a batch cannot (their answers might differ).
void run_conversations(GroupMaker& maker, Engine& engine, std::vector<SampleGroup>& groups, CallPool& environment,
                       int64_t max_turns, const Engine::Progress& progress);

}  // namespace furlong
