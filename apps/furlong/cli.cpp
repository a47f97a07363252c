// Parsed over the table of settings rather than with a library: every flag's type, range, commands and aliases are in
// the table already, complaints come all at once, and a typo is answered with the nearest names.
#include "furlong/cli.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/text.h"
#include "furlong/toml.h"

namespace furlong {
namespace {

// "--x" or "-x"; a negative number and a lone "-" are values.
bool looks_like_flag(const std::string& word) {
  return word.size() > 1 && word[0] == '-' && !(word[1] >= '0' && word[1] <= '9') && word[1] != '.';
}

struct Given {
  std::string name;  // as written, without a value
  RawValue value;
  bool has_equals = false;
};

class CommandLine {
 public:
  CommandLine(const Texts& words, Command command) : words_(words), command_(command) {}

  void parse() {
    for (at_ = 1; at_ < words_.size();) {
      const std::string& word = words_[at_++];
      if (word == "-h" || word == "--help") {
        help = true;
      } else if (!looks_like_flag(word)) {
        complaints.push_back(
            fmt::format("unexpected word `{}`{}", printable(word), after_.empty() ? "" : " after " + after_));
      } else {
        flag(word);
      }
    }
  }

  bool help = false;
  std::string config;
  std::vector<Given> given;
  Texts complaints;

 private:
  void flag(const std::string& word) {
    const size_t equals = word.find('=');
    Given one;
    one.name = word.substr(0, equals);
    one.has_equals = equals != std::string::npos;
    if (one.has_equals) one.value.words = {word.substr(equals + 1)};
    if (one.name == "--config") {
      read_config(one);
      return;
    }
    const Field* field = find_field(one.name, command_);
    if (field == nullptr && one.name.rfind("--no-", 0) == 0 && !one.has_equals) {
      const Field* turned_off = find_field(one.name.substr(5), command_);
      if (turned_off != nullptr && turned_off->kind == Kind::flag) {
        field = turned_off;
        one = {turned_off->flag(), {}, true};
        one.value.words = {"false"};
      }
    }
    if (!one.has_equals) take_values(one, field);
    after_ = one.name;
    given.push_back(std::move(one));
  }

  // The words that belong to a flag: none, one, or all up to the next flag (also for an unknown one).
  void take_values(Given& one, const Field* field) {
    if (field != nullptr && field->kind == Kind::flag) return;
    const bool many =
        field == nullptr || field->kind == Kind::texts || field->kind == Kind::integers || field->kind == Kind::words;
    while (at_ < words_.size() && !looks_like_flag(words_[at_]) && (many || one.value.words.empty())) {
      one.value.words.push_back(words_[at_++]);
    }
  }

  void read_config(Given& one) {
    if (!one.has_equals && at_ < words_.size() && !looks_like_flag(words_[at_]))
      one.value.words.push_back(words_[at_++]);
    if (one.value.words.empty() || one.value.words[0].empty()) {
      complaints.push_back("--config: needs the name of a recipe file");
    } else if (!config.empty()) {
      complaints.push_back("--config is given twice");
    } else {
      config = one.value.words[0];
    }
    after_ = "--config";
  }

  const Texts& words_;
  Command command_;
  size_t at_ = 1;
  std::string after_;
};

void read_recipe(const std::string& path, Command command, Settings& settings, Texts& complaints) {
  constexpr size_t longest = 1 << 20;
  std::string text;
  if (path == "-") fail(Exit::usage, "--config -: a recipe is read from a file");
  const MappedFile file(path);
  if (file.bytes().size() > longest)
    fail(Exit::usage, "{}: longer than {}; this is no recipe", path, human_bytes(longest));
  text.assign(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  std::set<std::string> seen;
  for (const auto& entry : parse_toml(text, path)) {
    const std::string origin = fmt::format("{}:{}", path, entry.line);
    const Field* field = find_field(entry.key, command);
    std::string complaint;
    if (field == nullptr) {
      complaint = fmt::format("{}: {}: {}", origin, printable(entry.key), unknown_name(entry.key, command));
    } else if (!seen.insert(field->name).second) {
      complaint = fmt::format("{}: {} is set before under another of its names", origin, field->name);
    } else {
      complaint = set_value(settings, *field, entry.value, origin);
    }
    if (!complaint.empty()) complaints.push_back(complaint);
  }
}

// The flags a complaint speaks of.
std::set<std::string> flags_in(const std::string& text) {
  std::set<std::string> out;
  for (size_t begin = text.find("--"); begin != std::string::npos; begin = text.find("--", begin + 2)) {
    size_t end = begin + 2;
    while (end < text.size() &&
           (text[end] == '-' || (text[end] >= 'a' && text[end] <= 'z') || (text[end] >= '0' && text[end] <= '9')))
      end++;
    out.insert(text.substr(begin, end - begin));
  }
  return out;
}

// Adds the conflicts that do not merely follow from a value that was refused: those speak of a flag that an earlier
// complaint has named, by flag or by key.
void add_conflicts(const Texts& conflicts, Texts& complaints) {
  std::set<std::string> named;
  for (const auto& complaint : complaints) named.merge(flags_in(complaint));
  for (const auto& field : fields()) {
    for (const auto& complaint : complaints) {
      if (complaint.find(": " + field.name) != std::string::npos) named.insert(field.flag());
    }
  }
  for (const auto& conflict : conflicts) {
    const auto flags = flags_in(conflict);
    if (std::none_of(flags.begin(), flags.end(), [&](const auto& flag) { return named.count(flag) != 0; })) {
      complaints.push_back(conflict);
    }
  }
}

std::optional<Invocation> without_settings(const Texts& words) {
  Invocation out;
  const std::string first = words.empty() ? "" : words[0];
  if (first == "--version" || first == "version") {
    out.action = Invocation::Action::version;
  } else if (first == "--dump-flags-md") {
    out.action = Invocation::Action::dump_flags;
  } else if (first == "--help" || first == "-h" || first == "help") {
    out.action = Invocation::Action::help;
    const auto command = words.size() > 1 ? command_named(words[1]) : std::nullopt;
    if (command) {
      out.action = Invocation::Action::command_help;
      out.command = *command;
    }
  } else {
    return std::nullopt;
  }
  return out;
}

Command command_of(const Texts& words) {
  if (words.empty()) fail(Exit::usage, "which command? `furlong --help` lists them");
  const auto command = command_named(words[0]);
  if (command) return *command;
  Texts names;
  for (const Command known : all_commands()) names.push_back(name_of(known));
  const Texts near = nearest_names(words[0], names);
  fail(Exit::usage, "no command `{}`; {}", printable(words[0]),
       near.empty() ? "`furlong --help` lists them" : "did you mean " + join_or(near) + "?");
}

}  // namespace

Invocation parse_command_line(const Texts& words) {
  if (auto plain = without_settings(words)) return *plain;
  Invocation out;
  out.command = command_of(words);
  CommandLine line(words, out.command);
  line.parse();
  if (line.help) {
    out.action = Invocation::Action::command_help;
    return out;
  }
  Texts complaints;
  if (!line.config.empty()) read_recipe(line.config, out.command, out.settings, complaints);
  complaints.insert(complaints.end(), line.complaints.begin(), line.complaints.end());
  for (const auto& one : line.given) {
    const Field* field = find_field(one.name, out.command);
    const std::string complaint = field == nullptr
                                      ? fmt::format("{}: {}", printable(one.name), unknown_name(one.name, out.command))
                                      : set_value(out.settings, *field, one.value, "command line");
    if (!complaint.empty()) complaints.push_back(complaint);
  }
  add_conflicts(find_conflicts(out.settings, out.command), complaints);
  fail_if_any(complaints);
  out.warning = no_effect_warning(out.settings, out.command);
  return out;
}

}  // namespace furlong
