// The table of settings as text: --help and docs/flags.md.
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/text.h"
#include "trainer/settings.h"

namespace furlong {
namespace {

constexpr double unbounded = 1e300;
constexpr Topic all_topics[] = {
    Topic::checkpoint, Topic::run,        Topic::prompts,   Topic::batches,  Topic::sampling,  Topic::engine,
    Topic::reward,     Topic::evaluation, Topic::algorithm, Topic::mtp,      Topic::optimizer, Topic::parallel,
    Topic::observing,  Topic::debugging,  Topic::files,     Topic::generate, Topic::serve,     Topic::tokenize,
    Topic::convert,    Topic::bench,      Topic::no_effect,
};

const char* purpose(Command command) {
  switch (command) {
    case Command::train: return "rollout, reward, GRPO and MTP update, evaluation, checkpoints";
    case Command::sft: return "supervised fine-tuning on conversations";
    case Command::eval: return "evaluation sets: mean reward and pass@k";
    case Command::serve: return "an HTTP server: OpenAI's API, and SGLang's /generate";
    case Command::generate: return "completions of texts, messages or tokens";
    case Command::score: return "log-probs of given token sequences";
    case Command::tokenize: return "texts to ids and back, messages to prompts";
    case Command::grade: return "rewards of given responses";
    case Command::init: return "a new checkpoint with random weights";
    case Command::convert: return "a checkpoint with other packing or dtype";
    case Command::bench: return "this machine's CPU: training, decoding and prefill beside their limits";
    case Command::inspect:
      return "a checkpoint's tensors; --plan: a recipe's memory and time; --rollout: a run's samples";
  }
  CHECK(false, "a command without a purpose");
}

std::string bound(const Field& field, double value) {
  const bool whole = field.kind == Kind::integer || field.kind == Kind::integers;
  return whole ? fmt::format("{}", static_cast<int64_t>(value)) : fmt::format("{}", value);
}

std::string default_text(const Field& field) { return format_value(Settings(), field); }

// Without the quotation marks of TOML.
std::string bare(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), '"'), text.end());
  return text;
}

// The values that this build takes of a setting of later work; empty: none but leaving it out.
std::string only_here(const Field& field) {
  const bool switch_or_list = field.kind == Kind::flag || field.kind == Kind::integers;
  return switch_or_list ? "" : join_or(field.allowed);
}

// Text in lines of at most `width`, the lines after the first indented.
std::string wrapped(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    if (column > indent && column + 1 + end - begin > width) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      column++;
    }
    out += text.substr(begin, end - begin);
    column += end - begin;
    begin = end + 1;
  }
  return out;
}

std::string help_line(const Field& field) {
  constexpr size_t indent = 30, width = 116;
  std::string head = "  " + field.flag();
  if (field.kind != Kind::flag) head += " " + field.value_hint();
  std::string text = field.help;
  const std::string standard = default_text(field);
  if (!field.unit.empty() && text.find(field.unit) == std::string::npos && field.unit != "folder" &&
      field.unit != "file") {
    text += " [" + field.unit + "]";
  }
  if (!standard.empty() && field.kind != Kind::flag) text += " (" + bare(standard) + ")";
  if (field.later)
    text += only_here(field).empty() ? " (not in this build)" : " (this build: " + bare(only_here(field)) + ")";
  if (!field.no_effect.empty()) text += " (without effect: " + field.no_effect + ")";
  const std::string gap =
      head.size() + 2 <= indent ? std::string(indent - head.size(), ' ') : "\n" + std::string(indent, ' ');
  return head + gap + wrapped(text, indent, width) + "\n";
}

std::string cell(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

std::string command_list(const Field& field) {
  Texts names;
  for (const Command command : all_commands()) {
    if ((field.commands & static_cast<unsigned>(command)) != 0) names.push_back(name_of(command));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string markdown_row(const Field& field) {
  const std::string range = field.choices.empty() ? field.range_text() : "";
  std::string value = field.kind == Kind::flag ? "" : "`" + cell(field.value_hint()) + "`";
  if (!range.empty()) value += " " + range;
  if (!field.unit.empty() && field.unit != "folder" && field.unit != "file") value += ", " + field.unit;
  std::string meaning = field.help;
  if (field.later) {
    const std::string only = only_here(field);
    meaning += only.empty() ? ". Not in this build" : ". This build takes only " + only;
  }
  if (!field.no_effect.empty()) meaning += ". Without effect: " + field.no_effect;
  if (field.differs.rfind("not in miles", 0) == 0) {
    meaning += ". *N" + field.differs.substr(1) + ".*";
  } else if (!field.differs.empty()) {
    meaning += ". *Differs from miles: " + field.differs + ".*";
  }
  const std::string standard = default_text(field);
  const bool off = field.kind == Kind::flag && standard == "false";
  return fmt::format("| `{}` | {} | {} | {} | {} |\n", field.flag(), value,
                     standard.empty() || off ? "" : "`" + standard + "`", command_list(field), cell(meaning));
}

}  // namespace

const char* title(Topic topic) {
  switch (topic) {
    case Topic::checkpoint: return "Model and checkpoints";
    case Topic::run: return "Run and machine";
    case Topic::prompts: return "Prompts";
    case Topic::batches: return "Batches and length of the run";
    case Topic::sampling: return "Sampling";
    case Topic::engine: return "Rollout engine";
    case Topic::reward: return "Reward";
    case Topic::evaluation: return "Evaluation";
    case Topic::algorithm: return "Algorithm";
    case Topic::mtp: return "MTP training";
    case Topic::optimizer: return "Optimizer";
    case Topic::parallel: return "Parallelism";
    case Topic::observing: return "Watching a run";
    case Topic::debugging: return "Debugging";
    case Topic::files: return "Files of the batch commands";
    case Topic::generate: return "Generation";
    case Topic::serve: return "Server";
    case Topic::tokenize: return "Tokenizer";
    case Topic::convert: return "New and converted checkpoints";
    case Topic::bench: return "Benchmark";
    case Topic::no_effect: return "Accepted without effect";
  }
  CHECK(false, "a topic without a title");
}

std::string Field::value_hint() const {
  switch (kind) {
    case Kind::flag: return "true|false";
    case Kind::integer: return "N";
    case Kind::real: return "X";
    case Kind::json: return "JSON";
    case Kind::texts: return "TEXT ...";
    case Kind::integers: return "N ...";
    case Kind::words: return "...";
    case Kind::text: break;
  }
  if (!choices.empty()) return fmt::format("{}", fmt::join(choices, "|"));
  return unit == "folder" ? "DIR" : unit == "file" ? "FILE" : unit == "path" ? "PATH" : "TEXT";
}

std::string Field::range_text() const {
  if (!choices.empty()) return fmt::format("{}", fmt::join(choices, ", "));
  const bool lower = min > -unbounded, upper = max < unbounded;
  if (lower && upper && min == max) return "= " + bound(*this, min);
  std::string out = lower ? (above_min ? "> " : ">= ") + bound(*this, min) : "";
  if (upper) out += (lower ? " and " : "") + std::string(below_max ? "< " : "<= ") + bound(*this, max);
  return out;
}

std::string help_text() {
  std::string out =
      "furlong: reinforcement learning for Qwen3.5-MoE in one program\n\n"
      "usage: furlong <command> [--config recipe.toml] [--flag value ...]\n\n";
  for (const Command command : all_commands()) out += fmt::format("  {:<10} {}\n", name_of(command), purpose(command));
  out +=
      "\n  furlong <command> --help   the command's settings\n"
      "  furlong --version          version, instruction set and libraries\n\n"
      "Flags have the names of miles; --sglang-X is --rollout-X. Every flag can stand in the recipe, where the "
      "command\n"
      "line wins. docs/flags.md explains all of them, docs/differences.md where they differ from miles.\n";
  return out;
}

std::string help_text(Command command) {
  std::string out = fmt::format("furlong {}: {}\n\nusage: furlong {} [--config recipe.toml] [--flag value ...]\n",
                                name_of(command), purpose(command), name_of(command));
  for (const Topic topic : all_topics) {
    if (topic == Topic::no_effect) continue;
    std::string lines;
    for (const auto& field : fields()) {
      if (field.topic == topic && field.takes(command)) lines += help_line(field);
    }
    if (!lines.empty()) out += fmt::format("\n{}\n{}", title(topic), lines);
  }
  return out +
         "\nDefaults stand in parentheses. --no-FLAG or --FLAG=false turns off a flag that the recipe turns on.\n";
}

std::string flags_markdown() {
  std::string out =
      "# Settings\n\n"
      "<!-- Made by `furlong --dump-flags-md > docs/flags.md` from the table in src/trainer/settings_fields.cpp. "
      "-->\n\n"
      "Names, defaults and meanings are those of miles unless a row says otherwise. `--sglang-X` is another name of\n"
      "`--rollout-X`. Every setting can stand in a TOML recipe (`--config FILE`) under the same name, with `_` or `-`, "
      "in any\n"
      "`[section]`; the command line wins over the recipe, the recipe over the default. A flag given twice on the "
      "command\n"
      "line counts once, with its last value; `--no-FLAG` or `--FLAG=false` turns off what a recipe turns on. A name "
      "that\n"
      "is not here is an error that names the nearest ones. `furlong inspect --plan` reads every setting of `train`.\n";
  for (const Topic topic : all_topics) {
    if (topic == Topic::no_effect) continue;
    out += fmt::format("\n## {}\n\n| flag | value | default | commands | meaning |\n|---|---|---|---|---|\n",
                       title(topic));
    for (const auto& field : fields()) {
      if (field.topic == topic) out += markdown_row(field);
    }
  }
  out += fmt::format(
      "\n## {}\n\nFlags of miles' launch lines that `train` and `sft` take, name in one warning line and leave "
      "alone.\n\n",
      title(Topic::no_effect));
  std::vector<std::pair<std::string, Texts>> reasons;
  for (const auto& field : fields()) {
    if (field.topic != Topic::no_effect) continue;
    if (reasons.empty() || reasons.back().first != field.no_effect) reasons.push_back({field.no_effect, {}});
    const std::string only = field.allowed.empty() ? "" : " " + join_or(field.allowed);
    reasons.back().second.push_back("`" + field.flag() + only + "`");
  }
  for (const auto& [why, flags] : reasons) out += fmt::format("- {}: {}\n", why, fmt::join(flags, ", "));
  return out;
}

}  // namespace furlong
