#include "reward/f1.h"

#include <map>
#include <string>
#include <vector>

#include "reward/text.h"

namespace furlong::grader {
namespace {

bool is_ascii_punctuation(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

bool is_article(std::string_view word) { return word == "a" || word == "an" || word == "the"; }

// The words that count. An article ends where letters and digits do, which need not be at a space.
std::vector<std::string> words_of(std::string_view text) {
  std::string kept;
  for (const char c : lower(text)) {
    if (!is_ascii_punctuation(c)) kept += c;
  }
  std::string without, run;
  const auto end_run = [&] {
    without += is_article(run) ? std::string(" ") : run;
    run.clear();
  };
  for (size_t at = 0; at < kept.size();) {
    const CodePoint c = code_point(kept, at);
    const auto bytes = std::string_view(kept).substr(at, c.bytes);
    if (is_alpha(c.value) || is_digit(c.value)) {
      run += bytes;
    } else {
      end_run();
      without += bytes;
    }
    at += c.bytes;
  }
  end_run();
  std::vector<std::string> words;
  std::string word;
  const auto end_word = [&] {
    if (!word.empty()) words.push_back(std::move(word));
    word.clear();
  };
  for (size_t at = 0; at < without.size();) {
    const CodePoint c = code_point(without, at);
    if (is_space(c.value)) {
      end_word();
    } else {
      word += std::string_view(without).substr(at, c.bytes);
    }
    at += c.bytes;
  }
  end_word();
  return words;
}

bool is_verdict(const std::vector<std::string>& words) {
  return words.size() == 1 && (words[0] == "yes" || words[0] == "no" || words[0] == "noanswer");
}

}  // namespace

double word_f1(std::string_view answer, std::string_view truth) {
  const auto said = words_of(answer), wanted = words_of(truth);
  if ((is_verdict(said) || is_verdict(wanted)) && said != wanted) return 0;
  std::map<std::string_view, int64_t> left;
  for (const auto& word : wanted) left[word]++;
  int64_t common = 0;
  for (const auto& word : said) {
    const auto at = left.find(word);
    if (at == left.end() || at->second == 0) continue;
    at->second--;
    common++;
  }
  if (common == 0) return 0;
  const double precision = 1.0 * static_cast<double>(common) / static_cast<double>(said.size());
  const double recall = 1.0 * static_cast<double>(common) / static_cast<double>(wanted.size());
  return (2 * precision * recall) / (precision + recall);
}

}  // namespace furlong::grader
