#include "reward/scorer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "reward/boxed.h"
#include "reward/dapo.h"
#include "reward/deepscaler.h"
#include "reward/python_number.h"
#include "reward/text.h"

namespace furlong {

namespace {

using namespace grader;

Score scored(double reward) { return {reward, {}, {}, {}}; }
Score unscored(std::string why) { return {std::nullopt, std::move(why), {}, {}}; }

std::string describe(const Label& label) {
  switch (label.kind) {
    case Label::Kind::none: return "there is no label";
    case Label::Kind::other: return "the label is neither text nor a number";
    default: break;
  }
  constexpr std::size_t shown = 80;
  std::string text = label.text.substr(0, shown);
  if (label.text.size() > shown) text += "...";
  return fmt::format("label '{}'", text);
}

// The bare answer in the label, which may hold a \boxed of its own; empty where that is broken.
std::optional<std::string_view> bare_label(const Label& label) {
  if (contains(label.text, "\\boxed")) return last_boxed(label.text);
  return label.text;
}

// Grades the last \boxed of `solution`.
Score score_boxed(std::string_view solution, const Label& label) {
  const auto answer = last_boxed(solution);
  if (!answer) return scored(0);
  if (label.kind == Label::Kind::none || label.kind == Label::Kind::other)
    return unscored(fmt::format("deepscaler: {}; the rule compares with text, an integer or a float", describe(label)));
  const auto truth = bare_label(label);
  if (label.text.empty() || !truth) return scored(0);
  return scored(answers_agree(*answer, *truth) ? 1 : 0);
}

class DeepscalerScorer : public Scorer {
 public:
  Score score(std::string_view response, const Label& label) const override {
    const auto solution = after_thought(response);
    return solution ? score_boxed(*solution, label) : scored(0);
  }
};

class GemmaMathScorer : public Scorer {
 public:
  Score score(std::string_view response, const Label& label) const override {
    constexpr std::string_view channel = "<channel|>";
    const std::size_t at = response.rfind(channel);
    return score_boxed(at == std::string_view::npos ? response : response.substr(at + channel.size()), label);
  }
};

class MathScorer : public Scorer {
 public:
  Score score(std::string_view response, const Label& label) const override {
    if (is_falsy(label)) return scored(0);
    if (label.kind == Label::Kind::other) return unscored("math: " + describe(label));
    const auto answer = last_boxed(response);
    const auto truth = bare_label(label);
    if (!answer || !truth) return scored(0);
    return scored(answers_agree(*answer, *truth) ? 1 : 0);
  }

 private:
  static bool is_falsy(const Label& label) {
    switch (label.kind) {
      case Label::Kind::none: return true;
      case Label::Kind::string: return label.text.empty();
      case Label::Kind::integer: return label.text == "0" || label.text == "False";
      case Label::Kind::real: return label.text == "0.0" || label.text == "-0.0";
      case Label::Kind::other: break;
    }
    return false;
  }
};

class DapoScorer : public Scorer {
 public:
  Score score(std::string_view response, const Label& label) const override {
    const bool comparable = label.kind != Label::Kind::none && label.kind != Label::Kind::other;
    const auto truth = comparable ? dapo_label(label.text) : std::nullopt;
    if (!truth) return unscored(fmt::format("dapo: {}; the rule compares with a number", describe(label)));
    Score out;
    out.pred = dapo_answer(response);
    out.acc = out.pred == *truth;
    out.reward = *out.acc ? 1.0 : -1.0;
    return out;
  }
};

class BoxedScorer : public Scorer {
 public:
  explicit BoxedScorer(std::unique_ptr<Scorer> rule) : rule_(std::move(rule)) {}
  Score score(std::string_view response, const Label& label) const override {
    return rule_->score(last_boxed(response).value_or(""), label);
  }

 private:
  std::unique_ptr<Scorer> rule_;
};

template <class Rule>
std::unique_ptr<Scorer> make() {
  return std::make_unique<Rule>();
}

struct Entry {
  std::string_view name;
  std::unique_ptr<Scorer> (*make)();
};

constexpr Entry entries[] = {
    {"deepscaler", make<DeepscalerScorer>},
    {"gemma_math", make<GemmaMathScorer>},
    {"math", make<MathScorer>},
    {"dapo", make<DapoScorer>},
};

// How many letters have to change to turn one name into the other (Levenshtein).
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t change = diagonal + (a[i] != b[j]);
      diagonal = std::exchange(row[j + 1], std::min({row[j] + 1, row[j + 1] + 1, change}));
    }
  }
  return row[b.size()];
}

}  // namespace

Label Label::real(double value) { return {Kind::real, python_float_text(value)}; }

std::unique_ptr<Scorer> make_scorer(std::string_view rm_type) {
  constexpr std::string_view prefix = "boxed_";
  const bool boxed = rm_type.starts_with(prefix);
  const std::string_view name = boxed ? rm_type.substr(prefix.size()) : rm_type;
  for (const Entry& entry : entries) {
    if (entry.name != name) continue;
    auto rule = entry.make();
    return boxed ? std::make_unique<BoxedScorer>(std::move(rule)) : std::move(rule);
  }
  const auto nearest = std::min_element(std::begin(entries), std::end(entries), [name](const Entry& a, const Entry& b) {
    return distance(a.name, name.substr(0, 64)) < distance(b.name, name.substr(0, 64));
  });
  fail(Exit::usage,
       "--rm-type {}: there is no such reward rule; did you mean {}{}? The rules are {}, each also with the prefix {}",
       rm_type.substr(0, 64), boxed ? prefix : "", nearest->name, fmt::join(scorer_names(), ", "), prefix);
}

std::vector<std::string> scorer_names() {
  std::vector<std::string> names;
  for (const Entry& entry : entries) names.emplace_back(entry.name);
  return names;
}

}  // namespace furlong
