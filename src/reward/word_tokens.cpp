#include "reward/word_tokens.h"

#include <algorithm>
#include <iterator>
#include <optional>

#include "reward/text.h"

namespace furlong::grader::ifbench {
namespace {

// What stands at a place and is replaced: so many characters, by this.
struct Found {
  std::size_t length = 0;  // at least 1
  Text instead;
};

// The text with all that `find(text, at)` finds replaced, from left to right; what was replaced is not looked at again.
template <class Find>
void substitute(Text& text, Find find) {
  Text out;
  std::size_t kept = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::optional<Found> found = find(View(text), at);
    if (!found) {
      ++at;
      continue;
    }
    out.append(text, kept, at - kept).append(found->instead);
    kept = at += found->length;
  }
  if (kept > 0) text = std::move(out.append(text, kept));
}

char32_t at_or_nul(View text, std::size_t at) { return at < text.size() ? text[at] : U'\0'; }

bool starts_here(View text, std::size_t at, View word) {
  return text.substr(std::min(at, text.size())).starts_with(word);
}

// `word` is in lower case.
bool starts_in_any_case(View text, std::size_t at, View word) {
  if (at > text.size() || text.size() - at < word.size()) return false;
  return std::equal(word.begin(), word.end(), text.begin() + static_cast<std::ptrdiff_t>(at),
                    [](char32_t a, char32_t b) { return a == (b >= U'A' && b <= U'Z' ? b + 32 : b); });
}

bool ends_word(View text, std::size_t at) { return at >= text.size() || !is_nltk_word(text[at]); }

Text spaced(View part) { return Text(U" ").append(part).append(U" "); }

void space_each(Text& text, View set) {
  substitute(text, [set](View t, std::size_t at) -> std::optional<Found> {
    if (!is_in(t[at], set)) return std::nullopt;
    return Found{1, spaced(t.substr(at, 1))};
  });
}

// Runs of at least `least` of a character.
void space_runs(Text& text, char32_t c, std::size_t least) {
  substitute(text, [=](View t, std::size_t at) -> std::optional<Found> {
    const std::size_t end = std::min(t.find_first_not_of(c, at), t.size());
    if (t[at] != c || end - at < least) return std::nullopt;
    return Found{end - at, spaced(t.substr(at, end - at))};
  });
}

void space_text(Text& text, View part, View instead) {
  substitute(text, [=](View t, std::size_t at) -> std::optional<Found> {
    if (!starts_here(t, at, part)) return std::nullopt;
    return Found{part.size(), spaced(instead)};
  });
}

void opening_quotes(Text& text) {
  substitute(text, [](View t, std::size_t at) -> std::optional<Found> {
    if (is_in(t[at], U"«“‘„")) return Found{1, spaced(t.substr(at, 1))};
    const std::size_t end = std::min(t.find_first_not_of(U'`', at), t.size());
    if (end == at) return std::nullopt;
    return Found{end - at, spaced(t.substr(at, end - at))};
  });
  if (text.starts_with(U'"')) text.replace(0, 1, U"``");
  space_text(text, U"``", U"``");
  substitute(text, [](View t, std::size_t at) -> std::optional<Found> {
    if (!is_in(t[at], U" ([{<")) return std::nullopt;
    const std::size_t length = at_or_nul(t, at + 1) == U'"' ? 1 : starts_here(t, at + 1, U"''") ? 2 : 0;
    if (length == 0) return std::nullopt;
    return Found{1 + length, Text(1, t[at]) + U" `` "};
  });
  // An apostrophe before a word is a quote, unless the word is the end of a contraction.
  substitute(text, [](View t, std::size_t at) -> std::optional<Found> {
    if (t[at] != U'\'' || ends_word(t, at + 1) || (at > 0 && is_nltk_word(t[at - 1]))) return std::nullopt;
    for (const View end : {U"re", U"ve", U"ll", U"m", U"t", U"s", U"d", U"n"}) {
      if (starts_in_any_case(t, at + 1, end) && ends_word(t, at + 1 + end.size())) return std::nullopt;
    }
    return Found{1, U"' "};
  });
}

// The period that ends a text, after which only `closing` and white space follow; npos if there is none.
std::size_t last_period(View text, View closing) {
  const std::size_t at = text.rfind(U'.');
  if (at == View::npos || at == 0 || text[at - 1] == U'.') return View::npos;
  std::size_t end = std::min(text.find_first_not_of(closing, at + 1), text.size());
  return is_blank(text.substr(end)) ? at : View::npos;
}

void final_period(Text& text, View closing, bool space_after) {
  const std::size_t at = last_period(text, closing);
  if (at == View::npos) return;
  const std::size_t end = std::min(text.find_first_not_of(closing, at + 1), text.size());
  const Text closed = text.substr(at + 1, end - at - 1);
  text.resize(at);
  text.append(space_after ? U" . " : U" .").append(closed).append(U" ");
}

void punctuation(Text& text) {
  final_period(text, U"])}>\"'»”’ ", true);
  substitute(text, [](View t, std::size_t at) -> std::optional<Found> {
    if (!is_in(t[at], U":,") || at + 1 == t.size() || is_decimal(t[at + 1])) return std::nullopt;
    return Found{2, spaced(t.substr(at, 1)) + Text(1, t[at + 1])};
  });
  const std::size_t line = text.ends_with(U'\n') ? 1 : 0;  // before a last newline
  if (text.size() > line && is_in(text[text.size() - 1 - line], U":,")) {
    const std::size_t at = text.size() - 1 - line;
    text.replace(at, 1, spaced(View(text).substr(at, 1)));
  }
  space_runs(text, U'.', 2);
  space_each(text, U";@#$%&");
  space_each(text, U"\u2012\u2013\u2014\u2015");
  final_period(text, U"])}>\"'", false);
  space_each(text, U"?!");
  substitute(text, [](View t, std::size_t at) -> std::optional<Found> {
    if (t[at] == U'\'' || !starts_here(t, at + 1, U"' ")) return std::nullopt;
    return Found{3, Text(1, t[at]) + U" ' "};
  });
  space_each(text, U"*");
  space_each(text, U"][(){}<>");
  space_text(text, U"--", U"--");
}

// 's, 'll, n't and others from the word before them.
void clitics(Text& text, std::initializer_list<View> ends) {
  substitute(text, [ends](View t, std::size_t at) -> std::optional<Found> {
    if (t[at] == U'\'' || t[at] == U' ') return std::nullopt;
    for (const View end : ends) {
      if (starts_here(t, at + 1, end) && at_or_nul(t, at + 1 + end.size()) == U' ')
        return Found{end.size() + 2, Text(1, t[at]) + U" " + Text(end) + U" "};
    }
    return std::nullopt;
  });
}

void closing_quotes(Text& text) {
  space_each(text, U"»”’");
  space_text(text, U"''", U"''");
  space_text(text, U"\"", U"''");
  substitute(text, [](View t, std::size_t at) -> std::optional<Found> {
    std::size_t end = at;
    while (end < t.size() && is_space(t[end])) ++end;
    if (end == at) return std::nullopt;
    return Found{end - at, U" "};
  });
  clitics(text, {U"'s", U"'S", U"'m", U"'M", U"'d", U"'D", U"'"});
  clitics(text, {U"'ll", U"'LL", U"'re", U"'RE", U"'ve", U"'VE", U"n't", U"N'T"});
}

// Words of two, as "cannot" and "gonna".
void compounds(Text& text) {
  const auto ends = [](View t, std::size_t at) { return at >= t.size() || !is_word(t[at]); };
  struct Compound {
    View first, second;
  };
  static constexpr Compound words[] = {{U"can", U"not"}, {U"d", U"'ye"},  {U"gim", U"me"},  {U"gon", U"na"},
                                       {U"got", U"ta"},  {U"lem", U"me"}, {U"more", U"'n"}, {U"wan", U"na"}};
  for (const Compound& word : words) {
    substitute(text, [&word, ends](View t, std::size_t at) -> std::optional<Found> {
      const std::size_t end = at + word.first.size() + word.second.size();
      if ((at > 0 && is_word(t[at - 1])) || !starts_in_any_case(t, at, word.first) ||
          !starts_in_any_case(t, at + word.first.size(), word.second) || !ends(t, end))
        return std::nullopt;
      if (word.first == U"wan" && (end >= t.size() || !is_space(t[end]))) return std::nullopt;
      return Found{end - at,
                   spaced(t.substr(at, word.first.size())) + spaced(t.substr(at, end - at).substr(word.first.size()))};
    });
  }
  for (const View second : {U"is", U"was"}) {
    substitute(text, [second, ends](View t, std::size_t at) -> std::optional<Found> {
      if (!starts_in_any_case(t, at, U" 't") || !starts_in_any_case(t, at + 3, second) ||
          !ends(t, at + 3 + second.size()))
        return std::nullopt;
      return Found{3 + second.size(), spaced(t.substr(at + 1, 2)) + spaced(t.substr(at + 3, second.size()))};
    });
  }
}

}  // namespace

std::vector<Text> treebank_tokens(View sentence) {
  Text text(sentence);
  opening_quotes(text);
  punctuation(text);
  text = spaced(text);
  closing_quotes(text);
  compounds(text);
  std::vector<Text> out;
  for (const View word : split(text)) out.emplace_back(word);
  return out;
}

}  // namespace furlong::grader::ifbench
