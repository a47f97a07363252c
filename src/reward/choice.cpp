#include "reward/choice.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "base/json.h"
#include "reward/python_number.h"
#include "reward/text.h"

namespace furlong::grader {
namespace {

using Letters = std::vector<std::string>;

constexpr int default_letters = 8, alphabet = 26;

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
char ascii_upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }
std::string ascii_upper(std::string_view text) {
  std::string out;
  for (const char c : text) out += ascii_upper(c);
  return out;
}

// Runs of anything but ASCII letters and digits become one space.
std::string plain(std::string_view text) {
  std::string out;
  for (const char c : lower(text)) {
    if ((c >= 'a' && c <= 'z') || is_ascii_digit(c)) {
      out += c;
    } else if (!out.empty() && out.back() != ' ') {
      out += ' ';
    }
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

// As Python's str() writes a JSON value.
std::string text_of(const OrderedJson& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_null()) return "None";
  if (value.is_number_float()) return python_float_text(value.get<double>());
  return value.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

bool is_truthy(const OrderedJson& value) {
  if (value.is_null()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value.get<double>() != 0;
  return value.is_string() ? !value.get_ref<const std::string&>().empty() : !value.empty();
}

const OrderedJson* member(const OrderedJson& object, const char* key) {
  const auto at = object.find(key);
  return at == object.end() ? nullptr : &*at;
}

// One of a pattern's pieces at the head of what is left of a text.
class PatternReader {
 public:
  PatternReader(std::string_view text, size_t at) : text_(text), at_(at) {}
  bool word(std::string_view lower_case) {
    if (text_.size() < at_ + lower_case.size()) return false;
    for (size_t i = 0; i < lower_case.size(); i++) {
      if (ascii_upper(text_[at_ + i]) != ascii_upper(lower_case[i])) return false;
    }
    at_ += lower_case.size();
    return true;
  }
  bool one_of(std::initializer_list<std::string_view> words) {
    return std::any_of(words.begin(), words.end(), [&](std::string_view w) { return word(w); });
  }
  PatternReader& spaces() {
    while (at_ < text_.size()) {
      const CodePoint c = code_point(text_, at_);
      if (!is_space(c.value)) break;
      at_ += c.bytes;
    }
    return *this;
  }
  std::optional<char> letter() {
    if (at_ >= text_.size() || !is_ascii_letter(text_[at_])) return std::nullopt;
    return ascii_upper(text_[at_++]);
  }

 private:
  std::string_view text_;
  size_t at_;
};

// "is", ":" or neither, then a letter.
std::optional<char> letter_after(PatternReader reader) {
  reader.spaces();
  PatternReader with = reader;
  if (with.one_of({"is", ":"})) {
    if (const auto letter = with.spaces().letter()) return letter;
  }
  return reader.letter();
}

std::optional<char> announced(std::string_view text, size_t at) {
  PatternReader reader(text, at);
  return reader.one_of({"answer", "option", "choice"}) ? letter_after(reader) : std::nullopt;
}

std::optional<char> declared_correct(std::string_view text, size_t at) {
  PatternReader reader(text, at);
  const auto letter = reader.letter();
  if (!letter || !reader.spaces().word("is")) return std::nullopt;
  reader.spaces().word("the");
  return reader.spaces().word("correct") ? letter : std::nullopt;
}

std::optional<char> announced_finally(std::string_view text, size_t at) {
  PatternReader reader(text, at);
  if (!reader.word("final") || !reader.spaces().one_of({"answer", "option"})) return std::nullopt;
  return letter_after(reader);
}

bool continues_word(std::string_view text, size_t at) {
  if (at >= text.size()) return false;
  const CodePoint c = code_point(text, at);
  return c.value == '_' || is_alpha(c.value) || is_digit(c.value);
}

// Whether the byte before `at` ends a letter or digit.
bool follows_word(std::string_view text, size_t at) {
  if (at == 0) return false;
  size_t begin = at - 1;
  while (begin > 0 && at - begin < 4 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) begin--;
  return continues_word(text, begin);
}

std::optional<std::string> letter_of(std::string_view text, const Letters& valid) {
  const auto known = [&](char letter) {
    return std::find(valid.begin(), valid.end(), std::string(1, letter)) != valid.end();
  };
  for (const auto pattern : {announced, declared_correct, announced_finally}) {
    for (size_t at = 0; at < text.size(); at++) {
      const auto letter = pattern(text, at);
      if (!letter) continue;
      if (known(*letter)) return std::string(1, *letter);
      break;  // only the first place counts
    }
  }
  for (size_t at = text.size(); at-- > 0;) {
    const char c = text[at];
    if (c < 'A' || c > 'Z' || !known(c) || follows_word(text, at) || continues_word(text, at + 1)) continue;
    return std::string(1, c);
  }
  return std::nullopt;
}

struct Question {
  std::vector<std::string> choices;
  Letters valid;
  std::string correct;  // empty: unknown
  std::string label;    // its text, where it is one
  std::vector<std::string> answers;

  Question(const Label& given, const OrderedJson& metadata) {
    if (const auto* list = member(metadata, "choices"); list != nullptr && list->is_structured()) {
      for (const auto& choice : *list) choices.push_back(text_of(choice));
    }
    const auto* letters = member(metadata, "valid_letters");
    if (letters != nullptr && letters->is_array() && !letters->empty()) {
      for (const auto& letter : *letters) valid.push_back(ascii_upper(text_of(letter)));
    } else if (letters != nullptr && letters->is_string() && is_truthy(*letters)) {
      for (const char c : letters->get_ref<const std::string&>()) valid.emplace_back(1, ascii_upper(c));
    } else {
      const size_t count = choices.empty() ? default_letters : std::min<size_t>(choices.size(), alphabet);
      for (size_t i = 0; i < count; i++) valid.emplace_back(1, static_cast<char>('A' + i));
    }
    if (const auto* letter = member(metadata, "correct_letter"); letter != nullptr && letter->is_string())
      correct = ascii_upper(strip(letter->get_ref<const std::string&>()));
    read(given);
    answers_of(metadata);
  }

 private:
  void read(const Label& given) {
    if (given.kind == Label::Kind::string) {
      label = strip(given.text);
      const std::string letter = ascii_upper(label);
      if (count_code_points(label) == 1 && correct.empty() &&
          std::find(valid.begin(), valid.end(), letter) != valid.end())
        correct = letter;
    } else if (given.kind == Label::Kind::integer || given.kind == Label::Kind::real) {
      const double number = given.text == "True"    ? 1
                            : given.text == "False" ? 0
                                                    : std::strtod(given.text.c_str(), nullptr);
      const double index = std::trunc(number);
      if (index >= 0 && index < static_cast<double>(valid.size())) correct = valid[static_cast<size_t>(index)];
    }
    if (!correct.empty() || label.empty()) return;
    for (size_t i = 0; i < std::min(choices.size(), valid.size()); i++) {
      if (plain(choices[i]) != plain(label)) continue;
      correct = valid[i];
      return;
    }
  }
  void answers_of(const OrderedJson& metadata) {
    const auto at = static_cast<size_t>(std::find(valid.begin(), valid.end(), correct) - valid.begin());
    if (!correct.empty() && at < std::min(choices.size(), valid.size())) answers.push_back(choices[at]);
    for (const char* key : {"correct_answer", "answer_text"}) {
      const auto* value = member(metadata, key);
      if (value != nullptr && is_truthy(*value)) answers.push_back(text_of(*value));
    }
    answers.push_back(label);
  }
};

}  // namespace

double grade_choice(std::string_view response, const Label& label, std::string_view metadata) {
  OrderedJson json = OrderedJson::parse(metadata, nullptr, false);
  if (!json.is_object()) json = OrderedJson::object();
  const Question question(label, json);
  constexpr std::string_view think = "</think>";
  const size_t at = response.rfind(think);
  const std::string_view text = at == std::string_view::npos ? response : response.substr(at + think.size());
  const auto letter = letter_of(text, question.valid);
  if (letter && !question.correct.empty()) return *letter == question.correct ? 1 : 0;
  const std::string said = plain(text);
  for (const std::string& answer : question.answers) {
    const std::string target = plain(answer);
    if (!target.empty() && said.find(target) != std::string::npos) return 1;
  }
  return letter && question.correct.empty() && !question.label.empty() && *letter == ascii_upper(question.label) ? 1
                                                                                                                 : 0;
}

}  // namespace furlong::grader
