// Rewards: a response and its label to a number. A Scorer is one rule; a label that its rule cannot judge gives no
// reward and says why, never a silent zero.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace furlong {

// A data row's label. Rules tell an integer 0 from the text "0", so the kind goes along with the text.
struct Label {
  enum class Kind { none, string, integer, real, other };
  Kind kind = Kind::none;
  std::string text;  // as Python's str() writes it; empty for none and other

  static Label none() { return {}; }                  // absent or null
  static Label other() { return {Kind::other, {}}; }  // a list or an object
  static Label string(std::string text) { return {Kind::string, std::move(text)}; }
  static Label integer(std::int64_t value) { return {Kind::integer, std::to_string(value)}; }
  static Label integer(std::uint64_t value) { return {Kind::integer, std::to_string(value)}; }
  static Label boolean(bool value) { return {Kind::integer, value ? "True" : "False"}; }
  static Label real(double value);
};

struct Score {
  std::optional<double> reward;  // empty: unscored
  std::string error;             // why it is unscored
  // dapo only: whether the answer is right, and the answer as it was compared.
  std::optional<bool> acc;
  std::string pred;
};

// What a rule may look at beside response and label.
struct ScoredSample {
  std::string_view response;
  const Label& label;
  std::string_view metadata = "{}";         // a JSON object
  std::span<const int32_t> tokens = {};     // prompt and response; none: unknown
  std::optional<std::int64_t> number = {};  // of the sample, over the whole run
};

class Scorer {
 public:
  virtual ~Scorer() = default;
  // Safe to call from several threads at once; takes milliseconds at most, whatever the response. The response is
  // UTF-8 (other bytes are kept as they are), the detokenised text including special tokens.
  virtual Score score(const ScoredSample& sample) const = 0;
  // Throws Error(Exit::input) for a row whose metadata the rule could not judge any response by.
  virtual void check([[maybe_unused]] std::string_view metadata) const {}
  Score score(std::string_view response, const Label& label) const {
    return score(ScoredSample{.response = response, .label = label});
  }
};

// The rule of a --rm-type: deepscaler, gemma_math, math, gpqa (0 or 1), dapo (-1 or 1), f1 (0 to 1), random and
// deterministic_random, ifbench (0 or 1). With the prefix boxed_ the rule sees only the inside of the response's last
// \boxed. `nltk_data`: a folder for ifbench, or "". Throws Error(Exit::usage) for another name, naming the nearest;
// Error(Exit::input) where the folder cannot be read.
std::unique_ptr<Scorer> make_scorer(std::string_view rm_type, const std::string& nltk_data = {});

// The names that make_scorer takes, without prefix.
std::vector<std::string> scorer_names();

}  // namespace furlong
