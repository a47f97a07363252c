#include "tokenizer/chat.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/text.h"
#include "tokenizer/chat_formats.h"

namespace furlong {
namespace {

constexpr std::string_view turn_begin = "<|im_start|>", turn_end = "<|im_end|>";
constexpr const char* config_name = "tokenizer_config.json";

// A message as templates get it. Keys without a value are left out; reasoning that goes by an older name has the
// present one too, and the other way round, for templates of either time.
OrderedJson message_json(const Message& message, size_t i) {
  OrderedJson out = {{"role", message.role}, {"content", message.content}};
  if (message.reasoning_content) out["reasoning_content"] = *message.reasoning_content;
  if (!message.others.empty()) {
    const OrderedJson others = parse_ordered_json(message.others, fmt::format("message {}", i));
    for (const auto& [key, value] : others.items()) out[key] = value;
  }
  const char* const names[] = {"reasoning_content", "thinking", "reasoning"};
  const auto found = std::find_if(std::begin(names), std::end(names),
                                  [&](const char* name) { return out.contains(name) && !out[name].is_null(); });
  OrderedJson given = OrderedJson::object();
  if (found != std::end(names)) given["thinking"] = out[*found];
  for (const auto& [key, value] : out.items()) {
    if (!value.is_null()) given[key] = value;
  }
  if (found != std::end(names)) given["reasoning_content"] = out[*found];
  return given;
}

// The special tokens of a tokenizer_config.json as a template's variables.
std::string special_tokens_of(const std::string& checkpoint_dir) {
  const std::string path = checkpoint_dir + "/" + config_name;
  std::error_code ignored;
  if (checkpoint_dir.empty() || !std::filesystem::exists(path, ignored)) return "{}";
  const Json config = read_json_file(path);
  OrderedJson out = OrderedJson::object();
  for (const char* name :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
    if (!config.is_object() || !config.contains(name)) continue;
    const Json& value = config.at(name);
    if (value.is_string()) out[name] = value.get<std::string>();
    if (value.is_object() && value.contains("content") && value.at("content").is_string()) {
      out[name] = value.at("content").get<std::string>();
    }
  }
  return out.dump();
}

struct TemplateTexts {
  std::string plain, with_tools;
};

// The Jinja texts under "chat_template" in a JSON file, empty if it has none.
TemplateTexts templates_of(const std::string& path) {
  const Json config = read_json_file(path);
  if (!config.is_object() || !config.contains("chat_template")) return {};
  const Json& value = config.at("chat_template");
  if (value.is_string()) return {value.get<std::string>(), ""};
  TemplateTexts out;
  for (const Json& entry : value.is_array() ? value : Json::array()) {
    const bool complete = entry.is_object() && entry.contains("name") && entry.contains("template");
    if (!complete || !entry.at("template").is_string()) continue;
    if (entry.at("name") == "default") out.plain = entry.at("template").get<std::string>();
    if (entry.at("name") == "tool_use") out.with_tools = entry.at("template").get<std::string>();
  }
  return out;
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

// What the generation prompt adds to a conversation.
std::string generation_prompt(const ChatTemplate& chat_template, std::span<const Message> messages,
                              const ChatValues& values, const std::string& text) {
  const std::string longer = render_chat(chat_template, messages, true, values);
  if (!longer.starts_with(text)) {
    fail(Exit::input, "{}: with a generation prompt the template writes another conversation; it cannot be trained on",
         chat_template.name());
  }
  return longer.substr(text.size());
}

// The bytes of the message's turn; empty if it has none.
JinjaSpan turn_of(const JinjaText& chat, size_t message) {
  JinjaSpan found{message, 0, 0};
  for (const JinjaSpan& span : chat.spans) {
    if (span.message == message) found = span;
  }
  return found;
}

}  // namespace

ChatTemplate ChatTemplate::parse(std::string_view source, const std::string& name, std::string special_tokens) {
  ChatTemplate out;
  out.plain_ = JinjaTemplate::parse(source, name);
  out.special_tokens_ = std::move(special_tokens);
  return out;
}

JinjaText ChatTemplate::render(std::span<const Message> messages, bool add_generation_prompt,
                               const ChatValues& values) const {
  if (messages.empty()) fail(Exit::input, "the conversation is empty; it needs at least one message");
  OrderedJson variables = parse_ordered_json(special_tokens_, "special tokens");
  const OrderedJson further = parse_ordered_json(values.values.empty() ? "{}" : values.values, "values");
  for (const auto& [key, value] : further.items()) variables[key] = value;
  OrderedJson& list = variables["messages"] = OrderedJson::array();
  for (size_t i = 0; i < messages.size(); i++) list.push_back(message_json(messages[i], i));
  const bool has_tools = !values.tools.empty();
  if (has_tools || !variables.contains("tools")) {
    variables["tools"] = has_tools ? parse_ordered_json(values.tools, "tools") : OrderedJson();
  }
  if (!variables.contains("documents")) variables["documents"] = nullptr;
  variables["add_generation_prompt"] = add_generation_prompt;
  if (values.enable_thinking) variables["enable_thinking"] = *values.enable_thinking;
  const JinjaTemplate& used = with_tools_ && !variables["tools"].is_null() ? *with_tools_ : plain_;
  return used.render(variables.dump(), "the conversation");
}

std::string render_chat(const ChatTemplate& chat_template, std::span<const Message> messages,
                        bool add_generation_prompt, const ChatValues& values) {
  return chat_template.render(messages, add_generation_prompt, values).text;
}

ChatTemplate chat_template_of(const std::string& checkpoint_dir) {
  const std::string jinja = checkpoint_dir + "/chat_template.jinja";
  std::error_code ignored;
  if (std::filesystem::exists(jinja, ignored)) {
    return ChatTemplate::parse(read_file(jinja), jinja, special_tokens_of(checkpoint_dir));
  }
  for (const char* name : {config_name, "chat_template.json"}) {
    const std::string path = checkpoint_dir + "/" + name;
    if (!std::filesystem::exists(path, ignored)) continue;
    const TemplateTexts texts = templates_of(path);
    if (texts.plain.empty()) continue;
    ChatTemplate out = ChatTemplate::parse(texts.plain, path + " chat_template", special_tokens_of(checkpoint_dir));
    if (!texts.with_tools.empty()) {
      out.set_for_tools(JinjaTemplate::parse(texts.with_tools, path + " chat_template tool_use"));
    }
    return out;
  }
  fail(Exit::usage,
       "{} has no chat template; name one with --chat-template qwen3, --chat-template qwen3.5, or a file with a Jinja "
       "template",
       checkpoint_dir);
}

ChatTemplate named_chat_template(const std::string& flag_value, const std::string& checkpoint_dir) {
  if (const std::string format = chat_format(flag_value); !format.empty()) {
    return ChatTemplate::parse(format, "--chat-template " + flag_value);
  }
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(flag_value, ignored)) {
    fail(Exit::usage, "--chat-template {}: neither qwen3 nor qwen3.5, nor a file with a Jinja template",
         printable(flag_value));
  }
  return ChatTemplate::parse(read_file(flag_value), flag_value, special_tokens_of(checkpoint_dir));
}

TokenizedChat tokenize_conversation(const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                                    std::span<const Message> messages, const ChatValues& values) {
  const auto end_id = tokenizer.token_id(turn_end);
  if (!end_id || !tokenizer.token_id(turn_begin)) {
    fail(Exit::input, "the tokenizer has no \"{}\" or no \"{}\"; conversations need both", turn_begin, turn_end);
  }
  const JinjaText conversation = chat_template.render(messages, false, values);
  const std::string_view text = conversation.text;
  const std::string header = fmt::format("{}assistant\n", turn_begin);
  const std::string prompt = generation_prompt(chat_template, messages, values, conversation.text);
  std::vector<JinjaSpan> turns;
  size_t done = 0;
  for (size_t i = 0; i < messages.size(); i++) {
    if (messages[i].role != "assistant") continue;
    const JinjaSpan span = turn_of(conversation, i);
    if (span.begin < done || !text.substr(span.begin, span.end - span.begin).starts_with(header)) {
      fail(Exit::input, "{}: the template does not write message {} as a turn of its own ({}assistant ... {})",
           chat_template.name(), i, turn_begin, turn_end);
    }
    turns.push_back(span);
    done = span.end;
  }
  TokenizedChat chat;
  // Turn by turn is the same as in one: an assistant turn, and what follows one, begins with an added token, which no
  // other token crosses.
  const auto untrained = [&](std::string_view piece) {
    append_turn(tokenizer, piece, piece.size() + 1, *end_id, chat);
  };
  done = 0;
  for (const JinjaSpan& span : turns) {
    const std::string_view turn = text.substr(span.begin, span.end - span.begin);
    const size_t begin = turn.starts_with(prompt) ? prompt.size() : header.size();
    if (span.begin > done && done > 0 && !text.substr(done).starts_with(turn_begin)) {
      fail(Exit::input, "{}: what follows an assistant turn does not begin with {}", chat_template.name(), turn_begin);
    }
    const bool last = &span == &turns.back();
    untrained(text.substr(done, span.begin - done));
    if (last) untrained(turn.substr(0, begin));
    append_turn(tokenizer, last ? turn.substr(begin) : turn, last ? 0 : begin, *end_id, chat);
    done = span.end;
  }
  untrained(text.substr(done));
  return chat;
}

}  // namespace furlong
