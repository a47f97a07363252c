#include "reward/punkt.h"

#include <charconv>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "reward/text.h"

namespace furlong::grader::ifbench {
namespace {

constexpr View number_type = U"##number##";
constexpr unsigned upper_contexts = begins_upper | within_upper | unknown_upper;
constexpr unsigned lower_contexts = begins_lower | within_lower | unknown_lower;

bool ends_sentence(char32_t c) { return is_in(c, U".?!"); }
bool is_closing(char32_t c) { return is_in(c, U"\"')]}‘’“”«»"); }
// Cannot stand within a word.
bool cuts_word(char32_t c) { return is_in(c, U")\";}]*:@'({[?!‘’“”«»"); }
bool may_start_word(char32_t c) { return !is_space(c) && !is_in(c, U"(\"`{[:;&#*@)}]-,"); }
bool is_letter(char32_t c) { return is_nltk_word(c) && !is_decimal(c); }

// The length of the dashes, dots, or dots with a space between them that begin at `at`; 0 if none do.
std::size_t mark_length(View line, std::size_t at) {
  for (const char32_t mark : {U'-', U'.'}) {
    std::size_t end = at;
    while (end < line.size() && line[end] == mark) ++end;
    if (end - at >= 2) return end - at;
  }
  std::size_t end = at, pairs = 0;
  while (end + 1 < line.size() && line[end] == U'.' && is_space(line[end + 1])) end += 2, ++pairs;
  // The last must be a dot; giving a pair back leaves one.
  if (pairs >= 2 && end < line.size() && line[end] == U'.') return end + 1 - at;
  return pairs >= 3 ? end - 1 - at : 0;
}

bool word_ends(View line, std::size_t at) {
  const auto ends = [line](std::size_t i) {
    return i >= line.size() || is_space(line[i]) || cuts_word(line[i]) || mark_length(line, i) > 0;
  };
  return ends(at) || (line[at] == U',' && ends(at + 1));
}

// The tokens of a line: words with the periods in and after them, marks, single characters.
std::vector<View> tokens_of(View line) {
  std::vector<View> out;
  for (std::size_t at = 0; at < line.size();) {
    if (is_space(line[at])) {
      ++at;
      continue;
    }
    std::size_t length = mark_length(line, at);
    if (length == 0) {
      length = 1;
      if (may_start_word(line[at])) {
        while (!word_ends(line, at + length)) ++length;
      }
    }
    out.push_back(line.substr(at, length));
    at += length;
  }
  return out;
}

// -1,234.5. and the like
bool is_number(View token) {
  std::size_t at = 0;
  if (at < token.size() && token[at] == U'-') ++at;
  if (at < token.size() && is_in(token[at], U".,")) ++at;
  if (at >= token.size() || !is_decimal(token[at])) return false;
  for (; at < token.size(); ++at) {
    if (!is_decimal(token[at]) && !is_in(token[at], U",.-")) return false;
  }
  return true;
}

struct Token {
  explicit Token(View text) : text(text), type(is_number(text) ? Text(number_type) : lower(text)) {}

  Text type_without_period() const {
    return type.size() > 1 && type.back() == U'.' ? type.substr(0, type.size() - 1) : type;
  }
  Text type_in_context() const { return ends_sentence ? type_without_period() : type; }
  bool is_initial() const { return text.size() == 2 && is_letter(text[0]) && text[1] == U'.'; }

  View text;
  Text type;
  bool ends_sentence = false, is_abbreviation = false, is_ellipsis = false;
};

// By the token alone.
void annotate(Token& token, const PunktModel& model) {
  const View text = token.text;
  if (text.size() == 1 && ends_sentence(text[0])) {
    token.ends_sentence = true;
  } else if (text.size() >= 2 && text.find_first_not_of(U'.') == View::npos) {
    token.is_ellipsis = true;
  } else if (text.ends_with(U'.') && !text.ends_with(U"..")) {
    const Text word = lower(text.substr(0, text.size() - 1));
    const std::size_t dash = word.rfind(U'-');
    token.is_abbreviation = model.abbreviations.contains(word) ||
                            (dash != Text::npos && model.abbreviations.contains(word.substr(dash + 1)));
    token.ends_sentence = !token.is_abbreviation;
  }
}

unsigned contexts(const PunktModel& model, const Text& type) {
  const auto found = model.contexts.find(type);
  return found == model.contexts.end() ? 0 : found->second;
}

// Whether the case of its first letter says that a token begins a sentence; nothing: it does not say.
std::optional<bool> begins_sentence(const Token& token, const PunktModel& model) {
  if (token.text.size() == 1 && is_in(token.text[0], U";:,.!?")) return false;
  const unsigned seen = contexts(model, token.type_in_context());
  if (is_upper(token.text[0]) && (seen & lower_contexts) != 0 && (seen & within_upper) == 0) return true;
  if (is_lower(token.text[0]) && ((seen & upper_contexts) != 0 || (seen & begins_lower) == 0)) return false;
  return std::nullopt;
}

// By the token that follows.
void annotate(Token& token, const Token& next, const PunktModel& model) {
  if (!token.text.ends_with(U'.')) return;
  const Text type = token.type_without_period(), next_type = next.type_in_context();
  const auto is_no_end = [&token] { token.ends_sentence = false, token.is_abbreviation = true; };
  if (model.collocations.contains(type + U'\t' + next_type)) return is_no_end();
  const bool initial = token.is_initial(), next_upper = is_upper(next.text[0]);
  if ((token.is_abbreviation || token.is_ellipsis) && !initial) {
    if (begins_sentence(next, model) == true || (next_upper && model.sentence_starters.contains(next_type))) {
      token.ends_sentence = true;
      return;
    }
  }
  if (!initial && type != number_type) return;
  const auto begins = begins_sentence(next, model);
  if (begins == false) return is_no_end();
  if (!begins && initial && next_upper && (contexts(model, next_type) & lower_contexts) == 0) is_no_end();
}

// Whether a sentence ends within a candidate's surroundings, before their last token.
bool has_end(View context, const PunktModel& model) {
  std::vector<Token> tokens;
  for (const View line : split_at(context, U"\n")) {
    if (is_blank(line)) continue;
    for (const View token : tokens_of(line)) tokens.emplace_back(token);
  }
  for (Token& token : tokens) annotate(token, model);
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    annotate(tokens[i], tokens[i + 1], model);
    if (tokens[i].ends_sentence) return true;
  }
  return false;
}

struct Span {
  std::size_t begin = 0, end = 0;
};

// A period, question or exclamation mark that may end a sentence: white space or punctuation follows.
struct Candidate {
  std::size_t mark = 0;  // its place
  std::size_t word = 0;  // where the word before it begins
  std::size_t next = 0;  // where the sentence after it would begin
  std::size_t context_end = 0;
};

std::optional<Candidate> candidate_at(View text, std::size_t mark) {
  if (!ends_sentence(text[mark]) || mark + 1 >= text.size()) return std::nullopt;
  if (cuts_word(text[mark + 1])) return Candidate{mark, 0, mark + 1, mark + 2};
  std::size_t next = mark + 1;
  while (next < text.size() && is_space(text[next])) ++next;
  if (next == mark + 1 || next == text.size()) return std::nullopt;
  std::size_t end = next;
  while (end < text.size() && !is_space(text[end])) ++end;
  return Candidate{mark, 0, next, end};
}

// Of candidates with the same word before them the last.
std::vector<Candidate> candidates_of(View text) {
  std::vector<Candidate> out;
  std::optional<Candidate> previous;
  std::size_t space = View::npos, scanned = 0;  // the last white space of ASCII before `scanned`
  for (std::size_t mark = 0; mark < text.size(); ++mark) {
    auto candidate = candidate_at(text, mark);
    if (!candidate) continue;
    for (; scanned < mark; ++scanned) {
      if (is_in(text[scanned], U" \t\n\r\v\f")) space = scanned;
    }
    const std::size_t after = previous ? previous->mark : 0;
    // White space right after the previous mark counts for none.
    const bool has_space = space != View::npos && space > after;
    candidate->word = has_space ? space + 1 : previous ? previous->word : 0;
    if (previous && previous->mark <= candidate->word) out.push_back(*previous);
    previous = candidate;
  }
  if (previous) out.push_back(*previous);
  return out;
}

// The length of the closing quotes and brackets that begin a text and belong to the sentence before, and of the white
// space after them.
std::optional<std::pair<std::size_t, std::size_t>> closing_length(View text) {
  for (std::size_t end = 0; end < text.size() && is_closing(text[end]);) {
    ++end;
    std::size_t after = end;
    while (after < text.size() && is_space(text[after])) ++after;
    if (after > end || end == text.size() || text.substr(end).starts_with(U"--")) return std::pair{end, after};
  }
  return std::nullopt;
}

std::vector<std::string> lines_of(const std::string& path) {
  const std::string text = read_file(path);
  std::vector<std::string> lines;
  for (const std::string_view line : split(text, "\n")) {
    if (!line.empty()) lines.emplace_back(line.ends_with('\r') ? line.substr(0, line.size() - 1) : line);
  }
  return lines;
}

// Two fields with a tab between them.
std::pair<std::string_view, std::string_view> fields(std::string_view line, const std::string& path,
                                                     std::size_t number) {
  const std::size_t tab = line.find('\t');
  if (tab == std::string_view::npos || contains(line.substr(tab + 1), "\t"))
    fail(Exit::input, "{}:{}: two fields with a tab between them are wanted", path, number);
  return {line.substr(0, tab), line.substr(tab + 1)};
}

}  // namespace

PunktModel read_punkt_model(const std::string& folder) {
  PunktModel model;
  for (const auto& line : lines_of(folder + "/abbrev_types.txt")) model.abbreviations.insert(decode(line));
  for (const auto& line : lines_of(folder + "/sent_starters.txt")) model.sentence_starters.insert(decode(line));
  std::string path = folder + "/collocations.tab";
  auto lines = lines_of(path);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto [first, second] = fields(lines[i], path, i + 1);
    model.collocations.insert(decode(first) + U'\t' + decode(second));
  }
  path = folder + "/ortho_context.tab";
  lines = lines_of(path);
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const auto [word, bits] = fields(lines[i], path, i + 1);
    unsigned value = 0;
    const auto end = bits.data() + bits.size();
    if (const auto read = std::from_chars(bits.data(), end, value); read.ec != std::errc() || read.ptr != end)
      fail(Exit::input, "{}:{}: {} is no number", path, i + 1, bits);
    model.contexts[decode(word)] = value;
  }
  return model;
}

std::vector<View> sentences_of(View text, const PunktModel& model) {
  std::vector<Span> spans;
  std::size_t begin = 0;
  for (const Candidate& candidate : candidates_of(text)) {
    if (!has_end(text.substr(candidate.word, candidate.context_end - candidate.word), model)) continue;
    spans.push_back({begin, candidate.mark + 1});
    begin = candidate.next;
  }
  spans.push_back({begin, strip_right(text).size()});

  const auto view = [text](std::size_t from, std::size_t to) {
    return from < to ? text.substr(from, to - from) : View();
  };
  std::vector<View> sentences;
  std::size_t given = 0;  // characters at a span's start that went to the sentence before
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const std::size_t from = spans[i].begin + given;
    const bool is_last = i + 1 == spans.size();
    const auto closing = is_last ? std::nullopt : closing_length(view(spans[i + 1].begin, spans[i + 1].end));
    const std::size_t to = closing ? spans[i + 1].begin + closing->first : spans[i].end;
    given = closing ? closing->second : 0;
    if (from < to) sentences.push_back(view(from, to));
  }
  return sentences;
}

}  // namespace furlong::grader::ifbench
