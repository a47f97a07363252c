// The instructions of IFEval.
#include <algorithm>
#include <optional>

#include "base/json.h"
#include "reward/ifbench_rules.h"
#include "reward/text.h"

namespace furlong::grader::ifbench {
namespace {

bool keywords_existence(const Response& r, const Given& given) {
  const Text text = lower(r.text);
  const auto& words = given.words.at("keywords");
  return std::all_of(words.begin(), words.end(),
                     [&text](const Text& word) { return find_pattern(text, lower(word), false) != View::npos; });
}

bool keywords_frequency(const Response& r, const Given& given) {
  const Text text = lower(r.text), word = lower(strip(given.text("keyword")));
  std::size_t found = 0;
  for (std::size_t at = 0; (at = find_pattern(text, word, false, at)) != View::npos; at += word.size()) ++found;
  return given.holds("relation", found, "frequency");
}

bool forbidden_words(const Response& r, const Given& given) {
  const Text text = lower(r.text);
  const auto& words = given.words.at("forbidden_words");
  return std::none_of(words.begin(), words.end(),
                      [&text](const Text& word) { return find_pattern(text, lower(word), true) != View::npos; });
}

bool letter_frequency(const Response& r, const Given& given) {
  return given.holds("let_relation", count(lower(r.text), given.text("letter")), "let_frequency");
}

bool number_sentences(const Response& r, const Given& given) {
  return given.holds("relation", r.sentences().size(), "num_sentences");
}

bool number_words(const Response& r, const Given& given) {
  return given.holds("relation", words_of(r.text).size(), "num_words");
}

// The parts between separators; a blank one may stand first or last alone, and counts for none.
std::optional<std::vector<View>> parts_of(View text, View separator) {
  auto parts = split_at(text, separator);
  std::vector<View> out;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!is_blank(parts[i])) {
      out.push_back(parts[i]);
    } else if (i != 0 && i + 1 != parts.size()) {
      return std::nullopt;
    }
  }
  return out;
}

bool number_paragraphs(const Response& r, const Given& given) {
  const auto parts = parts_of(r.text, U"***");
  return parts && static_cast<double>(parts->size()) == given.number("num_paragraphs");
}

bool two_responses(const Response& r, const Given&) {
  const auto parts = parts_of(r.text, U"******");
  return parts && parts->size() == 2 && strip((*parts)[0]) != strip((*parts)[1]);
}

bool nth_paragraph_first_word(const Response& r, const Given& given) {
  const auto paragraphs = split_at(r.text, U"\n\n");
  const auto filled = static_cast<std::size_t>(
      std::count_if(paragraphs.begin(), paragraphs.end(), [](View p) { return !is_blank(p); }));
  const std::size_t nth = given.index("nth_paragraph");
  if (static_cast<double>(filled) != given.number("num_paragraphs") || nth > filled) return false;
  const auto words = split(paragraphs[nth - 1]);
  if (words.empty()) return false;
  View word = strip_left_of(words[0], [](char32_t c) { return c == U'\''; });
  word = strip_left_of(word, [](char32_t c) { return c == U'"'; });
  return lower(word.substr(0, word.find_first_of(U".,?!'\""))) == lower(given.text("first_word"));
}

bool placeholders(const Response& r, const Given& given) {
  std::size_t found = 0;
  bool open = false;  // a bracket on this line waits for its end
  for (const char32_t c : r.text) {
    if (c == U'[') {
      open = true;
    } else if (c == U'\n') {
      open = false;
    } else if (c == U']' && open) {
      ++found;
      open = false;
    }
  }
  return static_cast<double>(found) >= given.number("num_placeholders");
}

// The place after `text` where `part` begins, a single white space before it allowed; npos if it does not stand there.
std::size_t after_optional_space(View text, std::size_t at, View part) {
  if (at < text.size() && is_space(text[at]) && text.substr(at + 1).starts_with(part)) return at + 1 + part.size();
  return at <= text.size() && text.substr(at).starts_with(part) ? at + part.size() : View::npos;
}

// Whether the pieces stand in a row somewhere, a single white space between them allowed.
bool has_row(View text, std::initializer_list<View> pieces) {
  const View first = *pieces.begin();
  for (std::size_t at = 0; (at = text.find(first, at)) != View::npos; ++at) {
    std::size_t end = at + first.size();
    for (auto piece = pieces.begin() + 1; piece != pieces.end() && end != View::npos; ++piece)
      end = after_optional_space(text, end, *piece);
    if (end != View::npos) return true;
  }
  return false;
}

bool postscript(const Response& r, const Given& given) {
  const Text text = lower(r.text);
  const View marker = strip(given.text("postscript_marker"));
  if (marker == U"P.P.S") return has_row(text, {U"p.", U"p.", U"s"});
  if (marker == U"P.S.") return has_row(text, {U"p.", U"s."});
  return find_pattern(text, lower(marker), false) != View::npos;
}

// Lines that begin with a dash, or with a star that no other star follows, white space before them left out.
bool bullet_lists(const Response& r, const Given& given) {
  const View text = r.text;
  std::size_t found = 0;
  for (const char32_t bullet : {U'*', U'-'}) {
    for (std::size_t line = 0; line < text.size();) {
      std::size_t at = line;
      while (at < text.size() && is_space(text[at])) ++at;
      std::size_t end = text.find(U'\n', line);
      if (at < text.size() && text[at] == bullet &&
          (bullet == U'-' || (at + 1 < text.size() && text[at + 1] != U'*'))) {
        ++found;
        // A newline right after the star belongs to the bullet, and so does the next line.
        end = text.find(U'\n', at + (bullet == U'*' ? 2 : 1));
      }
      if (end == View::npos) break;
      line = end + 1;
    }
  }
  return static_cast<double>(found) == given.number("num_bullets");
}

bool constrained_response(const Response& r, const Given&) {
  return contains(r.text, U"My answer is yes.") || contains(r.text, U"My answer is no.") ||
         contains(r.text, U"My answer is maybe.");
}

// The texts between two marks on one line, without a star in them.
std::vector<View> between(View text, View mark) {
  std::vector<View> out;
  for (std::size_t at = 0; (at = text.find(mark, at)) != View::npos;) {
    const std::size_t begin = at + mark.size();
    const std::size_t end = std::min(text.find_first_of(U"*\n", begin), text.size());
    if (!text.substr(end).starts_with(mark)) {
      ++at;
      continue;
    }
    out.push_back(text.substr(begin, end - begin));
    at = end + mark.size();
  }
  return out;
}

bool highlighted_sections(const Response& r, const Given& given) {
  std::size_t found = 0;
  for (const View mark : {View(U"*"), View(U"**")}) {
    for (const View inside : between(r.text, mark)) found += is_blank(inside) ? 0 : 1;
  }
  return static_cast<double>(found) >= given.number("num_highlights");
}

bool multiple_sections(const Response& r, const Given& given) {
  const Text splitter(strip(given.text("section_spliter")));
  std::size_t found = 0;
  for (std::size_t at = 0; (at = find_pattern(r.text, splitter, false, at)) != View::npos;) {
    std::size_t end = at + splitter.size();
    if (end < r.text.size() && is_space(r.text[end])) ++end;
    if (end < r.text.size() && is_decimal(r.text[end])) {
      ++found;
      while (end < r.text.size() && is_decimal(r.text[end])) ++end;
      at = end;
    } else {
      ++at;
    }
  }
  return static_cast<double>(found) >= given.number("num_sections");
}

bool json_format(const Response& r, const Given&) {
  View text = strip(r.text);
  for (const View fence : {U"```json", U"```Json", U"```JSON", U"```"}) {
    if (text.starts_with(fence)) text.remove_prefix(fence.size());
  }
  if (text.ends_with(U"```")) text.remove_suffix(3);
  return Json::accept(encode(strip(text)));
}

bool title(const Response& r, const Given&) {
  for (const View line : split_at(r.text, U"\n")) {
    // From the first "<<" to the last ">>" that has something before it.
    const std::size_t begin = line.find(U"<<"), end = line.rfind(U">>");
    if (begin == View::npos || end == View::npos || end < begin + 3) continue;
    const View inside =
        strip_right_of(strip_left_of(line.substr(begin, end + 2 - begin), [](char32_t c) { return c == U'<'; }),
                       [](char32_t c) { return c == U'>'; });
    if (!is_blank(inside)) return true;
  }
  return false;
}

bool repeat_prompt(const Response& r, const Given& given) {
  return View(lower(strip(r.text))).starts_with(lower(strip(given.text("prompt_to_repeat"))));
}

bool end_phrase(const Response& r, const Given& given) {
  const View text = strip_of(strip(r.text), [](char32_t c) { return c == U'"'; });
  return View(lower(text)).ends_with(lower(strip(given.text("end_phrase"))));
}

bool capital_words(const Response& r, const Given& given) {
  const auto tokens = r.tokens(r.text);
  const auto found = std::count_if(tokens.begin(), tokens.end(), [](const Text& t) { return is_upper(View(t)); });
  return given.holds("capital_relation", static_cast<std::size_t>(found), "capital_frequency");
}

bool no_comma(const Response& r, const Given&) { return !contains(r.text, U","); }

bool quotation(const Response& r, const Given&) {
  const View text = strip(r.text);
  return text.size() > 1 && text.front() == U'"' && text.back() == U'"';
}

}  // namespace

std::span<const Instruction> classic_instructions() {
  constexpr Parameter relation = {"relation", Kind::relation};
  static const std::vector<Instruction> list = {
      {"keywords:existence", keywords_existence, Needs::nothing, {{"keywords", Kind::words}}},
      {"keywords:frequency", keywords_frequency, Needs::nothing, {{"keyword", Kind::pattern}, {"frequency"}, relation}},
      {"keywords:forbidden_words", forbidden_words, Needs::nothing, {{"forbidden_words", Kind::words}}},
      {"keywords:letter_frequency",
       letter_frequency,
       Needs::nothing,
       {{"letter", Kind::letter}, {"let_frequency"}, {"let_relation", Kind::relation}}},
      {"length_constraints:number_sentences", number_sentences, Needs::sentences, {{"num_sentences"}, relation}},
      {"length_constraints:number_paragraphs", number_paragraphs, Needs::nothing, {{"num_paragraphs"}}},
      {"length_constraints:number_words", number_words, Needs::nothing, {{"num_words"}, relation}},
      {"length_constraints:nth_paragraph_first_word",
       nth_paragraph_first_word,
       Needs::nothing,
       {{"num_paragraphs"}, {"nth_paragraph", Kind::position}, {"first_word", Kind::text}}},
      {"detectable_content:number_placeholders", placeholders, Needs::nothing, {{"num_placeholders"}}},
      {"detectable_content:postscript", postscript, Needs::nothing, {{"postscript_marker", Kind::pattern}}},
      {"detectable_format:number_bullet_lists", bullet_lists, Needs::nothing, {{"num_bullets"}}},
      {"detectable_format:constrained_response", constrained_response},
      {"detectable_format:number_highlighted_sections", highlighted_sections, Needs::nothing, {{"num_highlights"}}},
      {"detectable_format:multiple_sections",
       multiple_sections,
       Needs::nothing,
       {{"section_spliter", Kind::pattern}, {"num_sections"}}},
      {"detectable_format:json_format", json_format},
      {"detectable_format:title", title},
      {"combination:two_responses", two_responses},
      {"combination:repeat_prompt", repeat_prompt, Needs::nothing, {{"prompt_to_repeat", Kind::text}}},
      {"startend:end_checker", end_phrase, Needs::nothing, {{"end_phrase", Kind::text}}},
      {"startend:quotation", quotation},
      {"change_case:capital_word_frequency",
       capital_words,
       Needs::sentences,
       {{"capital_frequency"}, {"capital_relation", Kind::relation}}},
      {"punctuation:no_comma", no_comma},
  };
  return list;
}

}  // namespace furlong::grader::ifbench
