#include "reward/ifbench.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "reward/ifbench_rules.h"
#include "reward/text.h"
#include "reward/word_tokens.h"

namespace furlong::grader::ifbench {

std::vector<Text> Response::tokens(View part) const {
  std::vector<Text> out;
  for (const View sentence : sentences(part)) {
    for (Text& token : treebank_tokens(sentence)) out.push_back(std::move(token));
  }
  return out;
}

namespace {

using Instructions = std::map<std::string_view, const Instruction*>;

const Instructions& all_instructions() {
  static const Instructions all = [] {
    Instructions found;
    for (const auto list : {classic_instructions(), word_instructions(), format_instructions()}) {
      for (const Instruction& instruction : list) found[instruction.name] = &instruction;
    }
    return found;
  }();
  return all;
}

constexpr double largest_number = 1e9;

// Without the token that ends a turn, which is no part of what was said.
std::string_view said(std::string_view response) {
  for (const std::string_view end : {"<|im_end|>", "<|endoftext|>"}) {
    if (response.ends_with(end)) return response.substr(0, response.size() - end.size());
  }
  return response;
}

struct Task {
  const Instruction* instruction = nullptr;
  Given given;
};

[[noreturn]] void refuse(std::string_view name, const std::string& why) {
  fail(Exit::input, "ifbench: instruction {}: {}", printable(std::string(name), 80), why);
}

// Text that the reference would take for a pattern, and which is one of characters and dots.
bool is_plain(const std::string& text) { return text.find_first_of("\\^$*+?{}[]()|") == std::string::npos; }

void read_parameter(const Parameter& parameter, const Json& value, std::string_view instruction, Given& given) {
  const auto wrong = [&](const char* wanted) {
    refuse(instruction, fmt::format("\"{}\" is {}, {} is wanted", parameter.name,
                                    printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), 80), wanted));
  };
  const auto text = [&wrong](const Json& item, bool pattern) {
    if (!item.is_string() || strip(item.get_ref<const std::string&>()).empty()) wrong("text that is not blank");
    if (pattern && !is_plain(item.get_ref<const std::string&>())) wrong("text without the marks of patterns");
    return decode(item.get_ref<const std::string&>());
  };
  switch (parameter.kind) {
    case Kind::count:
    case Kind::position:
    case Kind::number: {
      const bool whole = parameter.kind != Kind::number;
      const double least = parameter.kind == Kind::position ? 1 : 0;
      const char* wanted = !whole ? "a number from 0" : least > 0 ? "a whole number from 1" : "a whole number from 0";
      if (!value.is_number()) wrong(wanted);
      const auto number = value.get<double>();
      if (!(number >= least && number <= largest_number) || (whole && number != std::floor(number))) wrong(wanted);
      given.numbers[parameter.name] = number;
      break;
    }
    case Kind::text:
    case Kind::pattern: given.texts[parameter.name] = text(value, parameter.kind == Kind::pattern); break;
    case Kind::words: {
      if (!value.is_array() || value.empty()) wrong("a list of words");
      for (const Json& item : value) given.words[parameter.name].push_back(text(item, true));
      break;
    }
    case Kind::relation: {
      if (value != "less than" && value != "at least") wrong("\"less than\" or \"at least\"");
      given.at_least[parameter.name] = value == "at least";
      break;
    }
    case Kind::letter: {
      const Text letter = value.is_string() ? lower(decode(value.get_ref<const std::string&>())) : Text();
      if (letter.size() != 1 || !is_lower(letter[0]) || letter[0] >= 0x80) wrong("a letter from a to z");
      given.texts[parameter.name] = letter;
      break;
    }
  }
}

// A list with one object for each instruction, one object for all, or too short a list, whose last stands for the rest.
Json settings_of(const Json& metadata, std::size_t index) {
  const auto kwargs = metadata.find("kwargs");
  if (kwargs == metadata.end()) return Json::object();
  if (kwargs->is_object()) return *kwargs;
  if (!kwargs->is_array() || kwargs->empty()) return Json::object();
  const Json& entry = (*kwargs)[std::min(index, kwargs->size() - 1)];
  return entry.is_object() ? entry : Json::object();
}

class IfBenchScorer : public Scorer {
 public:
  explicit IfBenchScorer(const std::string& nltk_data) {
    if (!nltk_data.empty()) data_ = read_nltk_data(nltk_data);
  }

  void check(std::string_view metadata) const override { tasks_of(metadata); }

  Score score(const ScoredSample& sample) const override {
    try {
      const auto tasks = tasks_of(sample.metadata);
      const Text text = decode(said(sample.response));
      const Response response(text, data_);
      const bool follows = !is_blank(text) && std::all_of(tasks.begin(), tasks.end(), [&](const Task& task) {
        return task.instruction->follows(response, task.given);
      });
      return {follows ? 1.0 : 0.0, {}, {}, {}};
    } catch (const Error& e) {
      return {std::nullopt, e.what(), {}, {}};
    }
  }

 private:
  // Throws Error(Exit::input) where the reference would make a value up, or cannot judge.
  std::vector<Task> tasks_of(std::string_view text) const {
    const Json metadata = parse_json(text, "metadata");
    const auto names = metadata.is_object() ? metadata.find("instruction_id_list") : metadata.end();
    if (!metadata.is_object() || names == metadata.end() || !names->is_array() || names->empty())
      fail(Exit::input, "ifbench: metadata has no \"instruction_id_list\", a list of instructions' names");
    std::vector<Task> tasks;
    for (const Json& value : *names) {
      if (!value.is_string()) fail(Exit::input, "ifbench: \"instruction_id_list\" holds something that is no name");
      const std::string name(strip(value.get_ref<const std::string&>()));
      const auto known = all_instructions().find(name);
      if (known == all_instructions().end()) refuse_unknown(name);
      Task task{known->second, {}};
      refuse_without_data(*task.instruction);
      const Json settings = settings_of(metadata, tasks.size());
      for (const Parameter& parameter : task.instruction->parameters) {
        const auto found = settings.find(parameter.name);
        if (found == settings.end() || found->is_null())
          refuse(name, fmt::format("\"{}\" is missing in its \"kwargs\"", parameter.name));
        read_parameter(parameter, *found, name, task.given);
      }
      tasks.push_back(std::move(task));
    }
    return tasks;
  }

  [[noreturn]] static void refuse_unknown(const std::string& name) {
    for (const std::string_view other :
         {"language:response_language", "change_case:english_capital", "change_case:english_lowercase"}) {
      if (name == other)
        refuse(name,
               "it guesses at the language, which this program does not; run it behind --custom-rm-command or "
               "--rm-url, as docs/rewards.md shows");
    }
    std::vector<std::string> names;
    for (const auto& [known, instruction] : all_instructions()) names.emplace_back(known);
    const std::string nearest = join_or(nearest_names(name, names));
    refuse(name, "IFBench has none of this name" + (nearest.empty() ? "" : "; did you mean " + nearest + "?"));
  }

  void refuse_without_data(const Instruction& instruction) const {
    const auto lacks = [&](const char* package) {
      refuse(instruction.name,
             fmt::format("it needs NLTK's {0}: python -m nltk.downloader -d FOLDER {0}, then --nltk-data FOLDER",
                         package));
    };
    switch (instruction.needs) {
      case Needs::nothing: break;
      case Needs::tagger:
        if (!data_.tagger) lacks("averaged_perceptron_tagger_eng");
        [[fallthrough]];
      case Needs::sentences:
        if (!data_.punkt) lacks("punkt_tab");
        break;
      case Needs::stop_words:
        if (!data_.stop_words) lacks("stopwords");
        break;
      case Needs::syllables:
        if (!data_.syllables)
          refuse(instruction.name,
                 "it needs the table of the Python package syllapy: copy its data.csv to FOLDER/syllapy/data.csv, then "
                 "--nltk-data FOLDER");
        break;
    }
  }

  NltkData data_;
};

}  // namespace

std::unique_ptr<Scorer> make_ifbench(const std::string& nltk_data) {
  return std::make_unique<IfBenchScorer>(nltk_data);
}

}  // namespace furlong::grader::ifbench
