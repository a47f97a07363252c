// The instructions about words, their number and their place.
#include <algorithm>
#include <array>
#include <set>
#include <unordered_set>

#include "reward/ifbench_rules.h"
#include "reward/text.h"

namespace furlong::grader::ifbench {
namespace {

bool is_vowel(char32_t c) { return is_in(c, U"aeiou"); }
bool is_consonant(char32_t c) { return c >= U'a' && c <= U'z' && !is_vowel(c); }

std::size_t count_that_end(const std::vector<View>& sentences, char32_t mark) {
  return static_cast<std::size_t>(
      std::count_if(sentences.begin(), sentences.end(), [mark](View s) { return s.ends_with(mark); }));
}

bool word_count_range(const Response& r, const Given& given) {
  const auto count = static_cast<double>(words_of(r.text).size());
  return given.number("min_words") <= count && count <= given.number("max_words");
}

bool unique_word_count(const Response& r, const Given& given) {
  const Text text = lower(r.text);
  std::set<View> unique;
  for (const View word : split(text)) unique.insert(strip_of(word, is_edge));
  return static_cast<double>(unique.size()) >= given.number("N");
}

bool stop_words(const Response& r, const Given& given) {
  const auto words = words_of(r.text);
  if (words.empty()) return false;
  const auto stops =
      std::count_if(words.begin(), words.end(), [&r](View w) { return r.stop_words().contains(lower(w)); });
  return static_cast<double>(stops) / static_cast<double>(words.size()) * 100 <= given.number("percentage");
}

bool sentence_type(const Response& r, const Given&) {
  const auto sentences = r.sentences();
  return count_that_end(sentences, U'.') == 2 * count_that_end(sentences, U'?');
}

bool sentence_balance(const Response& r, const Given&) {
  const auto sentences = r.sentences();
  const std::size_t statements = count_that_end(sentences, U'.');
  return statements == count_that_end(sentences, U'?') && statements == count_that_end(sentences, U'!');
}

bool conjunctions(const Response& r, const Given& given) {
  static const std::set<Text> known = {U"and", U"but", U"for", U"nor", U"or", U"so", U"yet"};
  std::set<View> found;  // as they are written, so "And" is another
  for (const View word : split(r.text)) {
    if (known.contains(lower(strip_of(word, is_edge)))) found.insert(word);
  }
  return static_cast<double>(found.size()) >= given.number("small_n");
}

bool person_names(const Response& r, const Given& given) {
  static constexpr View names[] = {
      U"Emma",    U"Liam",   U"Sophia", U"Jackson",     U"Olivia",    U"Noah",     U"Ava",      U"Lucas",  U"Isabella",
      U"Mason",   U"Mia",    U"Ethan",  U"Charlotte",   U"Alexander", U"Amelia",   U"Benjamin", U"Harper", U"Leo",
      U"Zoe",     U"Daniel", U"Chloe",  U"Samuel",      U"Lily",      U"Matthew",  U"Grace",    U"Owen",   U"Abigail",
      U"Gabriel", U"Ella",   U"Jacob",  U"Scarlett",    U"Nathan",    U"Victoria", U"Elijah",   U"Layla",  U"Nicholas",
      U"Audrey",  U"David",  U"Hannah", U"Christopher", U"Penelope",  U"Thomas",   U"Nora",     U"Andrew", U"Aria",
      U"Joseph",  U"Claire", U"Ryan",   U"Stella",      U"Jonathan"};
  const auto found = std::count_if(std::begin(names), std::end(names),
                                   [&r](View name) { return find_word(r.text, name) != View::npos; });
  return static_cast<double>(found) >= given.number("N");
}

// Of three characters, not words.
std::set<View> trigrams(View text) {
  std::set<View> out;
  for (std::size_t i = 0; i + 3 <= text.size(); ++i) out.insert(text.substr(i, 3));
  return out;
}

bool overlap(const Response& r, const Given& given) {
  const auto ours = trigrams(r.text), theirs = trigrams(given.text("reference_text"));
  if (ours.empty()) return false;
  const auto shared = std::count_if(ours.begin(), ours.end(), [&theirs](View t) { return theirs.contains(t); });
  const double percent = static_cast<double>(shared) / static_cast<double>(ours.size()) * 100;
  return given.number("percentage") - 2 <= percent && percent <= given.number("percentage") + 2;
}

bool numbers(const Response& r, const Given& given) {
  return static_cast<double>(numbers_of(without_punctuation(r.text)).size()) == given.number("N");
}

bool pronouns(const Response& r, const Given& given) {
  static const std::unordered_set<Text> known = {
      U"i",         U"me",         U"we",         U"us",        U"you",      U"he",      U"him",        U"she",
      U"her",       U"it",         U"they",       U"them",      U"my",       U"mine",    U"our",        U"ours",
      U"your",      U"yours",      U"his",        U"hers",      U"its",      U"their",   U"theirs",     U"myself",
      U"ourselves", U"yourself",   U"yourselves", U"himself",   U"herself",  U"itself",  U"themselves", U"this",
      U"that",      U"these",      U"those",      U"who",       U"whom",     U"whose",   U"which",      U"what",
      U"whoever",   U"whomever",   U"whatever",   U"whichever", U"anybody",  U"anyone",  U"anything",   U"everybody",
      U"everyone",  U"everything", U"nobody",     U"nothing",   U"somebody", U"someone", U"something",  U"each",
      U"either",    U"neither",    U"both",       U"all",       U"some",     U"any",     U"none"};
  const auto tokens = r.tokens(lower(replace_all(r.text, U"/", U" ")));
  const auto found = std::count_if(tokens.begin(), tokens.end(), [](const Text& t) { return known.contains(t); });
  return static_cast<double>(found) >= given.number("N");
}

bool punctuation_cover(const Response& r, const Given&) {
  Text text(r.text);
  if (!contains(text, U"!?") && !contains(text, U"?!") && !contains(text, U"‽")) return false;
  // The marks of the interrobang are none of the others.
  std::size_t at = text.find(U"?!");
  if (at == Text::npos) at = text.find(U"!?");
  if (at != Text::npos) text.erase(at, 2);
  return std::all_of(std::begin(U".,!?;:"), std::end(U".,!?;:") - 1,
                     [&text](char32_t c) { return text.find(c) != Text::npos; });
}

// Every N-th word is Japanese; numbers may be anything.
bool words_japanese(const Response& r, const Given& given) {
  const auto words = split(r.text);
  const std::size_t step = given.index("N");
  for (std::size_t i = step; i <= words.size(); i += step) {
    const View word = strip_of(words[i - 1], is_edge);
    if (word.empty() || std::all_of(word.begin(), word.end(), is_digit)) continue;
    if (std::none_of(word.begin(), word.end(),
                     [](char32_t c) { return (c >= 0x3040 && c <= 0x30ff) || (c >= 0x4e00 && c <= 0x9fff); }))
      return false;
  }
  return true;
}

bool keywords_multiple(const Response& r, const Given& given) {
  const Text text = lower(r.text);
  static constexpr std::array<std::pair<std::string_view, std::size_t>, 5> wanted = {
      {{"keyword1", 1}, {"keyword2", 2}, {"keyword3", 3}, {"keyword4", 5}, {"keyword5", 7}}};
  return std::all_of(wanted.begin(), wanted.end(), [&](const auto& keyword) {
    return count(text, lower(strip(given.text(keyword.first)))) == keyword.second;
  });
}

bool alphabet(const Response& r, const Given&) {
  const Text text = without_punctuation(r.text);
  const auto words = split(text);
  if (words.empty()) return false;
  Text expected = lower(words[0].substr(0, 1));
  if (expected[0] < U'a' || expected[0] > U'z') return false;
  for (std::size_t i = 1; i < words.size(); ++i) {
    expected[0] = expected[0] == U'z' ? U'a' : expected[0] + 1;
    if (lower(words[i].substr(0, 1)) != expected) return false;
  }
  return true;
}

bool vowels(const Response& r, const Given&) {
  if (contains(strip(r.text), U"\n")) return false;
  std::set<char32_t> found;
  for (const char32_t c : lower(r.text)) {
    if (is_vowel(c)) found.insert(c);
  }
  return found.size() <= 3;
}

bool consonants(const Response& r, const Given&) {
  const Text text = lower(r.text);
  const auto words = split(text);
  return std::all_of(words.begin(), words.end(), [](View word) {
    return std::adjacent_find(word.begin(), word.end(),
                              [](char32_t a, char32_t b) { return is_consonant(a) && is_consonant(b); }) != word.end();
  });
}

bool palindromes(const Response& r, const Given&) {
  const Text text = lower(without_punctuation(r.text));
  const auto words = split(text);
  return std::count_if(words.begin(), words.end(), [](View word) {
           return word.size() >= 5 && std::equal(word.begin(), word.end(), word.rbegin());
         }) >= 10;
}

bool prime_lengths(const Response& r, const Given&) {
  const Text text = without_punctuation(r.text);
  const auto words = split(text);
  return std::all_of(words.begin(), words.end(), [](View word) {
    if (word.size() < 2 || word.size() > 97) return false;
    for (std::size_t divisor = 2; divisor * divisor <= word.size(); ++divisor) {
      if (word.size() % divisor == 0) return false;
    }
    return true;
  });
}

bool repeats(const Response& r, const Given& given) {
  const Text text = lower(without_punctuation(r.text));
  std::map<View, double> times;
  for (const View word : split(text)) {
    if (++times[word] > given.number("small_n")) return false;
  }
  return true;
}

// Of a word in lower case without punctuation: as the package syllapy counts them, by its table, else by groups of
// vowels.
int syllables_of(View word, const std::unordered_map<Text, int>& known) {
  if (std::any_of(word.begin(), word.end(), is_decimal)) return 0;
  if (const auto found = known.find(Text(word)); found != known.end()) return found->second;
  const auto vowel = [word](std::size_t i) { return is_in(word[i], U"aeiouy"); };
  int count = 0;
  for (std::size_t i = 0; i < word.size(); ++i) count += vowel(i) && (i == 0 || !vowel(i - 1)) ? 1 : 0;
  if (word.ends_with(U'e')) --count;
  if (word.ends_with(U"le") && word.size() > 2 && !vowel(word.size() - 3)) ++count;
  return count == 0 ? 1 : count;
}

bool odd_even_syllables(const Response& r, const Given&) {
  const Text text = lower(without_punctuation(r.text));
  const auto words = split(text);
  const auto is_odd = [&r](View word) { return syllables_of(word, r.syllables()) % 2 != 0; };
  return std::adjacent_find(words.begin(), words.end(), [&](View a, View b) { return is_odd(a) == is_odd(b); }) ==
         words.end();
}

bool start_verb(const Response& r, const Given&) {
  const auto tokens = r.tokens(r.text);
  return !tokens.empty() && first_tag(tokens, r.tagger()).find("VB") != std::string::npos;
}

bool last_first(const Response& r, const Given&) {
  const auto sentences = r.sentences();
  for (std::size_t i = 0; i + 1 < sentences.size(); ++i) {
    const auto before = split(strip_right_of(sentences[i], is_edge));
    const auto after = split(strip_left_of(sentences[i + 1], is_edge));
    if (before.empty() || after.empty() || lower(before.back()) != lower(after.front())) return false;
  }
  return true;
}

bool paragraph_last_first(const Response& r, const Given&) {
  const Text text = lower(r.text);
  for (const View paragraph : split_at(text, U"\n")) {
    const auto words = split(strip_of(strip(paragraph), is_edge));
    if (!words.empty() && words.front() != words.back()) return false;
  }
  return true;
}

bool no_consecutive(const Response& r, const Given&) {
  const Text text = without_punctuation(lower(r.text));
  const auto words = split(text);
  return std::adjacent_find(words.begin(), words.end(), [](View a, View b) { return a[0] == b[0]; }) == words.end();
}

bool keyword_position(const Response& r, const Given& given) {
  const auto sentences = r.sentences();
  const std::size_t n = given.index("n"), m = given.index("m");
  if (sentences.size() < n) return false;
  auto words = r.tokens(sentences[n - 1]);
  std::erase_if(words, [](const Text& word) { return std::none_of(word.begin(), word.end(), is_alnum); });
  return words.size() >= m && lower(words[m - 1]) == lower(strip(given.text("keyword")));
}

bool words_position(const Response& r, const Given& given) {
  const auto words = r.tokens(r.text);
  if (words.size() < 2) return false;
  const bool mark = words.back().size() == 1 && is_punctuation(words.back()[0]);
  const std::size_t from_end = mark ? 3 : 2;
  if (words.size() < from_end) return false;
  const Text keyword = lower(strip(given.text("keyword")));
  return lower(words[1]) == keyword && lower(words[words.size() - from_end]) == keyword;
}

// Words of a sentence that begin as their neighbour does.
std::size_t alliteration(View sentence) {
  const Text text = lower(sentence);
  std::vector<char32_t> letters;
  for (const View word : split(text)) {
    if (const View clean = strip_left_of(word, is_edge); !clean.empty()) letters.push_back(clean[0]);
  }
  std::size_t found = 0;
  for (std::size_t i = 0; i + 1 < letters.size(); ++i) {
    if (letters[i] != letters[i + 1]) continue;
    found += i > 0 && letters[i - 1] == letters[i] ? 1 : 2;
  }
  return found;
}

bool alliteration_increment(const Response& r, const Given&) {
  const auto sentences = r.sentences();
  return std::adjacent_find(sentences.begin(), sentences.end(),
                            [](View a, View b) { return alliteration(b) <= alliteration(a); }) == sentences.end();
}

bool sentence_increment(const Response& r, const Given& given) {
  const auto sentences = r.sentences();
  const auto words = [](View sentence) { return static_cast<double>(split(without_punctuation(sentence)).size()); };
  return std::adjacent_find(sentences.begin(), sentences.end(), [&](View a, View b) {
           return words(b) != words(a) + given.number("small_n");
         }) == sentences.end();
}

bool sentence_keyword(const Response& r, const Given& given) {
  const auto sentences = r.sentences();
  const std::size_t n = given.index("N");
  return sentences.size() >= n && find_word(lower(sentences[n - 1]), lower(given.text("word"))) != View::npos;
}

bool sentence_words(const Response& r, const Given&) {
  const auto sentences = r.sentences();
  if (sentences.size() != 3) return false;
  const std::size_t length = strip(sentences[0]).size();
  return std::all_of(sentences.begin(), sentences.end(), [length](View s) { return strip(s).size() == length; });
}

}  // namespace

std::span<const Instruction> word_instructions() {
  static const std::vector<Instruction> list = {
      {"count:word_count_range", word_count_range, Needs::nothing, {{"min_words"}, {"max_words"}}},
      {"count:unique_word_count", unique_word_count, Needs::nothing, {{"N"}}},
      {"count:conjunctions", conjunctions, Needs::nothing, {{"small_n"}}},
      {"count:person_names", person_names, Needs::nothing, {{"N"}}},
      {"count:numbers", numbers, Needs::nothing, {{"N"}}},
      {"count:punctuation", punctuation_cover},
      {"count:pronouns", pronouns, Needs::sentences, {{"N"}}},
      {"count:words_japanese", words_japanese, Needs::nothing, {{"N", Kind::position}}},
      {"count:keywords_multiple",
       keywords_multiple,
       Needs::nothing,
       {{"keyword1", Kind::text},
        {"keyword2", Kind::text},
        {"keyword3", Kind::text},
        {"keyword4", Kind::text},
        {"keyword5", Kind::text}}},
      {"ratio:stop_words", stop_words, Needs::stop_words, {{"percentage", Kind::number}}},
      {"ratio:sentence_type", sentence_type, Needs::sentences},
      {"ratio:sentence_balance", sentence_balance, Needs::sentences},
      {"ratio:sentence_words", sentence_words, Needs::sentences},
      {"ratio:overlap", overlap, Needs::nothing, {{"reference_text", Kind::text}, {"percentage", Kind::number}}},
      {"words:alphabet", alphabet},
      {"words:vowel", vowels},
      {"words:consonants", consonants},
      {"words:palindrome", palindromes},
      {"words:prime_lengths", prime_lengths},
      {"words:repeats", repeats, Needs::nothing, {{"small_n"}}},
      {"words:odd_even_syllables", odd_even_syllables, Needs::syllables},
      {"words:start_verb", start_verb, Needs::tagger},
      {"words:last_first", last_first, Needs::sentences},
      {"words:paragraph_last_first", paragraph_last_first},
      {"words:no_consecutive", no_consecutive},
      {"words:keywords_specific_position",
       keyword_position,
       Needs::sentences,
       {{"keyword", Kind::text}, {"n", Kind::position}, {"m", Kind::position}}},
      {"words:words_position", words_position, Needs::sentences, {{"keyword", Kind::text}}},
      {"sentence:alliteration_increment", alliteration_increment, Needs::sentences},
      {"sentence:increment", sentence_increment, Needs::sentences, {{"small_n"}}},
      {"sentence:keyword", sentence_keyword, Needs::sentences, {{"word", Kind::text}, {"N", Kind::position}}},
  };
  return list;
}

}  // namespace furlong::grader::ifbench
