#include "reward/symbolic.h"

#include <set>
#include <string>
#include <vector>

#include "reward/algebra.h"
#include "reward/python_number.h"
#include "reward/text.h"

namespace furlong::grader {

namespace {

constexpr int max_nesting = 200;
constexpr std::size_t max_length = 20000;

struct Lexeme {
  enum Kind { integer, decimal, letter, name, imaginary, mark, end } kind;
  std::string text;
};

bool is_name_start(char32_t c) { return c == '_' || is_alpha(c); }

// Letters and signs as Python's tokenizer divides them: 011 is 0 and 11, 2x3 is 2 and x3.
class Tokenizer {
 public:
  explicit Tokenizer(std::string_view text) : text_(text) {}

  std::vector<Lexeme> run() {
    while (at_ < text_.size()) {
      const CodePoint c = code_point(text_, at_);
      if (is_ascii_digit(text_[at_]) || (text_[at_] == '.' && digit_at(at_ + 1))) {
        number();
      } else if (is_name_start(c.value)) {
        name();
      } else if (text_.substr(at_).starts_with("**") || text_.substr(at_).starts_with("//")) {
        tokens_.push_back({Lexeme::mark, std::string(text_.substr(at_, 2))});
        at_ += 2;
      } else if (std::string_view("+-*/^()!").find(text_[at_]) != std::string_view::npos) {
        tokens_.push_back({Lexeme::mark, text_[at_] == '^' ? "**" : std::string(1, text_[at_])});
        ++at_;
      } else if (text_[at_] == '\t' || text_[at_] == '\f') {
        ++at_;
      } else {
        throw Undecided{};
      }
    }
    tokens_.push_back({Lexeme::end, ""});
    return std::move(tokens_);
  }

 private:
  bool digit_at(std::size_t at) const { return at < text_.size() && is_ascii_digit(text_[at]); }

  // Digits with single underscores between them, from `at` on; returns where they end.
  std::size_t digits_end(std::size_t at) const {
    while (digit_at(at) || (at < text_.size() && text_[at] == '_' && digit_at(at + 1) && at > 0 && digit_at(at - 1)))
      ++at;
    return at;
  }

  void number() {
    const std::size_t begin = at_;
    std::size_t end = digits_end(at_);
    bool decimal = false;
    if (end < text_.size() && text_[end] == '.') {
      decimal = true;
      end = digit_at(end + 1) ? digits_end(end + 1) : end + 1;
    }
    if (end < text_.size() && text_[end] == 'e') {
      std::size_t exponent = end + 1;
      if (exponent < text_.size() && (text_[exponent] == '+' || text_[exponent] == '-')) ++exponent;
      if (digit_at(exponent)) {
        decimal = true;
        end = digits_end(exponent);
      }
    }
    const bool imaginary = end < text_.size() && text_[end] == 'j';
    const char letter = end < text_.size() ? text_[end] : ' ';
    if (!decimal && !imaginary && text_[begin] == '0') {
      // A zero ends where other digits begin; 0x, 0o, 0b open numbers to other bases.
      std::size_t zeros = begin + 1;
      while (zeros < end && (text_[zeros] == '0' || (text_[zeros] == '_' && text_[zeros + 1] == '0'))) ++zeros;
      if (end == begin + 1 && based_number(letter)) return;
      if (zeros < end && text_[zeros] == '_') throw Undecided{};
      end = zeros;
    }
    tokens_.push_back(
        {decimal ? Lexeme::decimal : Lexeme::integer, replace_all(text_.substr(begin, end - begin), "_", "")});
    at_ = end;
    if (imaginary) {
      tokens_.push_back({Lexeme::imaginary, "j"});
      ++at_;
    }
  }

  // 0x1f, 0o17, 0b11: `letter` stands behind the zero at at_. False if no digit follows.
  bool based_number(char letter) {
    const std::int64_t base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
    std::int64_t value = 0;
    std::size_t end = at_ + 2;
    for (; end < text_.size(); ++end) {
      const char c = text_[end];
      const std::int64_t digit = is_ascii_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : base;
      if (digit >= base) break;
      if (value > INT64_MAX / 32) throw Undecided{};
      value = value * base + digit;
    }
    if (end == at_ + 2) return false;
    tokens_.push_back({Lexeme::integer, std::to_string(value)});
    at_ = end;
    return true;
  }

  void name() {
    const std::size_t begin = at_;
    std::vector<std::string> parts;  // letters, and runs of digits
    bool underscore = false;
    while (at_ < text_.size()) {
      const CodePoint c = code_point(text_, at_);
      if (!is_name_start(c.value) && !is_digit(c.value)) break;
      if (is_digit(c.value) && c.value >= 0x80) throw Undecided{};
      underscore |= c.value == '_';
      if (is_digit(c.value) && !parts.empty() && is_ascii_digit(parts.back()[0])) {
        parts.back().push_back(text_[at_]);
      } else {
        parts.emplace_back(text_.substr(at_, c.bytes));
      }
      at_ += c.bytes;
    }
    const std::string word(text_.substr(begin, at_ - begin));
    static constexpr std::string_view known[] = {"pi", "sqrt", "ln"};
    for (const auto name : known)
      if (word == name) return tokens_.push_back({Lexeme::name, word});
    // Other names that mean something to the reference, and Python's keywords, are outside this language.
    static constexpr std::string_view foreign[] = {"nan",  "oo",  "zoo", "gff", "rf",  "ff",  "re",  "im",  "csc",
                                                   "frac", "li",  "jn",  "yn",  "hn1", "hn2", "fft", "ntt", "fu",
                                                   "eye",  "all", "id",  "as",  "if",  "in",  "is",  "or"};
    for (const auto name : foreign)
      if (word == name) throw Undecided{};
    static constexpr std::string_view greek[] = {"mu", "nu", "xi"};
    const bool whole = underscore || parts.size() == 1 || word == greek[0] || word == greek[1] || word == greek[2];
    if (whole) return tokens_.push_back({Lexeme::letter, word});
    // Other names are products of their letters; a factorial takes the whole product.
    const bool bracket = at_ < text_.size() && text_[at_] == '!';
    if (bracket) tokens_.push_back({Lexeme::mark, "("});
    for (const auto& part : parts)
      tokens_.push_back({is_ascii_digit(part[0]) ? Lexeme::integer : Lexeme::letter, part});
    if (bracket) tokens_.push_back({Lexeme::mark, ")"});
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::vector<Lexeme> tokens_;
};

class Parser {
 public:
  Parser(std::vector<Lexeme> tokens, Algebra& algebra, Budget& budget)
      : tokens_(std::move(tokens)), algebra_(algebra), budget_(budget) {}

  Fraction parse() {
    Fraction value = sum();
    if (peek().kind != Lexeme::end) throw Undecided{};
    return value;
  }

 private:
  const Lexeme& peek() const { return tokens_[at_]; }
  bool is_mark(std::string_view text) const { return peek().kind == Lexeme::mark && peek().text == text; }

  bool accept(std::string_view text) {
    budget_.spend(1);
    if (!is_mark(text)) return false;
    ++at_;
    return true;
  }

  Fraction sum() {
    if (++depth_ > max_nesting) throw Undecided{};
    Fraction value = product();
    while (true) {
      if (accept("+")) {
        value = algebra_.add(value, product());
      } else if (accept("-")) {
        value = algebra_.add(value, algebra_.negate(product()));
      } else {
        --depth_;
        return value;
      }
    }
  }

  Fraction product() {
    Fraction value = signed_power();
    while (true) {
      if (accept("*")) {
        value = algebra_.multiply(value, signed_power());
      } else if (accept("/")) {
        value = algebra_.multiply(value, algebra_.invert(signed_power()));
      } else if (accept("//")) {
        value = algebra_.floor_divide(value, signed_power());
      } else if (is_mark("(") || (peek().kind != Lexeme::mark && peek().kind != Lexeme::end)) {
        value = algebra_.multiply(value, raised());
      } else {
        return value;
      }
    }
  }

  Fraction signed_power() {
    bool negative = false;
    while (is_mark("+") || is_mark("-")) {
      negative ^= is_mark("-");
      accept(peek().text);
    }
    const Fraction value = raised();
    return negative ? algebra_.negate(value) : value;
  }

  Fraction raised() {
    const Fraction base = primary();
    if (!accept("**")) return base;
    if (++depth_ > max_nesting) throw Undecided{};
    const Fraction exponent = signed_power();
    --depth_;
    return algebra_.power(base, exponent);
  }

  Fraction primary() {
    Fraction value = simple();
    int marks = 0;
    while (accept("!")) ++marks;
    if (marks > 2) throw Undecided{};
    return marks == 0 ? value : algebra_.factorial(value, marks);
  }

  Fraction bracket() {
    if (!accept("(")) throw Undecided{};
    Fraction value = sum();
    if (!accept(")")) throw Undecided{};
    return value;
  }

  Fraction simple() {
    budget_.spend(1);
    if (is_mark("(")) return bracket();
    const Lexeme token = peek();
    if (token.kind == Lexeme::mark || token.kind == Lexeme::end) throw Undecided{};
    ++at_;
    switch (token.kind) {
      case Lexeme::integer:
        return algebra_.number(Rational(BigInt::from_digits(token.text, budget_), BigInt(1), budget_));
      case Lexeme::decimal: return decimal(token.text);
      case Lexeme::letter: return algebra_.letter(token.text);
      case Lexeme::imaginary: return algebra_.imaginary_unit();
      default: break;
    }
    if (token.text == "pi") return algebra_.pi();
    const Fraction argument = bracket();
    return token.text == "sqrt" ? algebra_.square_root(argument) : algebra_.logarithm(argument);
  }

  // Up to 15 digits a double, as in the reference; more digits mean a higher precision there, and the exact value here.
  Fraction decimal(const std::string& text) {
    std::size_t digits = 0, fraction = 0;
    std::string mantissa;
    bool point = false;
    const std::size_t e = std::min(text.find('e'), text.size());
    for (std::size_t i = 0; i < e; ++i) {
      if (text[i] == '.') {
        point = true;
        continue;
      }
      mantissa.push_back(text[i]);
      digits += digits > 0 || text[i] != '0';
      fraction += point;
    }
    const double value = python_float(text).value_or(0);
    if (digits <= 15) return algebra_.decimal(value);
    if (e < text.size()) throw Undecided{};
    BigInt scale(1);
    for (std::size_t i = 0; i < fraction; ++i) scale = BigInt::multiply(scale, BigInt(10), budget_);
    return algebra_.wide_decimal(Rational(BigInt::from_digits(mantissa, budget_), scale, budget_));
  }

  std::vector<Lexeme> tokens_;
  Algebra& algebra_;
  Budget& budget_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

bool may_compare(const std::string& text) {
  std::set<char32_t> letters;
  const std::string plain = replace_all(replace_all(text, "sqrt", ""), "frac", "");
  for (std::size_t at = 0; at < plain.size(); at += code_point(plain, at).bytes) {
    const char32_t c = code_point(plain, at).value;
    if (is_alpha(c) && letters.insert(c).second && letters.size() > 2) return false;
  }
  if (contains(text, "^{") || contains(text, "^(")) return false;
  for (std::size_t at = text.find('^'); at != std::string::npos; at = text.find('^', at + 1)) {
    std::size_t end = at + 1;
    while (end < text.size() && is_ascii_digit(text[end])) ++end;
    if (end - at > 2 || (end - at == 2 && end < text.size() && text[end] == '^')) return false;
  }
  return true;
}

}  // namespace

bool symbolic_equal(std::string_view truth, std::string_view answer, SymbolicWork* work) {
  if (truth.size() + answer.size() > max_length) return false;
  std::string difference = "(";
  difference.append(truth).append(")-(").append(answer).append(")");
  if (!may_compare(difference)) return false;
  Budget budget(max_symbolic_steps);
  bool equal = false;
  try {
    Algebra algebra(budget);
    const Fraction value = Parser(Tokenizer(difference).run(), algebra, budget).parse();
    equal = algebra.is_zero(value);
  } catch (const Undecided&) {
    equal = false;
  }
  if (work != nullptr) work->steps = budget.spent();
  return equal;
}

}  // namespace furlong::grader
