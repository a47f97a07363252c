// Conversations as the text and the tokens a model is prompted with or trained on.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace furlong {

// One turn. `role` is "system", "user", "assistant" or "tool" (a tool's answer). An assistant's reasoning is either
// given apart or lies in its content as "<think>...</think>".
struct Message {
  std::string role, content;
  std::optional<std::string> reasoning_content;
};

// qwen3: the template of Qwen3 (hybrid thinking). qwen3_5: that of Qwen3.5, which also trims every content and opens
// "<think>" in the generation prompt. Both without tools.
enum class ChatTemplate { qwen3, qwen3_5 };

// The conversation as text, to the byte what the template renders. Both templates keep an assistant's reasoning only
// after the last user turn that is not a "<tool_response>". add_generation_prompt opens an assistant turn at the end;
// enable_thinking = false closes its reasoning at once, unset is true. Throws Error(Exit::input) for an empty
// conversation, an unknown role, and for what the template itself refuses: in qwen3_5 a system message that is not
// first.
std::string render_chat(ChatTemplate chat_template, std::span<const Message> messages, bool add_generation_prompt,
                        std::optional<bool> enable_thinking);

// The template a Jinja text is, or nothing. White space aside, both texts must
//   scan for the last query:             namespace(multi_step_tool=true, last_query_index=
//   keep reasoning after it:             loop.index0 > ns.last_query_index
//   close reasoning when told so:        if enable_thinking is defined and enable_thinking is false,
//   '<think>\n\n</think>\n\n'
// qwen3 then has no other branch, and gives the reasoning of inner turns only if there is any
// (loop.last or (not loop.last and reasoning_content)). qwen3_5 has the branch else '<think>\n', and trims what its
// macro render_content returns. Templates that differ there (Qwen3-2507, Qwen3-Coder, thinking off by default) are
// not recognised.
std::optional<ChatTemplate> recognise_chat_template(std::string_view jinja_text);

// The template of a checkpoint folder: of chat_template.jinja, else of "chat_template" in tokenizer_config.json (a
// string, or a list of {"name", "template"} with one named "default"). Throws Error(Exit::usage), asking for
// --chat-template, if there is none or it is not recognised; Error(Exit::input) if a file cannot be read.
ChatTemplate chat_template_of(const std::string& checkpoint_dir);

// "qwen3" or "qwen3.5". Throws Error(Exit::usage).
ChatTemplate parse_chat_template(std::string_view flag_value);

struct TokenizedChat {
  std::vector<int32_t> ids;
  std::vector<uint8_t> loss_mask;  // as long as ids; 1: train on predicting this token
};

// The whole conversation for supervised training. The mask is 1 on what the model itself has to say: in every
// assistant turn, what follows the generation prompt (or "<|im_start|>assistant\n", where the turn does not begin with
// all of it), up to and including "<|im_end|>". The newline after that is the template's, so 0.
//
// The text up to the last assistant turn's generation prompt is encoded on its own, so that no token spans prompt and
// answer and the ids begin with exactly those of the prompt that a rollout encodes for that turn: render_chat() of the
// messages before it with add_generation_prompt, wherever that text is a prefix of the conversation's. Earlier turns
// are encoded as they are within that prompt; a token that spans the end of their header is 0.
// Throws as render_chat(), and Error(Exit::input) if the tokenizer has no "<|im_start|>" or "<|im_end|>".
TokenizedChat tokenize_conversation(const Tokenizer& tokenizer, ChatTemplate chat_template,
                                    std::span<const Message> messages, std::optional<bool> enable_thinking);

}  // namespace furlong
