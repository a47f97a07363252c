#include "tokenizer/chat.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "tokenizer/unicode.h"

namespace furlong {
namespace {

constexpr std::string_view turn_begin = "<|im_start|>", turn_end = "<|im_end|>";
constexpr std::string_view think = "<think>", end_think = "</think>";

std::string_view strip_newlines_left(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text;
}

std::string_view strip_newlines_right(std::string_view text) { return text.substr(0, text.find_last_not_of('\n') + 1); }

void check_messages(ChatTemplate chat_template, std::span<const Message> messages) {
  if (messages.empty()) fail(Exit::input, "the conversation is empty; it needs at least one message");
  for (size_t i = 0; i < messages.size(); i++) {
    const std::string& role = messages[i].role;
    if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
      fail(Exit::input, "message {}: unknown role \"{}\"; known are system, user, assistant and tool", i,
           printable(role));
    }
    if (chat_template == ChatTemplate::qwen3_5 && role == "system" && i > 0) {
      fail(Exit::input, "message {}: a system message must be the first one in Qwen3.5's template", i);
    }
  }
}

// A message's content as the template sees it: qwen3_5 trims it.
std::string_view content_of(ChatTemplate chat_template, const Message& message) {
  return chat_template == ChatTemplate::qwen3_5 ? trim_unicode(message.content) : std::string_view(message.content);
}

// The last user message that is not a tool's answer; the last message if there is none.
size_t last_query(ChatTemplate chat_template, std::span<const Message> messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    const std::string_view content = content_of(chat_template, messages[i]);
    if (messages[i].role == "user" &&
        !(content.starts_with("<tool_response>") && content.ends_with("</tool_response>"))) {
      return i;
    }
  }
  return messages.size() - 1;
}

// An assistant turn after its header. `reasons`: it comes after the last query; `last`: it is the last message.
std::string assistant_body(ChatTemplate chat_template, const Message& message, bool reasons, bool last) {
  std::string_view content = content_of(chat_template, message), reasoning;
  if (message.reasoning_content) {
    reasoning = *message.reasoning_content;
  } else if (const size_t first_end = content.find(end_think); first_end != std::string_view::npos) {
    reasoning = strip_newlines_right(content.substr(0, first_end));
    if (const size_t begin = reasoning.rfind(think); begin != std::string_view::npos) {
      reasoning.remove_prefix(begin + think.size());
    }
    reasoning = strip_newlines_left(reasoning);
    content = strip_newlines_left(content.substr(content.rfind(end_think) + end_think.size()));
  }
  if (chat_template == ChatTemplate::qwen3_5) {
    reasoning = trim_unicode(reasoning);
  } else {
    if (!last && reasoning.empty()) reasons = false;
    reasoning = strip_newlines_right(strip_newlines_left(reasoning));
    if (reasons) content = strip_newlines_left(content);
  }
  return reasons ? fmt::format("{}\n{}\n{}\n\n{}", think, reasoning, end_think, content) : std::string(content);
}

// What one message adds to the text. Answers of tools in a row share one user turn; a tool's answer that opens a
// conversation has no turn header in qwen3_5.
std::string render_message(ChatTemplate chat_template, std::span<const Message> messages, size_t i, size_t query) {
  const Message& message = messages[i];
  if (message.role == "assistant") {
    return fmt::format("{}assistant\n{}{}\n", turn_begin,
                       assistant_body(chat_template, message, i > query, i + 1 == messages.size()), turn_end);
  }
  const std::string_view content = content_of(chat_template, message);
  if (message.role != "tool") return fmt::format("{}{}\n{}{}\n", turn_begin, message.role, content, turn_end);
  const bool opens = i == 0 ? chat_template == ChatTemplate::qwen3 : messages[i - 1].role != "tool";
  const bool closes = i + 1 == messages.size() || messages[i + 1].role != "tool";
  return fmt::format("{}{}\n<tool_response>\n{}\n</tool_response>{}", opens ? turn_begin : "", opens ? "user" : "",
                     content, closes ? fmt::format("{}\n", turn_end) : "");
}

std::string generation_prompt(ChatTemplate chat_template, std::optional<bool> enable_thinking) {
  std::string out = fmt::format("{}assistant\n", turn_begin);
  if (enable_thinking == false) return out + fmt::format("{}\n\n{}\n\n", think, end_think);
  return chat_template == ChatTemplate::qwen3_5 ? out + fmt::format("{}\n", think) : out;
}

[[noreturn]] void ask_for_flag(const std::string& reason) {
  fail(Exit::usage, "{}; name the template with --chat-template qwen3 or --chat-template qwen3.5", reason);
}

// The Jinja text of a tokenizer_config.json, empty if it has none.
std::string template_of_config(const std::string& path) {
  const Json config = read_json_file(path);
  if (!config.is_object() || !config.contains("chat_template")) return "";
  const Json& value = config.at("chat_template");
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    for (const Json& entry : value) {
      const bool complete = entry.is_object() && entry.contains("name") && entry.contains("template");
      if (complete && entry.at("name") == "default" && entry.at("template").is_string()) {
        return entry.at("template").get<std::string>();
      }
    }
  }
  return "";
}

// Appends `text`'s ids; the mask is 1 from byte `begin` of the text to its last "<|im_end|>".
void append_turn(const Tokenizer& tokenizer, std::string_view text, size_t begin, int32_t end_id, TokenizedChat& chat) {
  const std::vector<int32_t> ids = tokenizer.encode(text);
  const auto last_end = std::find(ids.rbegin(), ids.rend(), end_id).base() - ids.begin();  // one past it
  size_t at = 0;
  for (size_t i = 0; i < ids.size(); i++) {
    chat.loss_mask.push_back(at >= begin && static_cast<ptrdiff_t>(i) < last_end);
    at += tokenizer.token_bytes(ids[i]).size();
  }
  chat.ids.insert(chat.ids.end(), ids.begin(), ids.end());
}

}  // namespace

std::string render_chat(ChatTemplate chat_template, std::span<const Message> messages, bool add_generation_prompt,
                        std::optional<bool> enable_thinking) {
  check_messages(chat_template, messages);
  const size_t query = last_query(chat_template, messages);
  std::string out;
  for (size_t i = 0; i < messages.size(); i++) out += render_message(chat_template, messages, i, query);
  if (add_generation_prompt) out += generation_prompt(chat_template, enable_thinking);
  return out;
}

std::optional<ChatTemplate> recognise_chat_template(std::string_view jinja_text) {
  std::string text;
  for (const char c : jinja_text) {
    if (c != ' ' && c != '\t' && c != '\r' && c != '\n') text += c == '"' ? '\'' : c;
  }
  const auto has = [&](std::string_view piece) { return text.find(piece) != std::string::npos; };
  if (!has("namespace(multi_step_tool=true,last_query_index=") || !has("loop.index0>ns.last_query_index")) {
    return std::nullopt;
  }
  const std::string closed = R"({{-'<|im_start|>assistant\n'}}{%-ifenable_thinkingisdefinedandenable_thinkingisfalse%})"
                             R"({{-'<think>\n\n</think>\n\n'}})";
  if (has(closed + "{%-endif%}") && has("loop.lastor(notloop.lastandreasoning_content)") && !has("render_content(")) {
    return ChatTemplate::qwen3;
  }
  if (has(closed + R"({%-else%}{{-'<think>\n'}}{%-endif%})") && has("macrorender_content(") &&
      has("render_content(message.content,true)|trim") && has("reasoning_content|trim")) {
    return ChatTemplate::qwen3_5;
  }
  return std::nullopt;
}

ChatTemplate chat_template_of(const std::string& checkpoint_dir) {
  const std::string jinja = checkpoint_dir + "/chat_template.jinja";
  const std::string config = checkpoint_dir + "/tokenizer_config.json";
  std::error_code ignored;
  const bool has_jinja = std::filesystem::exists(jinja, ignored);
  const bool has_config = std::filesystem::exists(config, ignored);
  const std::string text = has_jinja ? read_file(jinja) : has_config ? template_of_config(config) : "";
  if (text.empty()) ask_for_flag(fmt::format("{} has no chat template", checkpoint_dir));
  if (const auto known = recognise_chat_template(text)) return *known;
  ask_for_flag(fmt::format("the chat template in {} is not one that is known", has_jinja ? jinja : config));
}

ChatTemplate parse_chat_template(std::string_view flag_value) {
  if (flag_value == "qwen3") return ChatTemplate::qwen3;
  if (flag_value == "qwen3.5") return ChatTemplate::qwen3_5;
  fail(Exit::usage, "--chat-template {}: unknown template; known are qwen3 and qwen3.5", printable(flag_value));
}

TokenizedChat tokenize_conversation(const Tokenizer& tokenizer, ChatTemplate chat_template,
                                    std::span<const Message> messages, std::optional<bool> enable_thinking) {
  check_messages(chat_template, messages);
  const auto end_id = tokenizer.token_id(turn_end);
  if (!end_id || !tokenizer.token_id(turn_begin)) {
    fail(Exit::input, "the tokenizer has no \"{}\" or no \"{}\"; conversations need both", turn_begin, turn_end);
  }
  size_t last_assistant = messages.size();
  for (size_t i = 0; i < messages.size(); i++) {
    if (messages[i].role == "assistant") last_assistant = i;
  }
  const std::string header = fmt::format("{}assistant\n", turn_begin);
  const std::string prompt = generation_prompt(chat_template, enable_thinking);
  const size_t query = last_query(chat_template, messages);
  TokenizedChat chat;
  // Turn by turn is the same as in one: every turn but a tool's second answer begins with an added token, which no
  // other token crosses; answers of tools in a row are therefore encoded together.
  std::string others;
  const auto flush = [&] {
    append_turn(tokenizer, others, others.size() + 1, *end_id, chat);
    others.clear();
  };
  for (size_t i = 0; i < messages.size(); i++) {
    const std::string turn = render_message(chat_template, messages, i, query);
    if (messages[i].role != "assistant") {
      others += turn;
      continue;
    }
    const size_t begin = turn.starts_with(prompt) ? prompt.size() : header.size();
    flush();
    if (i == last_assistant) {
      others = turn.substr(0, begin);
      flush();
      append_turn(tokenizer, std::string_view(turn).substr(begin), 0, *end_id, chat);
    } else {
      append_turn(tokenizer, turn, begin, *end_id, chat);
    }
  }
  flush();
  return chat;
}

}  // namespace furlong
