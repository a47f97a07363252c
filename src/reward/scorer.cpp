#include "reward/scorer.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "reward/boxed.h"
#include "reward/choice.h"
#include "reward/dapo.h"
#include "reward/deepscaler.h"
#include "reward/f1.h"
#include "reward/ifbench.h"
#include "reward/python_number.h"
#include "reward/sha256.h"
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
  Score score(const ScoredSample& sample) const override {
    const auto solution = after_thought(sample.response);
    return solution ? score_boxed(*solution, sample.label) : scored(0);
  }
};

class GemmaMathScorer : public Scorer {
 public:
  Score score(const ScoredSample& sample) const override {
    const std::string_view response = sample.response;
    constexpr std::string_view channel = "<channel|>";
    const std::size_t at = response.rfind(channel);
    return score_boxed(at == std::string_view::npos ? response : response.substr(at + channel.size()), sample.label);
  }
};

class MathScorer : public Scorer {
 public:
  Score score(const ScoredSample& sample) const override {
    const Label& label = sample.label;
    if (is_falsy(label)) return scored(0);
    if (label.kind == Label::Kind::other) return unscored("math: " + describe(label));
    const auto answer = last_boxed(sample.response);
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
  Score score(const ScoredSample& sample) const override {
    const Label& label = sample.label;
    const bool comparable = label.kind != Label::Kind::none && label.kind != Label::Kind::other;
    const auto truth = comparable ? dapo_label(label.text) : std::nullopt;
    if (!truth) return unscored(fmt::format("dapo: {}; the rule compares with a number", describe(label)));
    Score out;
    out.pred = dapo_answer(sample.response);
    out.acc = out.pred == *truth;
    out.reward = *out.acc ? 1.0 : -1.0;
    return out;
  }
};

class F1Scorer : public Scorer {
 public:
  Score score(const ScoredSample& sample) const override {
    if (sample.label.kind != Label::Kind::string)
      return unscored(fmt::format("f1: {}; the rule compares with text", describe(sample.label)));
    return scored(word_f1(sample.response, sample.label.text));
  }
};

class GpqaScorer : public Scorer {
 public:
  Score score(const ScoredSample& sample) const override {
    return scored(grade_choice(sample.response, sample.label, sample.metadata));
  }
};

// Says nothing of the response: for trying out a run.
class RandomScorer : public Scorer {
 public:
  Score score(const ScoredSample& sample) const override {
    if (!sample.number) return unscored("random: only samples of a run have a reward by this rule");
    return scored(sha256(fmt::format("reward {}", *sample.number))[0] % 2);
  }
};

// The same for the same tokens and text.
class HashScorer : public Scorer {
 public:
  Score score(const ScoredSample& sample) const override {
    if (sample.tokens.empty()) return unscored("deterministic_random: the sample's tokens are not known");
    return scored(sha256(fmt::format("[{}]{}", fmt::join(sample.tokens, ", "), sample.response))[0] % 2);
  }
};

class BoxedScorer : public Scorer {
 public:
  explicit BoxedScorer(std::unique_ptr<Scorer> rule) : rule_(std::move(rule)) {}
  Score score(const ScoredSample& sample) const override {
    ScoredSample inside = sample;
    inside.response = last_boxed(sample.response).value_or("");
    return rule_->score(inside);
  }
  void check(std::string_view metadata) const override { rule_->check(metadata); }

 private:
  std::unique_ptr<Scorer> rule_;
};

template <class Rule>
std::unique_ptr<Scorer> make(const std::string& /*nltk_data*/) {
  return std::make_unique<Rule>();
}

struct Entry {
  std::string_view name;
  std::unique_ptr<Scorer> (*make)(const std::string& nltk_data);
};

constexpr Entry entries[] = {
    {"deepscaler", make<DeepscalerScorer>},
    {"gemma_math", make<GemmaMathScorer>},
    {"math", make<MathScorer>},
    {"dapo", make<DapoScorer>},
    {"f1", make<F1Scorer>},
    {"gpqa", make<GpqaScorer>},
    {"random", make<RandomScorer>},
    {"deterministic_random", make<HashScorer>},
    {"ifbench", ifbench::make_ifbench},
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

std::unique_ptr<Scorer> make_scorer(std::string_view rm_type, const std::string& nltk_data) {
  constexpr std::string_view prefix = "boxed_";
  const bool boxed = rm_type.starts_with(prefix);
  const std::string_view name = boxed ? rm_type.substr(prefix.size()) : rm_type;
  for (const Entry& entry : entries) {
    if (entry.name != name) continue;
    auto rule = entry.make(nltk_data);
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
