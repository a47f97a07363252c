#include "tokenizer/jinja_parser.h"

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace furlong::jinja {
namespace {

using Names = std::vector<std::string_view>;

class Parser : public ExprParser {
 public:
  using ExprParser::ExprParser;

  // Statements up to a block that one of `ends` opens, which stays; empty `ends`: up to the template's end.
  Body body(const Names& ends) {
    const Level level(*this);
    Body out;
    for (;;) {
      const Token& token = now();
      Stmt stmt;
      stmt.line = token.line;
      switch (token.kind) {
        case TokenKind::end:
          if (!ends.empty())
            fail(opened_.back(), fmt::format("a block is not closed; expected {{% {} %}}", ends.back()));
          return out;
        case TokenKind::data:
          stmt.text = next().text;
          out.push_back(std::move(stmt));
          break;
        case TokenKind::begin_output:
          next();
          stmt.act = Act::output;
          stmt.exprs.push_back(tuple());
          expect(TokenKind::end_output);
          out.push_back(std::move(stmt));
          break;
        default:
          next();
          if (std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return is_name(end); })) return out;
          out.push_back(block());
      }
    }
  }

 private:
  void end_of_tag() { expect(TokenKind::end_block); }

  // A block's body after its opening tag, its closing tag passed too.
  Body closed(std::string_view end, int line) {
    opened_.push_back(line);
    Body out = body({end});
    opened_.pop_back();
    next();
    end_of_tag();
    return out;
  }

  Stmt block() {
    Stmt stmt;
    stmt.line = now().line;
    const std::string keyword = expect_name();
    if (keyword == "if") return branch(std::move(stmt));
    if (keyword == "for") return loop(std::move(stmt));
    if (keyword == "set") return set(std::move(stmt));
    if (keyword == "macro") return macro(std::move(stmt));
    if (keyword == "with") return with(std::move(stmt));
    if (keyword == "call") return call(std::move(stmt));
    if (keyword == "filter") {
      stmt.act = Act::filter;
      stmt.exprs.push_back(filters_of_body(false));
      end_of_tag();
      stmt.bodies.push_back(closed("endfilter", stmt.line));
    } else if (keyword == "generation") {
      stmt.act = Act::group;
      end_of_tag();
      stmt.bodies.push_back(closed("endgeneration", stmt.line));
    } else if (keyword == "break" || keyword == "continue") {
      if (loops_ == 0) fail(stmt.line, fmt::format("{} stands outside a loop", keyword));
      stmt.act = keyword == "break" ? Act::leave : Act::skip;
      end_of_tag();
    } else {
      constexpr std::string_view others[] = {"include", "import", "from", "extends", "block", "autoescape"};
      const bool known = std::find(std::begin(others), std::end(others), keyword) != std::end(others);
      fail(stmt.line, known ? fmt::format("{{% {} %}} is not supported in chat templates here", keyword)
                            : fmt::format("unexpected {{% {} %}}", printable(keyword)));
    }
    return stmt;
  }

  Stmt branch(Stmt stmt) {
    stmt.act = Act::branch;
    opened_.push_back(stmt.line);
    for (;;) {
      stmt.exprs.push_back(tuple(false, false));
      end_of_tag();
      stmt.bodies.push_back(body({"elif", "else", "endif"}));
      const std::string word = next().text;
      if (word == "elif") continue;
      if (word == "else") {
        end_of_tag();
        stmt.bodies.push_back(body({"endif"}));
        next();
      }
      break;
    }
    end_of_tag();
    opened_.pop_back();
    return stmt;
  }

  Stmt loop(Stmt stmt) {
    stmt.act = Act::loop;
    stmt.targets = targets(false, stmt.unpacks);
    if (!skip_name("in")) fail(now().line, "expected `in`");
    stmt.exprs.push_back(tuple(false, false));
    stmt.exprs.push_back(skip_name("if") ? expression() : nullptr);
    if (is_name("recursive")) fail(stmt.line, "recursive loops are not supported in chat templates here");
    end_of_tag();
    opened_.push_back(stmt.line);
    loops_++;
    stmt.bodies.push_back(body({"else", "endfor"}));
    loops_--;
    stmt.bodies.emplace_back();
    if (next().text == "else") {
      end_of_tag();
      stmt.bodies.back() = body({"endfor"});
      next();
    }
    end_of_tag();
    opened_.pop_back();
    return stmt;
  }

  Stmt set(Stmt stmt) {
    stmt.targets = targets(true, stmt.unpacks);
    if (skip_symbol("=")) {
      stmt.act = Act::set;
      stmt.exprs.push_back(tuple());
      end_of_tag();
      return stmt;
    }
    if (stmt.targets.size() > 1) fail(stmt.line, "expected `=`");
    stmt.act = Act::set_body;
    stmt.exprs.push_back(filters_of_body(true));
    end_of_tag();
    stmt.bodies.push_back(closed("endset", stmt.line));
    return stmt;
  }

  Stmt macro(Stmt stmt) {
    stmt.act = Act::macro;
    stmt.text = expect_name();
    parameters(stmt);
    end_of_tag();
    macro_body(stmt, "endmacro");
    return stmt;
  }

  Stmt call(Stmt stmt) {
    Stmt caller;
    caller.act = Act::macro;
    caller.line = stmt.line;
    caller.text = "caller";
    if (is_symbol("(")) parameters(caller);
    stmt.act = Act::call;
    stmt.exprs.push_back(expression());
    if (stmt.exprs[0]->op != Op::call) fail(stmt.line, "expected a call after {% call");
    end_of_tag();
    macro_body(caller, "endcall");
    stmt.bodies.emplace_back();
    stmt.bodies[0].push_back(std::move(caller));
    return stmt;
  }

  // "(a, b=1)"
  void parameters(Stmt& stmt) {
    expect_symbol("(");
    while (!is_symbol(")")) {
      if (!stmt.targets.empty()) expect_symbol(",");
      if (is_symbol(")")) break;
      stmt.targets.push_back({expect_name(), ""});
      const bool has_default = skip_symbol("=");
      if (!has_default && !stmt.exprs.empty() && stmt.exprs.back()) {
        fail(stmt.line, "an argument without a default follows one with a default");
      }
      stmt.exprs.push_back(has_default ? expression() : nullptr);
    }
    expect_symbol(")");
  }

  void macro_body(Stmt& stmt, std::string_view end) {
    const int outer = std::exchange(loops_, 0);
    stmt.bodies.push_back(closed(end, stmt.line));
    loops_ = outer;
  }

  Stmt with(Stmt stmt) {
    stmt.act = Act::with;
    while (now().kind != TokenKind::end_block) {
      if (!stmt.targets.empty()) expect_symbol(",");
      stmt.targets.push_back({expect_name(), ""});
      expect_symbol("=");
      stmt.exprs.push_back(expression());
    }
    end_of_tag();
    stmt.bodies.push_back(closed("endwith", stmt.line));
    return stmt;
  }

  std::vector<int> opened_{1};  // lines of the blocks around
  int loops_ = 0;
};

}  // namespace

Body parse(std::string_view source, const std::string& name) { return Parser(lex(source, name), name).body({}); }

}  // namespace furlong::jinja
