// Conversations as the text and the tokens a model is prompted with or trained on.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/jinja.h"
#include "tokenizer/tokenizer.h"

namespace furlong {

// One turn. `role` is what the template knows: "system", "user", "assistant", "tool" (a tool's answer). An assistant's
// reasoning is either given apart or lies in its content as "<think>...</think>".
struct Message {
  std::string role, content;
  std::optional<std::string> reasoning_content = std::nullopt;
  // The turn's further keys as a JSON object: "tool_calls", "name", a "content" in parts. Empty: there are none.
  std::string others = {};
};

// What a template sees beside the conversation.
struct ChatValues {
  std::optional<bool> enable_thinking = std::nullopt;
  std::string tools = {};   // a JSON list of tools (functions with their parameters); empty: none
  std::string values = {};  // a JSON object of further variables, below the ones above; empty: none
};

// A chat template in Jinja, with the special tokens it may name (bos_token, eos_token, ...).
class ChatTemplate {
 public:
  // `special_tokens` is a JSON object. Throws Error(Exit::input) as JinjaTemplate::parse does.
  static ChatTemplate parse(std::string_view source, const std::string& name, std::string special_tokens = "{}");
  // The one that is used when a conversation has tools ("tool_use" among several templates).
  void set_for_tools(JinjaTemplate with_tools) { with_tools_ = std::move(with_tools); }

  // The text, and where in it each message's turn lies. Throws Error(Exit::input): no messages, or what the template
  // refuses.
  JinjaText render(std::span<const Message> messages, bool add_generation_prompt, const ChatValues& values = {}) const;
  const std::string& name() const { return plain_.name(); }

 private:
  JinjaTemplate plain_;
  std::optional<JinjaTemplate> with_tools_;
  std::string special_tokens_ = "{}";
};

// The conversation as text, to the byte what transformers renders. add_generation_prompt opens an assistant turn at the
// end. Throws as ChatTemplate::render does.
std::string render_chat(const ChatTemplate& chat_template, std::span<const Message> messages,
                        bool add_generation_prompt, const ChatValues& values = {});

// The template of a checkpoint folder: of chat_template.jinja, else of "chat_template" in tokenizer_config.json (a
// string, or a list of {"name", "template"} with one named "default"), else of chat_template.json. Throws
// Error(Exit::usage), asking for --chat-template, if there is none; Error(Exit::input) for a file that cannot be read
// or a template that does not parse.
ChatTemplate chat_template_of(const std::string& checkpoint_dir);

// What --chat-template names: "qwen3" or "qwen3.5", the formats of these models without tools, or a file with a
// template, which sees the special tokens of the checkpoint folder. Throws Error(Exit::usage) for neither, and as
// above.
ChatTemplate named_chat_template(const std::string& flag_value, const std::string& checkpoint_dir = "");

struct TokenizedChat {
  std::vector<int32_t> ids;
  std::vector<uint8_t> loss_mask;  // as long as ids; 1: train on predicting this token
};

// The whole conversation for supervised training, of a template that writes each message as a turn of its own within a
// loop over them, an assistant's as "<|im_start|>assistant\n...<|im_end|>". The mask is 1 on what the model itself has
// to say: in every assistant turn, what follows the generation prompt (or "<|im_start|>assistant\n", where the turn
// does not begin with all of it), up to and including "<|im_end|>". What the template writes after that is 0.
//
// The text up to the last assistant turn's generation prompt is encoded on its own, so that no token spans prompt and
// answer and the ids begin with exactly those of the prompt that a rollout encodes for that turn: render_chat() of the
// messages before it with add_generation_prompt, wherever that text is a prefix of the conversation's. Earlier turns
// are encoded as they are within that prompt; a token that spans the end of their header is 0.
// Throws as render_chat(), and Error(Exit::input) if the tokenizer has no "<|im_start|>" or "<|im_end|>" or the
// template writes other turns.
TokenizedChat tokenize_conversation(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                    std::span<const Message> messages, const ChatValues& values = {});

}  // namespace furlong
