#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

#include "base/error.h"
#include "base/text.h"
#include "tokenizer/jinja_syntax.h"
#include "tokenizer/python_text.h"
#include "tokenizer/unicode.h"

namespace furlong::jinja {
namespace {

constexpr std::string_view brackets = "([{", closers = ")]}";

bool starts_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_decimal(char c) { return c >= '0' && c <= '9'; }
bool is_ascii_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// One kind of line end, and none at the end of the text.
std::string normalized(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); i++) {
    if (source[i] == '\r') {
      if (i + 1 < source.size() && source[i + 1] == '\n') i++;
      out += '\n';
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(std::string_view source, const std::string& name) : name_(name) {
    if (!is_valid_utf8(source)) furlong::fail(Exit::input, "{}: the template is not valid UTF-8", name);
    source_ = normalized(source);
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const size_t tag = next_tag();
      if (tag == std::string::npos) {
        data(source_.size());
        break;
      }
      enter(tag);
    }
    push(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(int line, const std::string& message) const {
    furlong::fail(Exit::input, "{}:{}: {}", name_, line, message);
  }

  char peek(size_t ahead = 0) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }
  bool at(std::string_view text) const { return std::string_view(source_).substr(at_).starts_with(text); }

  void push(TokenKind kind, std::string text) {
    Token token;
    token.kind = kind;
    token.text = std::move(text);
    token.line = line_;
    tokens_.push_back(std::move(token));
  }

  void advance(size_t to) {
    line_ += static_cast<int>(
        std::count(source_.begin() + static_cast<ptrdiff_t>(at_), source_.begin() + static_cast<ptrdiff_t>(to), '\n'));
    if (to > at_) line_starts_ = source_[to - 1] == '\n';
    at_ = to;
  }

  size_t next_tag() const {
    for (size_t i = at_; (i = source_.find('{', i)) != std::string::npos; i++) {
      const char next = i + 1 < source_.size() ? source_[i + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return i;
    }
    return std::string::npos;
  }

  // The text up to `end`, where a tag with this sign begins; `keeps` is true for an output.
  void data(size_t end, char sign = '\0', bool keeps = true) {
    std::string_view text = std::string_view(source_).substr(at_, end - at_);
    if (sign == '-') {
      text = python::strip(text, python::Side::right);
    } else if (sign != '+' && !keeps) {
      const size_t newline = text.rfind('\n');
      const size_t start = newline == std::string_view::npos ? 0 : newline + 1;
      const bool blank = python::strip(text.substr(start), python::Side::left).empty();
      if ((start > 0 || line_starts_) && blank) text = text.substr(0, start);
    }
    if (!text.empty()) push(TokenKind::data, std::string(text));
    advance(end);
  }

  // Past a tag's end: "-" eats the white space after it, a block or comment one newline.
  void close(char sign, bool trims) {
    size_t end = at_ + (sign == '\0' ? 2 : 3);
    if (sign == '-') {
      const std::string_view rest = std::string_view(source_).substr(end);
      end += rest.size() - python::strip(rest, python::Side::left).size();
    } else if (trims && sign == '\0' && end < source_.size() && source_[end] == '\n') {
      end++;
    }
    advance(end);
  }

  void enter(size_t tag) {
    const char kind = source_[tag + 1];
    char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    if (sign != '-' && sign != '+') sign = '\0';
    data(tag, sign, kind == '{');
    const int line = line_;
    advance(tag + (sign == '\0' ? 2 : 3));
    if (kind == '#') return comment(line);
    if (kind == '%' && raw(line)) return;
    push(kind == '{' ? TokenKind::begin_output : TokenKind::begin_block, "");
    inside(kind == '{' ? "}}" : "%}", line);
  }

  void comment(int line) {
    size_t end = source_.find("#}", at_);
    if (end == std::string::npos) fail(line, "a comment is not closed; expected #}");
    const char sign = end > at_ && (source_[end - 1] == '-' || source_[end - 1] == '+') ? source_[end - 1] : '\0';
    advance(end - (sign == '\0' ? 0 : 1));
    close(sign, true);
  }

  // After "{%": a raw block as a whole, if it is one.
  bool raw(int line) {
    size_t i = at_;
    const auto skip = [&] {
      while (i < source_.size() && is_ascii_space(source_[i])) i++;
    };
    skip();
    if (!std::string_view(source_).substr(i).starts_with("raw")) return false;
    i += 3;
    skip();
    const bool dash = i < source_.size() && source_[i] == '-';
    if (!std::string_view(source_).substr(i + (dash ? 1 : 0)).starts_with("%}")) return false;
    advance(i);
    close(dash ? '-' : '\0', false);
    for (size_t tag = at_; (tag = source_.find("{%", tag)) != std::string::npos; tag++) {
      i = tag + 2;
      const char sign = i < source_.size() && (source_[i] == '-' || source_[i] == '+') ? source_[i] : '\0';
      if (sign != '\0') i++;
      skip();
      if (!std::string_view(source_).substr(i).starts_with("endraw")) continue;
      i += 6;
      skip();
      const char last = i < source_.size() && (source_[i] == '-' || source_[i] == '+') ? source_[i] : '\0';
      if (!std::string_view(source_).substr(i + (last == '\0' ? 0 : 1)).starts_with("%}")) continue;
      data(tag, sign, false);
      advance(i);
      close(last, true);
      return true;
    }
    fail(line, "a raw block is not closed; expected {% endraw %}");
  }

  // The tokens of a tag up to its end, which does not count inside brackets.
  void inside(std::string_view end, int line) {
    std::string open;
    for (;;) {
      while (at_ < source_.size() && is_ascii_space(source_[at_])) advance(at_ + 1);
      if (at_ >= source_.size()) fail(line, fmt::format("a tag is not closed; expected {}", end));
      if (open.empty()) {
        const bool block = end == "%}";
        const char sign =
            (peek() == '-' || (block && peek() == '+')) && std::string_view(source_).substr(at_ + 1).starts_with(end)
                ? peek()
                : '\0';
        if (sign != '\0' || at(end)) {
          push(block ? TokenKind::end_block : TokenKind::end_output, "");
          return close(sign, block);
        }
      }
      token(open);
    }
  }

  void token(std::string& open) {
    const char c = peek();
    if (starts_name(c)) {
      size_t end = at_;
      while (end < source_.size() && (starts_name(source_[end]) || is_decimal(source_[end]))) end++;
      push(TokenKind::name, source_.substr(at_, end - at_));
      return advance(end);
    }
    if (is_decimal(c)) return number();
    if (c == '"' || c == '\'') return literal(c);
    constexpr std::array<std::string_view, 26> symbols{"//", "**", "==", "!=", ">=", "<=", "+", "-", "*",
                                                       "/",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                       ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    const auto found = std::find_if(symbols.begin(), symbols.end(), [&](std::string_view s) { return at(s); });
    if (found == symbols.end()) {
      fail(line_, fmt::format("unexpected character `{}`", printable(std::string_view(source_).substr(at_, 4), 4)));
    }
    if (brackets.find(c) != std::string_view::npos) {
      open += c;
    } else if (const size_t closer = closers.find(c); closer != std::string_view::npos) {
      if (open.empty() || open.back() != brackets[closer]) fail(line_, fmt::format("unexpected `{}`", c));
      open.pop_back();
    }
    push(TokenKind::symbol, std::string(*found));
    advance(at_ + found->size());
  }

  // 12, 1_000, 0x1f, 0b1, 0o7, 1.5, 2e3; a dot counts only before a digit.
  void number() {
    int base = 10;
    size_t end = at_;
    if (peek() == '0' && (peek(1) == 'x' || peek(1) == 'X')) base = 16;
    if (peek() == '0' && (peek(1) == 'o' || peek(1) == 'O')) base = 8;
    if (peek() == '0' && (peek(1) == 'b' || peek(1) == 'B')) base = 2;
    if (base != 10) end += 2;
    std::string digits;
    bool real = false;
    const auto take = [&] {
      while (end < source_.size() && (is_decimal(source_[end]) || source_[end] == '_' ||
                                      (base == 16 && std::isxdigit(static_cast<unsigned char>(source_[end])) != 0))) {
        if (source_[end] != '_') digits += source_[end];
        end++;
      }
    };
    take();
    if (base == 10 && end + 1 < source_.size() && source_[end] == '.' && is_decimal(source_[end + 1])) {
      real = true;
      digits += source_[end++];
      take();
    }
    if (base == 10 && end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      size_t mark = end + 1;
      if (mark < source_.size() && (source_[mark] == '-' || source_[mark] == '+')) mark++;
      if (mark < source_.size() && is_decimal(source_[mark])) {
        real = true;
        digits += source_.substr(end, mark - end);
        end = mark;
        take();
      }
    }
    push(real ? TokenKind::real : TokenKind::integer, "");
    const char* last = digits.data() + digits.size();
    const auto read = real ? std::from_chars(digits.data(), last, tokens_.back().real)
                           : std::from_chars(digits.data(), last, tokens_.back().integer, base);
    if (read.ec != std::errc() || read.ptr != last) fail(line_, "a number is malformed or beyond 64 bits");
    advance(end);
  }

  // Up to `digits` digits of an escape.
  uint32_t code(size_t& i, size_t end, int digits, int base) {
    uint32_t value = 0;
    int seen = 0;
    for (; seen < digits && i < end; seen++, i++) {
      const char c = source_[i];
      const int digit = is_decimal(c)                                  ? c - '0'
                        : std::isxdigit(static_cast<unsigned char>(c)) ? (c | 0x20) - 'a' + 10
                                                                       : 99;
      if (digit >= base) break;
      value = value * static_cast<uint32_t>(base) + static_cast<uint32_t>(digit);
    }
    const bool surrogate = value >= 0xD800 && value < 0xE000;
    if ((base == 16 && seen < digits) || value > 0x10FFFF || surrogate) fail(line_, "an escape names no character");
    return value;
  }

  void literal(char quote) {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail(line_, fmt::format("a text is not closed; expected {}", quote));
    std::string text;
    for (size_t i = at_ + 1; i < end;) {
      if (source_[i] != '\\') {
        text += source_[i++];
        continue;
      }
      constexpr std::string_view plain = "\\'\"abfnrtv", meaning = "\\'\"\a\b\f\n\r\t\v";
      const char c = source_[i + 1];
      i += 2;
      if (const size_t known = plain.find(c); known != std::string_view::npos) {
        text += meaning[known];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        python::append_character(text, code(i, end, c == 'x' ? 2 : c == 'u' ? 4 : 8, 16));
      } else if (c >= '0' && c <= '7') {
        i--;
        python::append_character(text, code(i, end, 3, 8));
      } else if (c == 'N') {
        fail(line_, "characters by name (\\N{...}) are not supported");
      } else if (c != '\n') {  // an escaped line end is nothing
        (text += '\\') += c;
      }
    }
    push(TokenKind::text, std::move(text));
    advance(end + 1);
  }

  const std::string& name_;
  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starts_ = true;  // the last character read ended a line
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> lex(std::string_view source, const std::string& name) { return Lexer(source, name).run(); }

}  // namespace furlong::jinja
