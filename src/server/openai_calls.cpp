// What OpenAI's requests ask for.
#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "server/api_error.h"
#include "server/fields.h"
#include "server/openai.h"

namespace furlong {
namespace {

constexpr size_t most_messages = 4096, most_tools = 1024;
constexpr int64_t default_completion_tokens = 16;

void read_common(const ServedModel& model, Fields& fields, OpenAiCall& out) {
  if (const auto name = fields.text("model"); name && *name != model.name) {
    throw ApiError(404, "model_not_found", "model",
                   fmt::format("there is no model {} here; /v1/models lists those there are", printable(*name)));
  }
  GenerationCall& call = out.call;
  read_sampling(fields, call);
  call.text.include_stop = fields.flag("include_stop_str_in_output").value_or(false);
  call.min_new_tokens = fields.integer("min_tokens", 0, INT32_MAX).value_or(0);
  if (const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX)) call.seed = static_cast<uint64_t>(*seed);
  call.stream = fields.flag("stream").value_or(false);
  if (const Json* value = fields.find("stream_options")) {
    if (!value->is_object()) refuse("stream_options", "stream_options must be an object");
    if (!call.stream) refuse("stream_options", "stream_options is for stream: true");
    Fields options(*value, "stream_options.");
    out.include_usage = options.flag("include_usage").value_or(false);
    options.only("continuous_usage_stats", {false});
    options.ignore({"include_obfuscation"});
    options.close();
  }
  fields.only("logit_bias", {Json::object()});
  fields.ignore({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"});
}

std::string content_of(const Json& message, const std::string& path) {
  const auto found = message.find("content");
  if (found == message.end() || found->is_null()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) refuse(path, "{} must be a text or a list of parts", path);
  std::string text;
  for (const Json& part : *found) {
    const bool is_text =
        part.is_object() && part.value("type", Json()) == "text" && part.contains("text") && part["text"].is_string();
    if (!is_text)
      refuse(path, "{}: a part must be {{\"type\": \"text\", \"text\": ...}}; this model reads text alone", path);
    text += part["text"].get<std::string>();
  }
  return text;
}

// A turn's further keys, which the template may know. The order of a call's keys is the template's business too.
std::string other_keys(Fields& fields, const Json& json, const OrderedJson& ordered) {
  OrderedJson others = OrderedJson::object();
  for (const char* name : {"name", "tool_call_id"}) {
    if (const auto text = fields.text(name)) others[name] = *text;
  }
  if (const Json* calls = fields.find("tool_calls"); calls != nullptr && !calls->empty()) {
    const auto is_object = [](const Json& call) { return call.is_object(); };
    if (!calls->is_array() || !std::all_of(calls->begin(), calls->end(), is_object) || json["role"] != "assistant") {
      refuse(fields.path("tool_calls"), "{} must be a list of objects, in an assistant's turn",
             fields.path("tool_calls"));
    }
    others["tool_calls"] = ordered["tool_calls"];
  }
  return others.empty() ? "" : dumped(others);
}

Message message_of(const Json& json, const OrderedJson& ordered, const std::string& path) {
  if (!json.is_object()) refuse(path, "{} must be an object with a role and a content", path);
  Fields fields(json, path + ".");
  auto role = fields.text("role");
  if (!role) refuse(path + ".role", "{} needs a role", path);
  if (*role == "developer") role = "system";
  if (*role != "system" && *role != "user" && *role != "assistant" && *role != "tool") {
    refuse(path + ".role", "{}.role must be system, developer, user, assistant or tool, not {}", path,
           printable(*role));
  }
  fields.find("content");
  Message message{*role, content_of(json, path + ".content"), fields.text("reasoning_content"),
                  other_keys(fields, json, ordered)};
  fields.only("function_call", {});
  fields.ignore({"refusal", "annotations"});
  fields.close();
  return message;
}

// Tools and further variables of the template.
ChatValues chat_values(Fields& fields, const OrderedJson& ordered) {
  ChatValues values;
  if (const Json* given = fields.find("chat_template_kwargs")) {
    if (!given->is_object()) refuse("chat_template_kwargs", "chat_template_kwargs must be an object");
    values.enable_thinking = Fields(*given, "chat_template_kwargs.").flag("enable_thinking");
    OrderedJson others = ordered["chat_template_kwargs"];
    others.erase("enable_thinking");
    if (!others.empty()) values.values = dumped(others);
  }
  const Json* tools = fields.find("tools");
  const Json* choice = fields.find("tool_choice");
  fields.only("tool_choice", {"none", "auto"});
  if (tools == nullptr || tools->empty() || (choice != nullptr && *choice == "none")) return values;
  const auto is_object = [](const Json& tool) { return tool.is_object(); };
  if (!tools->is_array() || tools->size() > most_tools || !std::all_of(tools->begin(), tools->end(), is_object)) {
    refuse("tools", "tools must be a list of at most {} objects", most_tools);
  }
  values.tools = dumped(ordered["tools"]);
  return values;
}

// Whether a chat has what reaches the template in the order of its keys.
bool needs_order(const Json& chat) {
  if (chat.contains("tools") || chat.contains("chat_template_kwargs")) return true;
  const auto messages = chat.find("messages");
  return messages != chat.end() && messages->is_array() &&
         std::any_of(messages->begin(), messages->end(),
                     [](const Json& message) { return message.is_object() && message.contains("tool_calls"); });
}

ChatPrompt chat_prompt(Fields& fields, const OrderedJson& ordered) {
  ChatPrompt prompt{.messages = {}, .values = chat_values(fields, ordered)};
  const Json* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    refuse("messages", "messages must be a list of at least one message");
  }
  if (messages->size() > most_messages) refuse("messages", "at most {} messages", most_messages);
  for (size_t i = 0; i < messages->size(); i++) {
    static const OrderedJson none;
    const OrderedJson& in_order = ordered.is_null() ? none : ordered["messages"][i];
    prompt.messages.push_back(message_of((*messages)[i], in_order, fmt::format("messages[{}]", i)));
  }
  return prompt;
}

// A text, texts, ids, or lists of ids.
std::vector<std::vector<int32_t>> completion_prompts(const ServedModel& model, Fields& fields) {
  const Json* value = fields.find("prompt");
  if (value == nullptr) refuse("prompt", "a prompt is needed: a text, token ids, or a list of these");
  if (value->is_string()) return {encode_prompt(model, value->get_ref<const std::string&>())};
  if (!value->is_array() || value->empty()) refuse("prompt", "prompt must be a text, token ids, or a list of these");
  if ((*value)[0].is_number()) return {token_ids(*value, "prompt")};
  if (value->size() > static_cast<size_t>(most_choices)) refuse("prompt", "at most {} prompts a request", most_choices);
  std::vector<std::vector<int32_t>> prompts;
  for (size_t i = 0; i < value->size(); i++) {
    const Json& item = (*value)[i];
    prompts.push_back(item.is_string() ? encode_prompt(model, item.get_ref<const std::string&>())
                                       : token_ids(item, fmt::format("prompt[{}]", i)));
  }
  return prompts;
}

}  // namespace

OpenAiCall read_chat_call(const ServedModel& model, const HttpRequest& request, HttpReply& reply) {
  const Json json = parse_body(request.body);
  const OrderedJson ordered = needs_order(json) ? parse_ordered_json(request.body, "body") : OrderedJson();
  reply.drop_body();
  Fields fields(json);
  OpenAiCall out;
  read_common(model, fields, out);
  GenerationCall& call = out.call;
  call.log_probs = fields.flag("logprobs").value_or(false);
  call.alternatives = fields.integer("top_logprobs", 0, most_alternatives).value_or(0);
  if (call.alternatives > 0 && !call.log_probs) refuse("top_logprobs", "top_logprobs needs logprobs: true");
  call.max_new_tokens = fields.integer("max_completion_tokens", 1, INT32_MAX);
  const auto older = fields.integer("max_tokens", 1, INT32_MAX);
  if (!call.max_new_tokens) call.max_new_tokens = older;
  fields.only("response_format", {Json::object({{"type", "text"}})});
  fields.only("functions", {Json::array()});
  fields.only("function_call", {"none", "auto"});
  fields.only("modalities", {Json::array({"text"})});
  fields.only("audio", {});
  fields.only("add_generation_prompt", {true});
  fields.ignore({"parallel_tool_calls"});
  const ChatPrompt prompt = chat_prompt(fields, ordered);
  fields.close();
  std::string text;
  try {
    text = model.render_chat(prompt);
  } catch (const Error& error) {
    throw ApiError(400, "", "messages", error.what());
  }
  call.prompts.push_back(encode_prompt(model, text));
  check_call(model, call);
  return out;
}

OpenAiCall read_completions_call(const ServedModel& model, const HttpRequest& request, HttpReply& reply) {
  const Json json = parse_body(request.body);
  reply.drop_body();
  Fields fields(json);
  OpenAiCall out;
  read_common(model, fields, out);
  GenerationCall& call = out.call;
  const auto log_probs = fields.integer("logprobs", 0, most_alternatives);
  call.log_probs = log_probs.has_value();
  call.alternatives = log_probs.value_or(0);
  call.max_new_tokens = fields.integer("max_tokens", 1, INT32_MAX).value_or(default_completion_tokens);
  fields.only("echo", {false});
  fields.only("best_of", {1, call.samples});
  fields.only("suffix", {""});
  // Closed before the prompts cost anything.
  fields.ignore({"prompt"});
  fields.close();
  call.prompts = completion_prompts(model, fields);
  check_call(model, call);
  return out;
}

}  // namespace furlong
