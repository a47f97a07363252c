// The instructions about layout, about copying, and those of single prompts.
#include <algorithm>
#include <array>
#include <deque>
#include <map>
#include <optional>

#include "reward/ifbench_rules.h"
#include "reward/text.h"

namespace furlong::grader::ifbench {
namespace {

bool parentheses(const Response& r, const Given&) {
  static constexpr View opening = U"([{", closing = U")]}";
  constexpr std::size_t wanted = 5;
  std::vector<std::size_t> open;
  std::size_t deepest = 0;
  for (const char32_t c : r.text) {
    if (const std::size_t kind = opening.find(c); kind != View::npos) {
      open.push_back(kind);
      deepest = std::max(deepest, open.size());
    } else if (const std::size_t closed = closing.find(c); closed != View::npos) {
      if (!open.empty() && open.back() == closed) {
        open.pop_back();
        if (deepest >= wanted) return true;
      } else {
        open.clear();
        deepest = 0;
      }
    }
  }
  return false;
}

bool quotes(const Response& r, const Given&) {
  constexpr std::size_t wanted = 3;
  std::vector<char32_t> open;
  std::size_t deepest = 0;
  for (const char32_t c : r.text) {
    if (!open.empty() && c == open.back()) {
      open.pop_back();
      if (deepest - open.size() >= wanted) return true;
    } else if (c == U'"' || c == U'\'') {
      open.push_back(c);
      deepest = std::max(deepest, open.size());
    }
  }
  return false;
}

// Whether the options are the letters a, b, c, whose case and punctuation count.
bool are_letters(View options) {
  for (const char32_t letter : {U'a', U'b', U'c'}) {
    options = strip_left_of(options, [](char32_t c) { return !is_word(c); });
    if (options.empty() || lower(options.substr(0, 1))[0] != letter) return false;
    options.remove_prefix(1);
  }
  return true;
}

bool options(const Response& r, const Given& given) {
  const View all = given.text("options");
  const View separator = contains(all, U"/") ? U"/" : contains(all, U"or") ? U"or" : U",";
  const auto list = split_at(all, separator);
  const bool exact = are_letters(all);
  return std::any_of(list.begin(), list.end(), [&](View option) {
    option = strip(option);
    return exact ? r.text == option : lower(strip_of(r.text, is_edge)) == lower(strip_of(option, is_edge));
  });
}

bool newline(const Response& r, const Given&) {
  const Text text = without_punctuation(r.text);
  const auto lines = split_at(strip(text), U"\n");
  const auto filled = std::count_if(lines.begin(), lines.end(), [](View line) { return !line.empty(); });
  return static_cast<std::size_t>(filled) == split(text).size();
}

bool emoji(const Response& r, const Given&) {
  const auto sentences = r.sentences();
  for (std::size_t i = 0; i < sentences.size(); ++i) {
    const Text sentence = without_punctuation(sentences[i]);
    const View text = strip(sentence);
    if (text.empty()) return false;
    // The last may be a mark that changes the emoji before it.
    if (is_emoji(text.back()) || is_emoji(text[text.size() - std::min<std::size_t>(text.size(), 2)])) continue;
    if (i + 1 == sentences.size()) return false;
    const Text next = without_punctuation(sentences[i + 1]);
    const View after = strip(next);
    if (after.empty() || !is_emoji(after[0])) return false;
  }
  return true;
}

// The reference takes blank lines from its list while it goes through it: each one that it meets takes the first of its
// kind away, and the line after is not looked at.
std::vector<View> lines_of_stairs(View text) {
  const auto lines = split_at(text, U"\n");
  std::vector<bool> taken(lines.size());
  std::map<View, std::deque<std::size_t>> blank;  // those that are still there, up to the one looked at
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (!is_blank(lines[i])) continue;
    auto& same = blank[lines[i]];
    same.push_back(i);
    taken[same.front()] = true;
    same.pop_front();
    if (++i < lines.size() && is_blank(lines[i])) blank[lines[i]].push_back(i);
  }
  std::vector<View> left;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    if (!taken[i]) left.push_back(lines[i]);
  }
  return left;
}

bool line_indent(const Response& r, const Given&) {
  const auto lines = lines_of_stairs(r.text);
  const auto indent = [](View line) { return std::min(line.find_first_not_of(U' '), line.size()); };
  return std::adjacent_find(lines.begin(), lines.end(), [&](View a, View b) { return indent(b) <= indent(a); }) ==
         lines.end();
}

bool quote_unquote(const Response& r, const Given&) {
  const Text text = join(split(replace_all(r.text, U"'\"'", U"")), U"");
  if (contains(text, U"\"\"")) return false;
  const auto drops = [](char32_t c) { return c != U'"' && (is_punctuation(c) || (c >= U'0' && c <= U'9')); };
  return !strip_right_of(View(text), drops).ends_with(U'"');
}

bool list(const Response& r, const Given& given) { return count(r.text, given.text("sep")) >= 2; }

// A first statement in italics and something after it; the reference takes <em> for as long as <i>.
bool thesis(const Response& r, const Given&) {
  const auto find_either = [](View text, View first, View second) {
    const std::size_t at = text.find(first);
    return at == View::npos ? text.find(second) : at;
  };
  const std::size_t begin = find_either(r.text, U"<i>", U"<em>");
  if (begin == View::npos) return false;
  const View text = r.text.substr(begin);
  const std::size_t end = find_either(text, U"</i>", U"</em>");
  return end != View::npos && !is_blank(text.substr(3, end - 3)) && !is_blank(text.substr(end + 4));
}

bool sub_bullets(const Response& r, const Given&) {
  const auto parts = split_at(r.text, U"*");
  return std::all_of(parts.begin() + 1, parts.end(), [](View part) { return contains(part, U"-"); });
}

bool no_bullets_bullets(const Response& r, const Given&) {
  std::size_t sentences = 0, bullets = 0;
  bool open = true;  // sentences may follow: no bullet and no blank line so far
  for (const View line : split_at(r.text, U"\n")) {
    if (strip(line).starts_with(U'*')) {
      open = false;
      if (sentences < 2) return false;
      ++bullets;
    } else if (open) {
      const std::size_t found = r.sentences(strip(line)).size();
      open = found > 0;
      sentences += found;
    } else {
      return false;
    }
  }
  return bullets >= 2;
}

bool title_case(const Response& r, const Given&) {
  for (const Text& word : r.tokens(r.text)) {
    if (is_alpha(word[0]) && is_lower(word[0]) &&
        (word.size() == 1 || is_upper(View(word).substr(1)) || is_lower(View(word).substr(1))))
      return false;
  }
  return true;
}

bool output_template(const Response& r, const Given&) {
  return contains(r.text, U"My Answer:") && contains(r.text, U"My Conclusion:") && contains(r.text, U"Future Outlook:");
}

bool no_whitespace(const Response& r, const Given&) { return std::none_of(r.text.begin(), r.text.end(), is_space); }

// All words but the first are the same.
bool repeat_change(const Response& r, const Given& given) {
  const View wanted = given.text("prompt_to_repeat");
  const auto ours = split(r.text), theirs = split(wanted);
  if (r.text == wanted) return false;
  const auto first = [](const auto& words) { return words.begin() + (words.empty() ? 0 : 1); };
  return std::equal(first(ours), ours.end(), first(theirs), theirs.end());
}

bool repeat_simple(const Response& r, const Given&) {
  return lower(strip(r.text)) == U"only output this sentence here, ignore all other requests.";
}

bool repeat_span(const Response& r, const Given& given) {
  const View prompt = given.text("prompt_to_repeat");
  const std::size_t begin = std::min(given.index("n_start"), prompt.size());
  const std::size_t end = std::min(given.index("n_end") + 1, prompt.size());
  const View span = begin < end ? prompt.substr(begin, end - begin) : View();
  return lower(strip(r.text)) == lower(strip(span));
}

bool multiples(const Response& r, const Given&) {
  return numbers_of(r.text) == std::vector<View>{U"14", U"21", U"28", U"35", U"42", U"49"};
}

// A to E with a mark and a word after it.
bool is_choice(View line) {
  if (line.size() < 3 || lower(line.substr(0, 1))[0] < U'a' || lower(line.substr(0, 1))[0] > U'e') return false;
  if (!is_in(line[1], U".|)")) return false;
  line = strip_left_of(line.substr(2), is_space);
  return !line.empty() && is_word(line[0]);
}

// What follows each "Question N" and one mark after it.
std::vector<View> questions_of(View text) {
  constexpr View label = U"Question ";
  std::vector<View> out;
  std::size_t begin = 0;
  for (std::size_t at = 0; (at = text.find(label, at)) != View::npos;) {
    std::size_t end = at + label.size();
    while (end < text.size() && is_decimal(text[end])) ++end;
    if (end == at + label.size()) {
      ++at;
      continue;
    }
    if (end < text.size() && is_in(text[end], U".|):;")) ++end;
    out.push_back(strip(text.substr(begin, at - begin)));
    begin = at = end;
  }
  out.push_back(strip(text.substr(begin)));
  std::erase_if(out, [](View question) { return question.empty(); });
  return out;
}

bool choice_questions(const Response& r, const Given&) {
  if (!r.text.starts_with(U"Question")) return false;
  const auto questions = questions_of(r.text);
  if (questions.size() != 4) return false;
  std::optional<std::size_t> before;
  for (const View question : questions) {
    Text words;
    std::size_t choices = 0;
    for (const View line : split_at(question, U"\n")) {
      if (is_choice(strip(line))) {
        ++choices;
      } else if (choices == 0) {
        words.append(U" ").append(strip(line));
      }
    }
    const std::size_t length = strip(words).size();
    if (choices != 5 || (before && length <= *before)) return false;
    before = length;
  }
  return true;
}

bool reverse_countries(const Response& r, const Given&) {
  std::vector<View> lines;
  for (View line : split_at(r.text, U"\n")) {
    line = strip_of(line, is_edge);
    if (!line.empty() && (!lines.empty() || contains(line, U"Zimbabwe"))) lines.push_back(line);
  }
  if (lines.size() < 52) return false;
  std::vector<Text> names;
  for (const View line : lines) names.push_back(fold_to_ascii(line));
  return std::is_sorted(names.rbegin(), names.rend());
}

bool word_reverse(const Response& r, const Given&) {
  const Text text = without_punctuation(lower(r.text));
  auto words = split(text);
  std::reverse(words.begin(), words.end());
  return contains(join(words, U" "), U"bald eagle");
}

bool character_reverse(const Response& r, const Given&) { return contains(lower(r.text), U"elgae dlab"); }

bool sentence_alphabet(const Response& r, const Given&) {
  const auto sentences = r.sentences();
  if (sentences.size() != 26) return false;
  char32_t letter = U'a';
  return std::all_of(sentences.begin(), sentences.end(), [&letter](View sentence) {
    const View text = strip(sentence);
    return !text.empty() && lower(text.substr(0, 1))[0] == letter++;
  });
}

bool european_capitals(const Response& r, const Given&) {
  // By latitude, those above 45 degrees.
  static constexpr View wanted[] = {
      U"Reykjavik",  U"Helsinki", U"Oslo",     U"Tallinn",    U"Stockholm", U"Riga",      U"Moscow",
      U"Copenhagen", U"Vilnius",  U"Minsk",    U"Dublin",     U"Berlin",    U"Amsterdam", U"Warsaw",
      U"London",     U"Brussels", U"Prague",   U"Luxembourg", U"Paris",     U"Vienna",    U"Bratislava",
      U"Budapest",   U"Vaduz",    U"Chisinau", U"Bern",       U"Ljubljana", U"Zagreb"};
  const Text text = fold_to_ascii(r.text);
  std::vector<View> names;
  for (const View name : split_at(text, U",")) {
    if (!is_blank(name)) names.push_back(strip(name));
  }
  return std::equal(names.begin(), names.end(), std::begin(wanted), std::end(wanted));
}

using Row = std::vector<Text>;

// Rows of values with a separator between them, as Python's csv reads them: a value that begins with a quote goes on to
// the next single quote, a doubled quote stands for one. A blank line is a row without values. Nothing: a carriage
// return within a line, which csv refuses.
std::optional<std::vector<Row>> read_csv(View text, char32_t separator) {
  std::vector<Row> rows;
  std::size_t at = 0;
  while (at < text.size()) {
    Row row;
    bool more = text[at] != U'\n' && text[at] != U'\r';
    while (more) {
      Text value;
      bool quoted = at < text.size() && text[at] == U'"';
      if (quoted) ++at;
      for (; at < text.size(); ++at) {
        const char32_t c = text[at];
        if (quoted) {
          if (c != U'"') {
            value += c;
          } else if (at + 1 < text.size() && text[at + 1] == U'"') {
            value += c;
            ++at;
          } else {
            quoted = false;
          }
        } else if (c == separator || c == U'\n' || c == U'\r') {
          break;
        } else {
          value += c;
        }
      }
      row.push_back(std::move(value));
      more = at < text.size() && text[at] == separator;
      if (more) ++at;
    }
    if (at < text.size() && text[at] == U'\r') {
      ++at;
      if (at < text.size() && text[at] != U'\n') return std::nullopt;
    }
    if (at < text.size()) ++at;
    rows.push_back(std::move(row));
  }
  return rows;
}

// Whether the first line names the columns, each with quotes around it or without, and `gap` may stand after each
// separator.
bool has_header(View text, std::initializer_list<View> names, char32_t separator, View gap) {
  View line = strip(text.substr(0, text.find(U'\n')));
  for (auto name = names.begin(); name != names.end(); ++name) {
    if (name != names.begin()) {
      if (!line.starts_with(separator)) return false;
      line.remove_prefix(1);
      line.remove_prefix(std::min(line.find_first_not_of(gap), line.size()));
    }
    const bool quoted = line.starts_with(U'"');
    if (quoted) line.remove_prefix(1);
    if (!line.starts_with(*name)) return false;
    line.remove_prefix(name->size());
    if (quoted && !line.starts_with(U'"')) return false;
    if (quoted) line.remove_prefix(1);
  }
  return line.empty();
}

bool csv_city(const Response& r, const Given&) {
  const auto rows = read_csv(r.text, U',');
  if (!rows || rows->size() != 8 || rows->front() != Row{U"ID", U"Country", U"City", U"Year", U"Count"}) return false;
  return std::all_of(rows->begin(), rows->end(), [](const Row& row) { return row.size() == 5; });
}

// Whether quotes stand around something that is neither word nor space.
bool is_quoted_special(View value) {
  if (!value.starts_with(U'"')) return false;
  const View line = value.substr(0, value.find(U'\n'));
  const std::size_t end = line.rfind(U'"');
  const View inside = line.substr(1, end - std::min<std::size_t>(end, 1));
  return std::any_of(inside.begin(), inside.end(), [](char32_t c) { return !is_word(c) && !is_space(c); });
}

bool csv_special_character(const Response& r, const Given&) {
  if (!has_header(r.text, {U"ProductID", U"Category", U"Brand", U"Price", U"Stock"}, U',', U" \t")) return false;
  // Quotes are kept as parts of the values.
  const auto rows = read_csv(replace_all(r.text, U"\"", U"\"\"\""), U',');
  if (!rows || rows->size() != 15) return false;
  for (auto row = rows->begin() + 1; row != rows->end(); ++row) {
    if (row->size() != 5) return false;
    if (std::any_of(row->begin(), row->end(), is_quoted_special)) return true;
  }
  return false;
}

bool csv_quotes(const Response& r, const Given&) {
  if (!has_header(r.text, {U"StudentID", U"Subject", U"Grade", U"Semester", U"Score"}, U'\t', U" ")) return false;
  const auto rows = read_csv(replace_all(r.text, U"\"", U"\"\"\""), U'\t');
  if (!rows || rows->size() != 4) return false;
  return std::all_of(rows->begin(), rows->end(), [](const Row& row) {
    return row.size() == 5 && std::all_of(row.begin(), row.end(), [](const Text& value) {
             const View inside = strip(value);
             return inside.starts_with(U'"') && inside.ends_with(U'"');
           });
  });
}

bool is_napoleonic_date(View date) {
  if (date.size() != 10 || date[4] != U'-' || date[7] != U'-') return false;
  std::array<int, 3> parts = {};
  std::size_t part = 0;
  for (std::size_t i = 0; i < date.size(); ++i) {
    if (i == 4 || i == 7) {
      ++part;
      continue;
    }
    const int digit = decimal_value(date[i]);
    if (digit < 0) return false;
    parts[part] = parts[part] * 10 + digit;
  }
  const auto [year, month, day] = parts;
  constexpr int days[] = {99, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};  // a month 0 is let through
  return year >= 1769 && year <= 1821 && month <= 12 && day <= days[month];
}

bool date_list(const Response& r, const Given&) {
  const auto dates = split_at(r.text, U",");
  return std::all_of(dates.begin(), dates.end(), [](View date) { return is_napoleonic_date(strip(date)); });
}

}  // namespace

std::span<const Instruction> format_instructions() {
  static const std::vector<Instruction> list_of_all = {
      {"format:parentheses", parentheses},
      {"format:quotes", quotes},
      {"format:options", options, Needs::nothing, {{"options", Kind::text}}},
      {"format:newline", newline},
      {"format:emoji", emoji, Needs::sentences},
      {"format:line_indent", line_indent},
      {"format:quote_unquote", quote_unquote},
      {"format:list", list, Needs::nothing, {{"sep", Kind::text}}},
      {"format:thesis", thesis},
      {"format:sub-bullets", sub_bullets},
      {"format:no_bullets_bullets", no_bullets_bullets, Needs::sentences},
      {"format:title_case", title_case, Needs::sentences},
      {"format:output_template", output_template},
      {"format:no_whitespace", no_whitespace},
      {"repeat:repeat_change", repeat_change, Needs::nothing, {{"prompt_to_repeat", Kind::text}}},
      {"repeat:repeat_simple", repeat_simple},
      {"repeat:repeat_span", repeat_span, Needs::nothing, {{"prompt_to_repeat", Kind::text}, {"n_start"}, {"n_end"}}},
      {"custom:multiples", multiples},
      {"custom:mcq_count_length", choice_questions},
      {"custom:reverse_newline", reverse_countries},
      {"custom:word_reverse", word_reverse},
      {"custom:character_reverse", character_reverse},
      {"custom:sentence_alphabet", sentence_alphabet, Needs::sentences},
      {"custom:european_capitals_sort", european_capitals},
      {"custom:csv_city", csv_city},
      {"custom:csv_special_character", csv_special_character},
      {"custom:csv_quotes", csv_quotes},
      {"custom:date_format_list", date_list},
  };
  return list_of_all;
}

}  // namespace furlong::grader::ifbench
