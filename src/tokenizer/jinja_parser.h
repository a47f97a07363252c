// The expressions of chat templates, parsed; jinja_parser.cpp parses the statements around them.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/jinja_syntax.h"

namespace furlong::jinja {

// Walks the tokens of one template.
class ExprParser {
 public:
  ExprParser(std::vector<Token> tokens, const std::string& name) : tokens_(std::move(tokens)), name_(name) {}

  // With commas a tuple. `stops` is a name that ends it, such as "in".
  ExprPtr tuple(bool parenthesised = false, bool with_if = true);
  ExprPtr expression(bool with_if = true);
  // `| name(...)` and what follows, over an input that the evaluation supplies; the first "|" is optional.
  ExprPtr filters_of_body(bool leading_pipe);
  // "a", "a, b", "(a, b)", and with attributes "ns.a".
  std::vector<Target> targets(bool attributes, bool& unpacks);

  const Token& now() const { return tokens_[at_]; }
  const Token& next() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }  // the token passed
  bool is_symbol(std::string_view text) const { return now().is(TokenKind::symbol, text); }
  bool is_name(std::string_view text) const { return now().is(TokenKind::name, text); }
  bool skip_symbol(std::string_view text);
  bool skip_name(std::string_view text);
  void expect_symbol(std::string_view text);
  std::string expect_name();
  void expect(TokenKind kind);
  [[noreturn]] void fail(int line, const std::string& message) const;

  // Counts one level of nesting while it lives.
  struct Level {
    explicit Level(ExprParser& owner);
    ~Level();
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    ExprParser& parser;
  };

 private:
  ExprPtr make(Op op, int line, std::vector<ExprPtr> args, std::string name = "");
  template <class... Args>
  ExprPtr join(Op op, int line, std::string name, Args... args);
  ExprPtr alternative();
  ExprPtr conjunction();
  ExprPtr inversion();
  ExprPtr comparison();
  ExprPtr sum();
  ExprPtr concat();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool with_filters = true);
  ExprPtr primary();
  ExprPtr postfix(ExprPtr node);
  ExprPtr filtered(ExprPtr node);
  ExprPtr filter(ExprPtr node);
  ExprPtr test(ExprPtr node);
  ExprPtr subscript(ExprPtr node);
  ExprPtr list();
  ExprPtr dict();
  void arguments(std::vector<ExprPtr>& args, std::vector<std::string>& names);
  bool ends_tuple() const;
  std::string describe() const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  std::string name_;
  int depth_ = 0;
};

}  // namespace furlong::jinja
