// The instructions of IFBench (Pyatkin et al. 2025) and of IFEval (Zhou et al. 2023), each a rule that says whether a
// response follows it. The verdicts are those of the package IFBench.
#pragma once
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reward/nltk_data.h"

namespace furlong::grader::ifbench {

// What an instruction says beside its name, from the row's "kwargs".
// pattern, words: characters and dots, which stand for any; the reference takes them for patterns.
enum class Kind { count, position, number, text, pattern, words, relation, letter };

struct Parameter {
  std::string_view name;
  Kind kind = Kind::count;
};

// The values of an instruction's parameters, all present and of their kinds.
struct Given {
  std::map<std::string_view, double> numbers;           // count, position (from 1), number
  std::map<std::string_view, Text> texts;               // text, pattern; letter in lower case
  std::map<std::string_view, std::vector<Text>> words;  // words
  std::map<std::string_view, bool> at_least;            // relation: "at least", else "less than"

  double number(std::string_view name) const { return numbers.at(name); }
  std::size_t index(std::string_view name) const { return static_cast<std::size_t>(numbers.at(name)); }
  const Text& text(std::string_view name) const { return texts.at(name); }
  // Whether so many are at least, or less than, the bound.
  bool holds(std::string_view relation, std::size_t found, std::string_view bound) const {
    return at_least.at(relation) == (static_cast<double>(found) >= numbers.at(bound));
  }
};

// A response under judgement, with what several rules read of it.
class Response {
 public:
  Response(View text, const NltkData& data) : text(text), data_(data) {}

  const View text;
  // Of rules with Needs::sentences alone.
  std::vector<View> sentences() const { return sentences(text); }
  std::vector<View> sentences(View part) const { return sentences_of(part, *data_.punkt); }
  // The words of all sentences of a text.
  std::vector<Text> tokens(View part) const;
  const std::unordered_set<Text>& stop_words() const { return *data_.stop_words; }
  const std::unordered_map<Text, int>& syllables() const { return *data_.syllables; }
  const TaggerModel& tagger() const { return *data_.tagger; }

 private:
  const NltkData& data_;
};

enum class Needs { nothing, sentences, stop_words, syllables, tagger };

struct Instruction {
  std::string_view name;
  bool (*follows)(const Response&, const Given&) = nullptr;  // the response is not blank
  Needs needs = Needs::nothing;
  std::vector<Parameter> parameters = {};
};

std::span<const Instruction> classic_instructions();  // IFEval's
std::span<const Instruction> word_instructions();     // count:, ratio:, sentence:, words:
std::span<const Instruction> format_instructions();   // format:, repeat:, custom:

}  // namespace furlong::grader::ifbench
