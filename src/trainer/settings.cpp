#include "trainer/settings.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace furlong {
namespace {

constexpr const char* command_line = "command line";

struct CommandName {
  Command command;
  const char* name;
};
constexpr CommandName command_names[] = {
    {Command::train, "train"},       {Command::sft, "sft"},     {Command::eval, "eval"},
    {Command::generate, "generate"}, {Command::score, "score"}, {Command::tokenize, "tokenize"},
    {Command::grade, "grade"},       {Command::init, "init"},   {Command::convert, "convert"},
    {Command::inspect, "inspect"},   {Command::serve, "serve"}, {Command::bench, "bench"},
};

// miles' flags that have no counterpart here, so that pasting one says more than "unknown".
struct NotHere {
  const char* begin;  // of the name
  const char* why;
};
constexpr NotHere not_here[] = {
    {"use_opd", "on-policy distillation is not offered yet"},
    {"opd_", "on-policy distillation is not offered yet"},
    {"lora_", "LoRA is not offered yet"},
    {"multi_lora", "LoRA is not offered yet"},
    {"fully_async", "use --async-rollout: rollouts are one update behind, never more"},
    {"max_weight_staleness", "use --async-rollout: rollouts are one update behind, never more"},
    {"update_weights_interval", "the trainer's weights are the rollout's: there is nothing to update"},
    {"update_weight", "the trainer's weights are the rollout's: there is nothing to transfer"},
    {"custom_config_path", "give its keys as settings or in a recipe: --tis-level, --tis-mode, --use-rs, ..."},
    {"allow_partial_train_step", "--global-batch-size divides a rollout's samples; nothing of it is dropped"},
    {"reset_optimizer_states", "moments are kept over the whole run"},
    {"custom_", "Python hooks have no meaning in this program"},
    {"rollout_function_path", "Python hooks have no meaning in this program"},
    {"chat_template_path", "give the file with --chat-template"},
    {"multimodal_keys", "prompts are text; images are not trained on"},
    {"loss_type", "use `furlong train` for the policy loss and `furlong sft` for supervised fine-tuning"},
    {"keep_old_actor", "old log-probs are computed before the first step of a rollout"},
    {"balance_by_flops", "use --balance-data, which balances tokens"},
    {"bf16", "use --dtype bf16"},
    {"fp16", "use --dtype fp32 or bf16"},
    {"micro_batch", "use --micro-batch-size or --use-dynamic-batch-size"},
};

// "--eps-clip_high", "sglang-ep-size" -> "eps_clip_high", "rollout_ep_size".
std::string canonical(const std::string& name) {
  std::string out = name.substr(std::min(name.find_first_not_of('-'), name.size()));
  std::replace(out.begin(), out.end(), '-', '_');
  if (out.rfind("sglang_", 0) == 0) out = "rollout_" + out.substr(7);
  return out;
}

std::string place(const Field& field, const std::string& origin) {
  return origin == command_line ? field.flag() : origin + ": " + field.name;
}

std::string shown(const RawValue& value) {
  std::string joined;
  for (const auto& word : value.words) joined += (joined.empty() ? "" : " ") + word;
  return joined.empty() ? "" : " " + printable(joined, 60);
}

bool in_range(const Field& field, double x) {
  return (field.above_min ? x > field.min : x >= field.min) && (field.below_max ? x < field.max : x <= field.max);
}

// "needs an integer >= 1", "needs one of a, b or c".
std::string need(const Field& field) {
  const std::string range = field.range_text();
  switch (field.kind) {
    case Kind::flag: return "takes no value, or true or false";
    case Kind::integer: return "needs an integer" + (range.empty() ? "" : " " + range);
    case Kind::real: return "needs a number" + (range.empty() ? "" : " " + range);
    case Kind::integers: return "needs integers" + (range.empty() ? "" : " " + range);
    case Kind::texts: return "needs one or more " + (field.choices.empty() ? "texts" : "of " + join_or(field.choices));
    case Kind::json: return "needs a JSON object, such as {\"enable_thinking\": false}";
    case Kind::text: return field.choices.empty() ? "needs a text" : "needs " + join_or(field.choices);
    case Kind::words: break;
  }
  return "needs " + join_or(field.allowed);
}

// Whether a dropped flag's value is one that changes nothing: the same text or the same number.
bool word_allowed(const Field& field, const RawValue& value) {
  if (field.allowed.empty()) return true;
  if (value.words.size() != 1) return false;
  return std::any_of(field.allowed.begin(), field.allowed.end(), [&](const std::string& allowed) {
    const auto x = parse_real(value.words[0]), y = parse_real(allowed);
    return value.words[0] == allowed || (x && y && *x == *y);
  });
}

bool json_object(const std::string& text) {
  try {
    return parse_json(text, "value").is_object();
  } catch (const Error&) {
    return false;
  }
}

// What each kind of file value may be read as. Words of the command line may be anything.
bool type_fits(const Field& field, const RawValue& value) {
  using From = RawValue::From;
  const From from = value.from;
  if (from == From::words) return true;
  switch (field.kind) {
    case Kind::flag: return from == From::flag;
    case Kind::integer: return from == From::integer;
    case Kind::real: return from == From::integer || from == From::real;
    case Kind::integers: return from == From::integer || (from == From::list && value.integers_only);
    case Kind::texts: return from == From::text || (from == From::list && value.texts_only);
    case Kind::json: return from == From::text || from == From::table;
    case Kind::text: return from == From::text;
    case Kind::words: break;
  }
  return true;
}

template <class T>
void store(Settings& settings, const Field& field, T value) {
  if (const auto* plain = std::get_if<T Settings::*>(&field.member)) {
    settings.*(*plain) = std::move(value);
    return;
  }
  if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
    settings.*std::get<std::optional<T> Settings::*>(field.member) = value;
  }
}

// Stores a value of the right type; false when it is out of range or no such number.
bool store_words(Settings& settings, const Field& field, const Texts& words) {
  if (field.kind == Kind::words) return true;
  if (field.kind == Kind::flag) {
    if (words.size() > 1 || (words.size() == 1 && words[0] != "true" && words[0] != "false")) return false;
    store(settings, field, words.empty() || words[0] == "true");
    return true;
  }
  if (field.kind == Kind::integers) {
    Integers values;
    for (const auto& word : words) {
      const auto value = parse_integer(word);
      if (!value || !in_range(field, static_cast<double>(*value))) return false;
      values.push_back(*value);
    }
    store(settings, field, std::move(values));
    return true;
  }
  if (field.kind == Kind::texts) {
    const auto wrong = [&](const std::string& word) {
      return word.empty() || (!field.choices.empty() &&
                              std::find(field.choices.begin(), field.choices.end(), word) == field.choices.end());
    };
    if (std::any_of(words.begin(), words.end(), wrong)) return false;
    store(settings, field, words);
    return true;
  }
  if (words.size() != 1) return false;
  const std::string& word = words[0];
  if (field.kind == Kind::integer) {
    const auto value = parse_integer(word);
    if (!value || !in_range(field, static_cast<double>(*value))) return false;
    store(settings, field, *value);
  } else if (field.kind == Kind::real) {
    const auto value = parse_real(word);
    if (!value || !in_range(field, *value)) return false;
    store(settings, field, *value);
  } else {
    if (word.empty() || (field.kind == Kind::json && !json_object(word))) return false;
    if (!field.choices.empty() && std::find(field.choices.begin(), field.choices.end(), word) == field.choices.end()) {
      return false;
    }
    store(settings, field, word);
  }
  return true;
}

// A TOML basic string.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04X}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace

const std::vector<Command>& all_commands() {
  static const std::vector<Command> commands = [] {
    std::vector<Command> out;
    for (const auto& entry : command_names) out.push_back(entry.command);
    return out;
  }();
  return commands;
}

const char* name_of(Command command) {
  for (const auto& entry : command_names) {
    if (entry.command == command) return entry.name;
  }
  CHECK(false, "a command without a name: {}", static_cast<int>(command));
}

std::optional<Command> command_named(const std::string& name) {
  for (const auto& entry : command_names) {
    if (name == entry.name) return entry.command;
  }
  return std::nullopt;
}

std::string Field::flag() const {
  std::string out = "--" + name;
  std::replace(out.begin(), out.end(), '_', '-');
  return out;
}

const Field* find_field(const std::string& name, Command command) {
  const std::string wanted = canonical(name);
  for (const auto& field : fields()) {
    if (field.takes(command) && field.name == wanted) return &field;
  }
  return nullptr;
}

std::string unknown_name(const std::string& name, Command command) {
  const std::string wanted = canonical(name);
  Texts elsewhere, known;
  for (const auto& field : fields()) {
    if (field.takes(command)) {
      known.push_back(field.name);
    } else if (field.name == wanted) {
      for (const Command other : all_commands()) {
        if (field.takes(other)) elsewhere.push_back(fmt::format("`furlong {}`", name_of(other)));
      }
    }
  }
  Texts near;
  for (const auto& nearest : nearest_names(wanted, known)) near.push_back(find_field(nearest, command)->flag());
  if (!elsewhere.empty()) {
    return fmt::format("`furlong {}` has no such setting, {} has{}", name_of(command), join_or(elsewhere),
                       near.empty() ? "" : fmt::format("; did you mean {}?", join_or(near)));
  }
  for (const auto& entry : not_here) {
    if (wanted.rfind(entry.begin, 0) == 0) return fmt::format("not a setting here: {}", entry.why);
  }
  if (!near.empty()) return fmt::format("no such setting; did you mean {}?", join_or(near));
  return fmt::format("no such setting; `furlong {} --help` lists them", name_of(command));
}

std::string set_value(Settings& settings, const Field& field, const RawValue& given, const std::string& origin) {
  RawValue value = given;
  const bool is_list = field.kind == Kind::texts || field.kind == Kind::integers;
  if (is_list && field.choices.empty() && value.from == RawValue::From::words && value.words == Texts{""}) {
    value = {};  // --list= empties it
    value.from = RawValue::From::list;
    value.integers_only = value.texts_only = true;
  }
  const bool needs_words = field.kind != Kind::flag && field.kind != Kind::words;
  if (needs_words && value.from == RawValue::From::words && value.words.empty()) {
    return fmt::format("{}: {}, got nothing", place(field, origin), need(field));
  }
  if (!type_fits(field, value) || !store_words(settings, field, value.words)) {
    return fmt::format("{}{}: {}", place(field, origin), shown(value), need(field));
  }
  if (field.kind == Kind::words && !word_allowed(field, value)) {
    return fmt::format("{}{}: not offered; only {} ({})", place(field, origin), shown(value), join_or(field.allowed),
                       field.no_effect);
  }
  settings.given[field.name] = origin;
  return "";
}

std::string format_value(const Settings& settings, const Field& field) {
  struct Visitor {
    const Settings& s;
    std::string operator()(std::monostate) const { return ""; }
    std::string operator()(bool Settings::*m) const { return s.*m ? "true" : "false"; }
    std::string operator()(int64_t Settings::*m) const { return fmt::format("{}", s.*m); }
    std::string operator()(std::optional<int64_t> Settings::*m) const { return s.*m ? fmt::format("{}", *(s.*m)) : ""; }
    std::string operator()(double Settings::*m) const { return format_real(s.*m); }
    std::string operator()(std::optional<double> Settings::*m) const { return s.*m ? format_real(*(s.*m)) : ""; }
    std::string operator()(std::string Settings::*m) const { return (s.*m).empty() ? "" : quoted(s.*m); }
    std::string operator()(Texts Settings::*m) const {
      Texts out;
      for (const auto& text : s.*m) out.push_back(quoted(text));
      return out.empty() ? "" : fmt::format("[{}]", fmt::join(out, ", "));
    }
    std::string operator()(Integers Settings::*m) const {
      return (s.*m).empty() ? "" : fmt::format("[{}]", fmt::join(s.*m, ", "));
    }
  };
  return std::visit(Visitor{settings}, field.member);
}

std::string to_toml(const Settings& settings, Command command) {
  std::string out =
      fmt::format("# Settings of `furlong {}`, defaults included. A recipe: furlong {} --config <this file>\n",
                  name_of(command), name_of(command));
  std::optional<Topic> topic;
  for (const auto& field : fields()) {
    const std::string value = field.takes(command) ? format_value(settings, field) : "";
    if (value.empty() || (!field.no_effect.empty() && settings.given.count(field.name) == 0)) continue;
    if (topic != field.topic) out += fmt::format("\n# {}\n", title(field.topic));
    topic = field.topic;
    out += fmt::format("{} = {}\n", field.name, value);
  }
  return out;
}

Texts differences(const Settings& before, const Settings& after, Command command) {
  Texts out;
  for (const auto& field : fields()) {
    if (!field.takes(command)) continue;
    const std::string old_value = format_value(before, field), new_value = format_value(after, field);
    if (old_value == new_value) continue;
    out.push_back(fmt::format("{}: {} -> {}", field.name, old_value.empty() ? "not given" : old_value,
                              new_value.empty() ? "not given" : new_value));
  }
  return out;
}

void fail_if_any(const Texts& complaints) {
  if (complaints.empty()) return;
  if (complaints.size() == 1) fail(Exit::usage, "{}", complaints[0]);
  fail(Exit::usage, "{} problems with the settings:\n  {}", complaints.size(), fmt::join(complaints, "\n  "));
}

std::string no_effect_warning(const Settings& settings, Command command) {
  // Flags of the same reason stand together, in the order of the table.
  std::vector<std::pair<std::string, Texts>> reasons;
  for (const auto& field : fields()) {
    if (field.no_effect.empty() || !field.takes(command) || settings.given.count(field.name) == 0) continue;
    auto at = std::find_if(reasons.begin(), reasons.end(), [&](const auto& r) { return r.first == field.no_effect; });
    if (at == reasons.end()) at = reasons.insert(reasons.end(), {field.no_effect, {}});
    at->second.push_back(field.flag());
  }
  Texts parts;
  for (const auto& [why, flags] : reasons) parts.push_back(fmt::format("{} ({})", fmt::join(flags, ", "), why));
  return parts.empty() ? "" : fmt::format("without effect here: {}", fmt::join(parts, "; "));
}

}  // namespace furlong
