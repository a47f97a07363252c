#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "tokenizer/jinja_parser.h"

namespace furlong::jinja {

ExprParser::Level::Level(ExprParser& owner) : parser(owner) {
  if (++parser.depth_ > max_syntax_depth) parser.fail(parser.now().line, "the template nests too deeply");
}

ExprParser::Level::~Level() { parser.depth_--; }

void ExprParser::fail(int line, const std::string& message) const {
  furlong::fail(Exit::input, "{}:{}: {}", name_, line, message);
}

std::string ExprParser::describe() const {
  const Token& token = now();
  switch (token.kind) {
    case TokenKind::end: return "the end of the template";
    case TokenKind::end_block: return "%}";
    case TokenKind::end_output: return "}}";
    case TokenKind::text: return "a text";
    case TokenKind::integer:
    case TokenKind::real: return "a number";
    default: return fmt::format("`{}`", printable(token.text));
  }
}

bool ExprParser::skip_symbol(std::string_view text) {
  if (!is_symbol(text)) return false;
  next();
  return true;
}

bool ExprParser::skip_name(std::string_view text) {
  if (!is_name(text)) return false;
  next();
  return true;
}

void ExprParser::expect_symbol(std::string_view text) {
  if (!skip_symbol(text)) fail(now().line, fmt::format("expected `{}`, found {}", text, describe()));
}

std::string ExprParser::expect_name() {
  if (now().kind != TokenKind::name) fail(now().line, fmt::format("expected a name, found {}", describe()));
  return next().text;
}

void ExprParser::expect(TokenKind kind) {
  if (now().kind != kind) {
    fail(now().line, fmt::format("expected {}, found {}", kind == TokenKind::end_block ? "%}" : "}}", describe()));
  }
  next();
}

ExprPtr ExprParser::make(Op op, int line, std::vector<ExprPtr> args, std::string name) {
  auto node = std::make_unique<Expr>();
  node->op = op;
  node->line = line;
  node->name = std::move(name);
  for (const ExprPtr& arg : args) {
    if (arg) node->depth = std::max(node->depth, arg->depth + 1);
  }
  node->args = std::move(args);
  // A chain such as a + b + c + ... nests as well.
  if (node->depth > max_syntax_depth) fail(line, "the expression nests too deeply");
  return node;
}

template <class... Args>
ExprPtr ExprParser::join(Op op, int line, std::string name, Args... args) {
  std::vector<ExprPtr> list;
  (list.push_back(std::move(args)), ...);
  return make(op, line, std::move(list), std::move(name));
}

bool ExprParser::ends_tuple() const {
  const TokenKind kind = now().kind;
  return kind == TokenKind::end_output || kind == TokenKind::end_block || is_symbol(")");
}

ExprPtr ExprParser::tuple(bool parenthesised, bool with_if) {
  const int line = now().line;
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  for (;;) {
    if (!items.empty()) expect_symbol(",");
    if (ends_tuple()) break;
    items.push_back(expression(with_if));
    if (!is_symbol(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return std::move(items[0]);
  if (!is_tuple && !parenthesised) fail(line, fmt::format("expected an expression, found {}", describe()));
  return make(Op::tuple, line, std::move(items));
}

std::vector<Target> ExprParser::targets(bool attributes, bool& unpacks) {
  const bool parenthesised = skip_symbol("(");
  std::vector<Target> out;
  unpacks = false;
  for (;;) {
    Target target{expect_name(), ""};
    if (attributes && skip_symbol(".")) target.attribute = expect_name();
    constexpr std::string_view fixed[] = {"true", "false", "none", "True", "False", "None"};
    if (std::find(std::begin(fixed), std::end(fixed), target.name) != std::end(fixed)) {
      fail(now().line, fmt::format("{} cannot be assigned to", target.name));
    }
    out.push_back(std::move(target));
    if (!skip_symbol(",")) break;
    unpacks = true;
    if (now().kind != TokenKind::name || is_name("in")) break;
  }
  if (parenthesised) expect_symbol(")");
  return out;
}

ExprPtr ExprParser::expression(bool with_if) {
  const Level level(*this);
  ExprPtr node = alternative();
  while (with_if && is_name("if")) {
    const int line = next().line;
    ExprPtr condition = alternative(), otherwise;
    if (skip_name("else")) otherwise = expression();
    node = join(Op::conditional, line, "", std::move(condition), std::move(node), std::move(otherwise));
  }
  return node;
}

ExprPtr ExprParser::alternative() {
  ExprPtr left = conjunction();
  while (is_name("or")) {
    const int line = next().line;
    left = join(Op::alternative, line, "", std::move(left), conjunction());
  }
  return left;
}

ExprPtr ExprParser::conjunction() {
  ExprPtr left = inversion();
  while (is_name("and")) {
    const int line = next().line;
    left = join(Op::conjunction, line, "", std::move(left), inversion());
  }
  return left;
}

ExprPtr ExprParser::inversion() {
  const Level level(*this);
  if (!is_name("not")) return comparison();
  const int line = next().line;
  return join(Op::invert, line, "", inversion());
}

ExprPtr ExprParser::comparison() {
  constexpr std::string_view symbols[] = {"==", "!=", "<", "<=", ">", ">="};
  const int line = now().line;
  std::vector<ExprPtr> args;
  std::vector<std::string> names;
  args.push_back(sum());
  for (;;) {
    const bool symbol = now().kind == TokenKind::symbol &&
                        std::find(std::begin(symbols), std::end(symbols), now().text) != std::end(symbols);
    if (symbol || is_name("in")) {
      names.push_back(next().text);
    } else if (is_name("not") && at_ + 1 < tokens_.size() && tokens_[at_ + 1].is(TokenKind::name, "in")) {
      next();
      next();
      names.emplace_back("not in");
    } else {
      break;
    }
    args.push_back(sum());
  }
  if (names.empty()) return std::move(args[0]);
  ExprPtr node = make(Op::compare, line, std::move(args));
  node->names = std::move(names);
  return node;
}

ExprPtr ExprParser::sum() {
  ExprPtr left = concat();
  while (is_symbol("+") || is_symbol("-")) {
    const Token op = next();
    left = join(Op::arithmetic, op.line, op.text, std::move(left), concat());
  }
  return left;
}

ExprPtr ExprParser::concat() {
  const int line = now().line;
  std::vector<ExprPtr> args;
  do {
    args.push_back(product());
  } while (skip_symbol("~"));
  return args.size() == 1 ? std::move(args[0]) : make(Op::concat, line, std::move(args));
}

ExprPtr ExprParser::product() {
  ExprPtr left = power();
  while (is_symbol("*") || is_symbol("/") || is_symbol("//") || is_symbol("%")) {
    const Token op = next();
    left = join(Op::arithmetic, op.line, op.text, std::move(left), power());
  }
  return left;
}

ExprPtr ExprParser::power() {
  ExprPtr left = unary();
  while (is_symbol("**")) {
    const Token op = next();
    left = join(Op::arithmetic, op.line, op.text, std::move(left), unary());
  }
  return left;
}

ExprPtr ExprParser::unary(bool with_filters) {
  const Level level(*this);
  ExprPtr node;
  if (is_symbol("-") || is_symbol("+")) {
    const Token op = next();
    node = join(op.text == "-" ? Op::negate : Op::plus, op.line, "", unary(false));
  } else {
    node = primary();
  }
  node = postfix(std::move(node));
  return with_filters ? filtered(std::move(node)) : std::move(node);
}

ExprPtr ExprParser::primary() {
  const Token& token = now();
  const int line = token.line;
  const auto constant = [&](Value value) {
    ExprPtr node = make(Op::constant, line, {});
    node->value = std::move(value);
    return node;
  };
  if (token.kind == TokenKind::name) {
    const std::string name = next().text;
    if (name == "true" || name == "True") return constant(Value(true));
    if (name == "false" || name == "False") return constant(Value(false));
    if (name == "none" || name == "None") return constant(Value(None{}));
    return make(Op::name, line, {}, name);
  }
  if (token.kind == TokenKind::text) {
    std::string text;
    while (now().kind == TokenKind::text) text += next().text;
    return constant(make_text(std::move(text)));
  }
  if (token.kind == TokenKind::integer) return constant(Value(next().integer));
  if (token.kind == TokenKind::real) return constant(Value(next().real));
  if (is_symbol("[")) return list();
  if (is_symbol("{")) return dict();
  if (!skip_symbol("(")) fail(line, fmt::format("unexpected {}", describe()));
  ExprPtr node = tuple(true);
  expect_symbol(")");
  return node;
}

ExprPtr ExprParser::list() {
  const int line = next().line;
  std::vector<ExprPtr> items;
  while (!is_symbol("]")) {
    if (!items.empty()) expect_symbol(",");
    if (is_symbol("]")) break;
    items.push_back(expression());
  }
  expect_symbol("]");
  return make(Op::list, line, std::move(items));
}

ExprPtr ExprParser::dict() {
  const int line = next().line;
  std::vector<ExprPtr> items;
  while (!is_symbol("}")) {
    if (!items.empty()) expect_symbol(",");
    if (is_symbol("}")) break;
    items.push_back(expression());
    expect_symbol(":");
    items.push_back(expression());
  }
  expect_symbol("}");
  return make(Op::dict, line, std::move(items));
}

ExprPtr ExprParser::postfix(ExprPtr node) {
  for (;;) {
    if (is_symbol(".") || is_symbol("[")) {
      node = subscript(std::move(node));
    } else if (is_symbol("(")) {
      std::vector<ExprPtr> args;
      const int line = now().line;
      args.push_back(std::move(node));
      std::vector<std::string> names;
      arguments(args, names);
      node = make(Op::call, line, std::move(args));
      node->names = std::move(names);
    } else {
      return node;
    }
  }
}

ExprPtr ExprParser::filtered(ExprPtr node) {
  for (;;) {
    if (skip_symbol("|")) {
      node = filter(std::move(node));
    } else if (is_name("is")) {
      node = test(std::move(node));
    } else if (is_symbol("(")) {
      node = postfix(std::move(node));
    } else {
      return node;
    }
  }
}

ExprPtr ExprParser::filter(ExprPtr node) {
  const int line = now().line;
  std::string name = expect_name();
  std::vector<ExprPtr> args;
  args.push_back(std::move(node));
  std::vector<std::string> names;
  if (is_symbol("(")) arguments(args, names);
  ExprPtr out = make(Op::filter, line, std::move(args), std::move(name));
  out->names = std::move(names);
  return out;
}

ExprPtr ExprParser::filters_of_body(bool leading_pipe) {
  if (leading_pipe && !is_symbol("|")) return nullptr;
  ExprPtr node = make(Op::name, now().line, {});
  if (leading_pipe) return filtered(std::move(node));
  return filtered(filter(std::move(node)));
}

ExprPtr ExprParser::test(ExprPtr node) {
  const int line = next().line;
  const bool negated = skip_name("not");
  std::string name = expect_name();
  std::vector<ExprPtr> args;
  args.push_back(std::move(node));
  std::vector<std::string> names;
  const TokenKind kind = now().kind;
  const bool follows = kind == TokenKind::name || kind == TokenKind::text || kind == TokenKind::integer ||
                       kind == TokenKind::real || is_symbol("[") || is_symbol("{");
  if (is_symbol("(")) {
    arguments(args, names);
  } else if (is_name("is")) {
    fail(line, "tests cannot be chained with `is`");
  } else if (follows && !is_name("else") && !is_name("or") && !is_name("and")) {
    args.push_back(postfix(primary()));
  }
  ExprPtr out = make(Op::test, line, std::move(args), std::move(name));
  out->names = std::move(names);
  return negated ? join(Op::invert, line, "", std::move(out)) : std::move(out);
}

ExprPtr ExprParser::subscript(ExprPtr node) {
  const Token open = next();
  if (open.text == ".") {
    if (now().kind == TokenKind::integer) {
      ExprPtr index = make(Op::constant, open.line, {});
      index->value = Value(next().integer);
      return join(Op::item, open.line, "", std::move(node), std::move(index));
    }
    return join(Op::attribute, open.line, expect_name(), std::move(node));
  }
  ExprPtr parts[3];
  int colons = 0;
  for (;;) {
    if (is_symbol("]")) break;
    if (is_symbol(":")) {
      next();
      if (++colons > 2) fail(open.line, "a slice has at most three parts");
      continue;
    }
    if (parts[colons]) expect_symbol("]");
    parts[colons] = expression();
  }
  if (colons == 0 && !parts[0]) fail(open.line, "expected an index between [ and ]");
  expect_symbol("]");
  if (colons == 0) return join(Op::item, open.line, "", std::move(node), std::move(parts[0]));
  return join(Op::slice, open.line, "", std::move(node), std::move(parts[0]), std::move(parts[1]), std::move(parts[2]));
}

void ExprParser::arguments(std::vector<ExprPtr>& args, std::vector<std::string>& names) {
  const int line = now().line;
  expect_symbol("(");
  bool first = true;
  while (!is_symbol(")")) {
    if (!first) expect_symbol(",");
    if (is_symbol(")")) break;
    first = false;
    if (is_symbol("*") || is_symbol("**")) {
      names.push_back(next().text);
    } else if (now().kind == TokenKind::name && at_ + 1 < tokens_.size() &&
               tokens_[at_ + 1].is(TokenKind::symbol, "=")) {
      names.push_back(next().text);
      next();
    } else if (!names.empty()) {
      fail(line, "an argument without a name follows one with a name");
    }
    args.push_back(expression());
  }
  expect_symbol(")");
}

}  // namespace furlong::jinja
