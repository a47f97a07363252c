#include "furlong/toml.h"

#include <map>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"

namespace furlong {
namespace {

bool bare_key_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6), put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 0x3f)), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
  }
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  std::vector<TomlEntry> run() {
    if (text_.substr(0, 3) == "\xef\xbb\xbf") at_ = 3;
    if (!valid_utf8(text_)) stop("the file is not UTF-8");
    std::vector<TomlEntry> entries;
    while (skip_blank_lines()) {
      if (peek() == '[') {
        section();
      } else {
        entries.push_back(entry());
      }
      end_of_line();
    }
    return entries;
  }

 private:
  [[noreturn]] void stop(const std::string& what) const {
    size_t column = 1;
    for (size_t i = at_; i > 0 && text_[i - 1] != '\n'; i--) column++;
    fail(Exit::usage, "{}:{}:{}: {}", name_, line_, column, what);
  }
  bool done() const { return at_ >= text_.size(); }
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
  bool take(char c) {
    if (done() || text_[at_] != c) return false;
    at_++;
    return true;
  }
  void skip_spaces() {
    while (peek() == ' ' || peek() == '\t') at_++;
  }
  // "`x`", or "the end of the line".
  std::string here() const {
    if (done() || peek() == '\n' || peek() == '\r') return "the end of the line";
    return "`" + printable(text_.substr(at_, text_.substr(at_).find_first_of(" \t\r\n,]}")), 30) + "`";
  }
  void skip_comment() {
    skip_spaces();
    if (peek() == '#') {
      while (!done() && peek() != '\n') at_++;
    }
    if (peek() == '\r' && peek(1) == '\n') at_++;
  }
  void end_of_line() {
    skip_comment();
    if (done()) return;
    if (!take('\n')) stop("expected the end of the line, found " + here());
    line_++;
  }
  // To the next character that means something; false at the end of the file.
  bool skip_blank_lines() {
    for (;;) {
      skip_comment();
      if (!take('\n')) return !done();
      line_++;
    }
  }

  void section() {
    take('[');
    if (peek() == '[') stop("a list of tables [[...]] has no meaning in a recipe");
    std::string path;
    for (const auto& part : key_path()) path += part + ".";
    if (!take(']')) stop("expected ] after the section's name, found " + here());
    if (!sections_.insert(path).second) stop("the section occurs twice");
  }

  Texts key_path() {
    Texts parts;
    do {
      skip_spaces();
      if (peek() == '"' || peek() == '\'') {
        parts.push_back(text());
      } else {
        const size_t begin = at_;
        while (bare_key_character(peek())) at_++;
        if (at_ == begin) stop("expected a name, found " + here());
        parts.emplace_back(text_.substr(begin, at_ - begin));
      }
      skip_spaces();
    } while (take('.'));
    return parts;
  }

  TomlEntry entry() {
    const int line = line_;
    const size_t begin = at_;
    std::string key = key_path().back();
    if (!take('=')) stop(fmt::format("expected = after {}, found {}", printable(key), here()));
    skip_spaces();
    std::string same = key;
    for (char& c : same) c = c == '-' ? '_' : c;
    const auto [first, fresh] = seen_.emplace(same, line);
    if (!fresh) {
      at_ = begin;
      stop(fmt::format("{} is already set in line {}", printable(key), first->second));
    }
    return {std::move(key), line, value(true)};
  }

  RawValue value(bool nesting) {
    const char c = peek();
    RawValue out;
    if (c == '"' || c == '\'') {
      out.from = RawValue::From::text;
      out.words = {text()};
      return out;
    }
    if (c == '[' || c == '{') {
      if (!nesting) stop("lists and tables inside lists or tables have no meaning in a recipe");
      return c == '[' ? list() : table();
    }
    const size_t begin = at_;
    while (bare_key_character(peek()) || peek() == '+' || peek() == '.' || peek() == ':') at_++;
    const std::string word(text_.substr(begin, at_ - begin));
    if (word == "true" || word == "false") {
      out.from = RawValue::From::flag;
      out.words = {word};
      return out;
    }
    if (!number(word, out)) {
      at_ = begin;
      stop(fmt::format("expected a value (\"text\" in quotes, a decimal number, true, false or [a list]), found {}",
                       here()));
    }
    return out;
  }

  // Decimal integers and reals, with _ between digits; no leading zeros, no bare points.
  static bool number(const std::string& word, RawValue& out) {
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    std::string plain;
    for (size_t i = 0; i < word.size(); i++) {
      if (word[i] != '_') {
        plain += word[i];
      } else if (i == 0 || i + 1 == word.size() || !digit(word[i - 1]) || !digit(word[i + 1])) {
        return false;
      }
    }
    size_t i = plain[0] == '+' || plain[0] == '-' ? 1 : 0;
    const size_t first = i;
    while (digit(plain[i])) i++;
    if (i == first || (plain[first] == '0' && i > first + 1)) return false;
    const bool whole = i == plain.size();
    if (plain[i] == '.') {
      const size_t fraction = ++i;
      while (digit(plain[i])) i++;
      if (i == fraction) return false;
    }
    if (plain[i] == 'e' || plain[i] == 'E') {
      i++;
      if (plain[i] == '+' || plain[i] == '-') i++;
      const size_t exponent = i;
      while (digit(plain[i])) i++;
      if (i == exponent) return false;
    }
    if (i != plain.size() || (whole ? !parse_integer(plain).has_value() : !parse_real(plain).has_value())) return false;
    out.from = whole ? RawValue::From::integer : RawValue::From::real;
    out.words = {plain};
    return true;
  }

  std::string text() {
    const char quote = peek();
    if (peek(1) == quote && peek(2) == quote) stop("multi-line texts have no meaning in a recipe");
    at_++;
    std::string out;
    while (!take(quote)) {
      if (done() || peek() == '\n') stop("the text does not end on its line");
      const char c = text_[at_++];
      if ((static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f) {
        at_--;
        stop("a control character inside a text; write it as \\uXXXX");
      }
      if (c == '\\' && quote == '"') {
        escape(out);
      } else {
        out += c;
      }
    }
    return out;
  }

  void escape(std::string& out) {
    static const std::map<char, char> simple{{'b', '\b'}, {'t', '\t'}, {'n', '\n'}, {'f', '\f'},
                                             {'r', '\r'}, {'"', '"'},  {'\\', '\\'}};
    const char c = peek();
    if (const auto known = simple.find(c); known != simple.end()) {
      at_++;
      out += known->second;
      return;
    }
    if (c != 'u' && c != 'U')
      stop("unknown escape \\" + printable(std::string(1, c)) + "; a backslash itself is written \\\\");
    uint32_t code = 0;
    const size_t digits = c == 'u' ? 4 : 8;
    for (size_t i = 1; i <= digits; i++) {
      const char h = peek(i);
      const int d = h >= '0' && h <= '9'   ? h - '0'
                    : h >= 'a' && h <= 'f' ? h - 'a' + 10
                    : h >= 'A' && h <= 'F' ? h - 'A' + 10
                                           : -1;
      if (d < 0) stop(fmt::format("\\{} needs {} hexadecimal digits", c, digits));
      code = code * 16 + static_cast<uint32_t>(d);
    }
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) stop("no such Unicode character");
    at_ += digits + 1;
    append_utf8(out, code);
  }

  RawValue list() {
    take('[');
    RawValue out;
    out.from = RawValue::From::list;
    out.integers_only = out.texts_only = true;
    const int begin = line_;
    const auto next = [&] {
      if (!skip_blank_lines()) stop(fmt::format("the list that begins in line {} does not end", begin));
    };
    for (next(); !take(']'); next()) {
      const RawValue item = value(false);
      out.integers_only = out.integers_only && item.from == RawValue::From::integer;
      out.texts_only = out.texts_only && item.from == RawValue::From::text;
      out.words.push_back(item.words[0]);
      next();
      if (take(',')) continue;
      if (peek() != ']') stop("expected , or ] in the list, found " + here());
    }
    return out;
  }

  RawValue table() {
    take('{');
    OrderedJson object = OrderedJson::object();
    skip_spaces();
    while (!take('}')) {
      const Texts path = key_path();
      if (path.size() != 1) stop("a dotted name inside a table has no meaning in a recipe");
      if (!take('=')) stop("expected = in the table, found " + here());
      skip_spaces();
      if (object.contains(path[0])) stop(printable(path[0]) + " occurs twice in the table");
      const RawValue item = value(false);
      const std::string& word = item.words[0];
      switch (item.from) {
        case RawValue::From::flag: object[path[0]] = word == "true"; break;
        case RawValue::From::integer: object[path[0]] = *parse_integer(word); break;
        case RawValue::From::real: object[path[0]] = *parse_real(word); break;
        default: object[path[0]] = word;
      }
      skip_spaces();
      if (take(',')) {
        skip_spaces();
        if (peek() == '}') stop("a comma before }");
      } else if (peek() != '}') {
        stop("expected , or } in the table, found " + here());
      }
    }
    RawValue out;
    out.from = RawValue::From::table;
    out.words = {object.dump()};
    return out;
  }

  std::string_view text_;
  const std::string& name_;
  size_t at_ = 0;
  int line_ = 1;
  std::set<std::string> sections_;
  std::map<std::string, int> seen_;  // key with '_' -> line
};

}  // namespace

std::vector<TomlEntry> parse_toml(std::string_view text, const std::string& name) { return Parser(text, name).run(); }

}  // namespace furlong
