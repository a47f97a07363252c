#include "data/prompts.h"

#include <fmt/ranges.h>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"
#include "data/json_row.h"
#include "data/jsonl.h"

namespace furlong {
namespace {

// The text of a content in parts, which the chat template joins.
void check_parts(const JsonRow& row, const Json& parts, const std::string& place) {
  for (const Json& part : parts) {
    const bool is_text =
        part.is_object() && part.value("type", Json()) == "text" && part.value("text", Json()).is_string();
    if (!is_text) row.wrong(place + ".content", part, "parts that are {\"type\": \"text\", \"text\": ...}");
  }
}

ChatMessage read_message(const JsonRow& row, const OrderedJson& whole, const Json& value, const std::string& place) {
  if (!value.is_object()) row.wrong(place, value, "an object with \"role\" and \"content\"");
  ChatMessage message;
  OrderedJson others = whole;
  const auto role = value.find("role"), content = value.find("content"), calls = value.find("tool_calls");
  if (role == value.end()) fail(Exit::input, "{}: {} has no key \"role\"", row.where(), place);
  if (!role->is_string()) row.wrong(place + ".role", *role, "a string");
  message.role = role->get<std::string>();
  if (message.role.empty()) fail(Exit::input, "{}: {}.role is empty; expected system, user, ...", row.where(), place);
  others.erase("role");
  if (content != value.end() && content->is_string()) {
    message.content = content->get<std::string>();
    others.erase("content");
  } else if (content != value.end() && content->is_array()) {
    check_parts(row, *content, place);
  } else if (calls == value.end() || !calls->is_array() || calls->empty()) {  // a call may stand without a text
    if (content == value.end()) fail(Exit::input, "{}: {} has no key \"content\"", row.where(), place);
    row.wrong(place + ".content", *content, "a string, or a list of texts");
  }
  if (!others.empty()) message.others = others.dump();
  return message;
}

void read_input(const JsonRow& row, const PromptOptions& options, Prompt& prompt) {
  const Json& input = row.at(options.input_key);
  if (input.is_string()) {
    prompt.text = input.get<std::string>();
    if (prompt.text.empty()) fail(Exit::input, "{}: \"{}\" is empty", row.where(), options.input_key);
    if (options.apply_chat_template) {
      prompt.messages.push_back({"user", std::move(prompt.text)});
      prompt.text.clear();
    }
    return;
  }
  if (!input.is_array()) row.wrong(options.input_key, input, "a string or a list of chat messages");
  if (input.empty()) fail(Exit::input, "{}: \"{}\" is an empty list of messages", row.where(), options.input_key);
  const OrderedJson whole = parse_ordered_json(row.raw(options.input_key), row.where());
  for (size_t i = 0; i < input.size(); i++) {
    prompt.messages.push_back(read_message(row, whole[i], input[i], fmt::format("{}[{}]", options.input_key, i)));
  }
}

std::string read_tools(const JsonRow& row, const std::string& key) {
  const Json* tools = key.empty() ? nullptr : row.find(key);
  if (tools == nullptr || tools->is_null()) return "";
  if (tools->is_array()) return std::string(row.raw(key));
  if (!tools->is_string()) row.wrong(key, *tools, "a list, or a string holding a JSON list");
  std::string text = tools->get<std::string>();
  if (!parse_json(text, row.where() + ": \"" + key + "\"").is_array()) {
    fail(Exit::input, "{}: the JSON in \"{}\" is not a list", row.where(), key);
  }
  return text;
}

std::string read_metadata(const JsonRow& row, const std::string& key, const std::string& tools) {
  const Json* value = key.empty() ? nullptr : row.find(key);
  if (value != nullptr && !value->is_null() && !value->is_object()) row.wrong(key, *value, "an object");
  std::string text = value == nullptr || value->is_null() ? "{}" : std::string(row.raw(key));
  if (tools.empty()) return text;
  OrderedJson metadata = parse_ordered_json(text, row.where());
  metadata["tools"] = parse_ordered_json(tools, row.where());
  return metadata.dump();
}

Prompt read_prompt(const JsonlReader& reader, const PromptOptions& options) {
  const JsonRow row(reader.text(), reader.name(), reader.line());
  Prompt prompt;
  prompt.row = reader.row();
  prompt.line = reader.line();
  read_input(row, options, prompt);
  if (!options.label_key.empty()) prompt.label = row.label(options.label_key);
  prompt.tools = read_tools(row, options.tool_key);
  prompt.metadata = read_metadata(row, options.metadata_key, prompt.tools);
  return prompt;
}

}  // namespace

void BadRows::add(const Error& error) {
  if (!skip_ || error.code() != Exit::input) throw error;
  constexpr size_t named = 10;
  if (first_.size() < named) first_.emplace_back(error.what());
  count_++;
}

void BadRows::report(const std::string& path, int64_t good) const {
  if (count_ == 0) return;
  constexpr int64_t per_bad_row = 100;
  const int64_t rows = good + count_;
  const std::string text = fmt::format("{}: {} of {} rows {} bad", path, count_, rows, count_ == 1 ? "is" : "are");
  const std::string list = fmt::format("{}:\n  {}", first_.size() < static_cast<size_t>(count_) ? "; the first" : "",
                                       fmt::join(first_, "\n  "));
  if (count_ * per_bad_row > rows) fail(Exit::input, "{}, more than the 1 % that is skipped{}", text, list);
  log::warn("{} and left out{}", text, list);
}

PromptSet::PromptSet(const PromptOptions& options) : bad_(options.skip_bad) {
  JsonlReader reader(options.path);
  name_ = reader.name();
  while (reader.next()) {
    try {
      prompts_.push_back(read_prompt(reader, options));
    } catch (const Error& error) {
      bad_.add(error);
    }
  }
  if (prompts_.empty() && bad_.count() > 0) bad_.report(name_, 0);
  if (prompts_.empty()) {
    fail(Exit::input, "{}: no prompts{}", options.path,
         options.path == name_ ? "; the file has no rows" : "; no rows, or none within the slice");
  }
}

std::string PromptSet::where(int64_t i) const { return fmt::format("{}:{}", name_, (*this)[i].line); }

int64_t PromptSet::keep(std::span<const uint8_t> kept) {
  CHECK(kept.size() == prompts_.size(), "{} entries for {} prompts", kept.size(), prompts_.size());
  size_t n = 0;
  for (size_t i = 0; i < kept.size(); i++) {
    if (kept[i] == 0) continue;
    if (n != i) prompts_[n] = std::move(prompts_[i]);
    n++;
  }
  prompts_.resize(n);
  return static_cast<int64_t>(kept.size() - n);
}

void PromptSet::merge_metadata(const std::string& object) {
  const OrderedJson given = parse_ordered_json(object, "metadata");
  if (given.empty()) return;
  for (Prompt& prompt : prompts_) {
    OrderedJson metadata = parse_ordered_json(prompt.metadata, name_);
    for (const auto& [key, value] : given.items()) metadata[key] = value;
    prompt.metadata = metadata.dump();
  }
}

}  // namespace furlong
