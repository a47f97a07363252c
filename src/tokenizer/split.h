// Splitting text by a tokenizer's pattern.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace furlong {

// A split pattern as tokenizer.json writes it, for Oniguruma. It is compiled with PCRE2; what the two engines read
// differently is translated (\s is the White_Space property) or refused: any construct beyond literals, character
// classes, \p of a general category, \s \d \r \n \t, groups without names, alternatives, look-around and the plain,
// lazy and possessive quantifiers. Which characters are letters, marks and numbers is up to PCRE2's Unicode version (14
// in PCRE2 10.42): a character that came later may be split off differently than by a newer Oniguruma.
class SplitPattern {
 public:
  // `where` names the pattern in errors. Throws Error(Exit::input) if it cannot be compiled, uses a refused construct
  // or can match the empty string.
  SplitPattern(std::string_view pattern, const std::string& where);

  // Appends the pieces of `text` in order: every match, and every stretch between matches. `text` must be well-formed
  // UTF-8. Throws Error(Exit::input) when matching takes more steps than the limit.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;
  // The same, one piece after the other, until take() says false; returns false then.
  bool split(std::string_view text, const std::function<bool(std::string_view)>& take) const;

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace furlong
