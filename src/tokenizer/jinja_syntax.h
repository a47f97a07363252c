// Chat templates as trees. Lexing follows Jinja with trim_blocks and lstrip_blocks, as transformers sets them up.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/jinja_value.h"

namespace furlong::jinja {

enum class TokenKind { data, begin_output, end_output, begin_block, end_block, name, text, integer, real, symbol, end };

struct Token {
  TokenKind kind = TokenKind::end;
  std::string text;  // of data, a name, a symbol; a text literal's value
  int64_t integer = 0;
  double real = 0;
  int line = 1;
  bool is(TokenKind k, std::string_view t) const { return kind == k && text == t; }
};

// Throws Error(Exit::input) with name:line.
std::vector<Token> lex(std::string_view source, const std::string& name);

// How deeply expressions and statements may nest, together.
constexpr int max_syntax_depth = 200;

enum class Op {
  constant,     // value
  name,         // name
  list,         // args
  tuple,        // args
  dict,         // args: key, value, key, value, ...
  attribute,    // args[0].name
  item,         // args[0][args[1]]
  slice,        // args[0][args[1]:args[2]:args[3]], absent ones null
  call,         // args[0](args[1..]), the last ones named by `names`; "*" and "**" unpack
  filter,       // args[0] | name(args[1..]), likewise
  test,         // args[0] is name(args[1..]), likewise
  negate,       // -args[0]
  plus,         // +args[0]
  invert,       // not args[0]
  conjunction,  // args[0] and args[1]
  alternative,  // args[0] or args[1]
  arithmetic,   // args[0] name args[1]
  concat,       // args joined as texts
  compare,      // args[0] names[0] args[1] names[1] args[2] ...
  conditional,  // args[1] if args[0] else args[2], which may be null
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  Op op = Op::constant;
  int line = 1, depth = 1;
  Value value;
  std::string name;
  std::vector<ExprPtr> args;
  std::vector<std::string> names;
};

// What is assigned to: a name, or a namespace's attribute.
struct Target {
  std::string name, attribute;
};

enum class Act {
  text,      // text
  output,    // exprs
  branch,    // exprs[i] ? bodies[i], otherwise the last body, which may be one more
  loop,      // for targets in exprs[0] (if exprs[1], or null): bodies[0], else bodies[1]
  set,       // targets = exprs[0]
  set_body,  // targets[0] = bodies[0], through filters: exprs[0], or null, has the op name "" for its input
  macro,     // text(targets = exprs): bodies[0]; exprs null where there is no default
  with,      // targets = exprs within bodies[0]
  filter,    // bodies[0] through exprs[0], as in set_body
  call,      // exprs[0] with the macro that bodies[0] holds as its `caller`
  group,     // bodies[0]: a generation block
  leave,     // break
  skip,      // continue
};

struct Stmt;
using Body = std::vector<Stmt>;

struct Stmt {
  Act act = Act::text;
  int line = 1;
  std::string text;
  std::vector<ExprPtr> exprs;
  std::vector<Target> targets;
  bool unpacks = false;  // several targets, or one in a tuple
  std::vector<Body> bodies;
};

// Throws Error(Exit::input) with name:line for what is no Jinja, or is not of the subset: inheritance, imports,
// recursive loops.
Body parse(std::string_view source, const std::string& name);

}  // namespace furlong::jinja
