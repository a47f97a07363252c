#include "reward/latex_text.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "reward/latex_commands.h"
#include "reward/text.h"

namespace furlong::grader {

namespace {

constexpr int max_depth = 240;
// Bytes of one accent's text: each accent around another doubles what it stands on.
constexpr std::size_t max_accented = std::size_t{64} << 10;
// Arguments that run into the end of the text are read a second time; nested ones would double the work each.
constexpr std::size_t tokens_per_byte = 16;

struct EndOfText {};  // where the text ends inside a command's arguments
struct Unconvertible {};

struct Node {
  enum Kind { characters, group, command, environment, special, math } kind;
  std::string text;                              // characters; the name of a command, environment or special; \( or \[
  std::string post_space;                        // behind a command without arguments
  bool took = false;                             // a command whose arguments were read
  std::vector<std::unique_ptr<Node>> arguments;  // null: an optional one that is absent
  std::vector<std::unique_ptr<Node>> children;
};
using NodePtr = std::unique_ptr<Node>;

NodePtr make_node(Node::Kind kind, std::string text) {
  auto node = std::make_unique<Node>();
  node->kind = kind;
  node->text = std::move(text);
  return node;
}

struct Token {
  enum Kind { character, command, open, close, begin, end, math_open, math_close, special, end_of_text } kind;
  std::string text;
  std::string space, post_space;
  std::size_t at = 0, next = 0;
};

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text), tokens_left_(tokens_per_byte * text.size() + 16) {}

  enum class Until { end_of_text, brace, bracket, environment, math };

  // Reads nodes from `at` on up to what `until` says (`name`: the environment, or \) or \]); moves `at` behind it.
  std::vector<NodePtr> read(std::size_t& at, Until until, const std::string& name = {}) {
    if (++depth_ > max_depth) throw Unconvertible{};
    std::vector<NodePtr> nodes;
    std::string characters;
    bool done = false;
    while (!done) {
      Token token = next_token(at, until == Until::bracket, true);
      at = token.next;
      characters += token.space;
      if (token.kind == Token::character) {
        characters += token.text;
        continue;
      }
      if (!characters.empty()) nodes.push_back(make_node(Node::characters, std::exchange(characters, {})));
      done = take(token, at, nodes, until, name);
    }
    --depth_;
    return nodes;
  }

 private:
  // Adds what a token other than a character starts; true if the token ends the list.
  bool take(const Token& token, std::size_t& at, std::vector<NodePtr>& nodes, Until until, const std::string& name) {
    switch (token.kind) {
      case Token::end_of_text: return true;
      // A closing mark that closes nothing is dropped.
      case Token::close:
        return (until == Until::brace && token.text == "}") || (until == Until::bracket && token.text == "]");
      case Token::end: return until == Until::environment && token.text == name;
      case Token::math_close: return until == Until::math && token.text == name;
      case Token::math_open: {
        nodes.push_back(make_node(Node::math, token.text));
        nodes.back()->children = read(at, Until::math, token.text == "\\(" ? "\\)" : "\\]");
        return false;
      }
      case Token::open: {
        nodes.push_back(make_node(Node::group, token.text));
        nodes.back()->children = read(at, token.text == "{" ? Until::brace : Until::bracket);
        return false;
      }
      case Token::begin: {
        NodePtr node = make_node(Node::environment, token.text);
        const std::string_view arguments = token.text == "array" ? "[{" : token.text == "tabular" ? "{" : "";
        take_arguments(*node, arguments, at);
        node->children = read(at, Until::environment, token.text);
        nodes.push_back(std::move(node));
        return false;
      }
      case Token::command: {
        NodePtr node = make_node(Node::command, token.text);
        const std::string_view arguments = latex_command(token.text).arguments;
        take_arguments(*node, arguments, at);
        const bool optional_only = arguments == "[" || arguments == "*[";
        const bool bare = node->arguments.empty() || (optional_only && node->arguments.back() == nullptr);
        if (bare) node->post_space = token.post_space;
        nodes.push_back(std::move(node));
        return false;
      }
      default: nodes.push_back(make_node(Node::special, token.text)); return false;
    }
  }

  // Where the text ends inside the arguments the command has none at all.
  void take_arguments(Node& node, std::string_view arguments, std::size_t& at) {
    const std::size_t start = at;
    const int depth = depth_;
    try {
      for (const char kind : arguments) node.arguments.push_back(take_argument(kind, node.text, at));
      node.took = true;
    } catch (const EndOfText&) {
      node.arguments.clear();
      at = start;
      depth_ = depth;
    }
  }

  NodePtr take_argument(char kind, std::string_view command, std::size_t& at) {
    if (kind == '{') return expression(at);
    const Token token = next_token(at, kind == '[', false);
    if (kind == '*') {
      if (token.kind == Token::end_of_text) throw EndOfText{};
      if (token.kind != Token::character || token.text != "*") return nullptr;
      at = token.next;
      return make_node(Node::characters, "*");
    }
    // \\ takes [..] only right behind it.
    if (command == "\\" && !token.space.empty()) return nullptr;
    if (token.kind != Token::open || token.text != "[") return nullptr;
    at = token.next;
    NodePtr node = make_node(Node::group, "[");
    node->children = read(at, Until::bracket);
    return node;
  }

  // A mandatory argument: a group or a single token. A command that stands as an argument takes none itself.
  NodePtr expression(std::size_t& at) {
    const Token token = next_token(at, false, false);
    switch (token.kind) {
      case Token::end_of_text: throw EndOfText{};
      case Token::open: {
        at = token.next;
        NodePtr node = make_node(Node::group, "{");
        node->children = read(at, Until::brace);
        return node;
      }
      case Token::close: at = token.at; return make_node(Node::characters, "");
      case Token::command:
        if (token.text == "end") {
          at = token.at;
          return make_node(Node::characters, "");
        }
        [[fallthrough]];
      case Token::math_open:
      case Token::math_close: at = token.next; return make_node(Node::command, token.text);
      case Token::special: at = token.next; return make_node(Node::special, token.text);
      default: at = token.next; return make_node(Node::characters, token.text);
    }
  }

  Token next_token(std::size_t at, bool brackets, bool environments) {
    if (tokens_left_-- == 0) throw Unconvertible{};
    Token token{Token::end_of_text, {}, {}, {}, at, at};
    while (at < text_.size()) {
      const CodePoint c = code_point(text_, at);
      if (!is_space(c.value)) break;
      token.space.append(text_, at, c.bytes);
      at += c.bytes;
      if (token.space.ends_with("\n\n")) {  // a new paragraph is a character of its own
        token.space.resize(token.space.size() - 2);
        return finish(token, Token::character, "\n\n", at - 2, at);
      }
    }
    if (at >= text_.size()) return finish(token, Token::end_of_text, "", at, at);
    const char c = text_[at];
    if (c == '\\') return command_token(token, at, environments);
    if (c == '{' || (brackets && c == '[')) return finish(token, Token::open, std::string(1, c), at, at + 1);
    if (c == '}' || (brackets && c == ']')) return finish(token, Token::close, std::string(1, c), at, at + 1);
    for (const std::string_view mark : {"---", "--", "``", "''", "!`", "?`", "~", "&"})
      if (text_.substr(at).starts_with(mark))
        return finish(token, Token::special, std::string(mark), at, at + mark.size());
    const std::size_t bytes = code_point(text_, at).bytes;
    return finish(token, Token::character, std::string(text_.substr(at, bytes)), at, at + bytes);
  }

  static Token finish(Token& token, Token::Kind kind, std::string text, std::size_t at, std::size_t next) {
    token.kind = kind;
    token.text = std::move(text);
    token.at = at;
    token.next = next;
    return std::move(token);
  }

  Token command_token(Token& token, std::size_t at, bool environments) const {
    if (at + 1 >= text_.size()) {  // a last lone backslash is dropped
      token.space.clear();
      return finish(token, Token::end_of_text, "", at, text_.size());
    }
    std::size_t next = at + 1 + code_point(text_, at + 1).bytes;
    const bool word = is_alpha(code_point(text_, at + 1).value);
    while (word && is_alpha(code_point(text_, next).value)) next += code_point(text_, next).bytes;
    const std::string name(text_.substr(at + 1, next - at - 1));
    if (name == "(" || name == "[") return finish(token, Token::math_open, "\\" + name, at, next);
    if (name == ")" || name == "]") return finish(token, Token::math_close, "\\" + name, at, next);
    if (environments && (name == "begin" || name == "end")) {
      std::size_t end = next;
      const std::string environment = environment_name(end);
      if (environment.empty()) return finish(token, Token::character, "\\" + name, at, next);
      return finish(token, name == "begin" ? Token::begin : Token::end, environment, at, end);
    }
    // The white space behind a command goes with it, but not a new paragraph.
    while (word && is_space(code_point(text_, next).value)) {
      const std::size_t bytes = code_point(text_, next).bytes;
      token.post_space.append(text_, next, bytes);
      next += bytes;
      if (!token.post_space.ends_with("\n\n")) continue;
      token.post_space.resize(token.post_space.size() - 2);
      next -= 2;
      break;
    }
    return finish(token, Token::command, name, at, next);
  }

  // {name} behind \begin or \end; empty if there is none.
  std::string environment_name(std::size_t& at) const {
    std::size_t open = at;
    while (is_space(code_point(text_, open).value)) open += code_point(text_, open).bytes;
    if (open >= text_.size() || text_[open] != '{') return {};
    std::size_t end = open + 1;
    while (end < text_.size()) {
      const CodePoint c = code_point(text_, end);
      const bool allowed =
          is_alpha(c.value) || is_digit(c.value) ||
          (c.value < 0x80 && std::string_view("_* .-").find(static_cast<char>(c.value)) != std::string_view::npos);
      if (!allowed) break;
      end += c.bytes;
    }
    if (end >= text_.size() || text_[end] != '}' || end == open + 1) return {};
    at = end + 1;
    return std::string(text_.substr(open + 1, end - open - 1));
  }

  std::string_view text_;
  std::size_t tokens_left_;
  int depth_ = 0;
};

bool is_blank(std::string_view text) { return strip(text).empty(); }

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// In mathematics (\\( and the equation environments) white space alone between constructs vanishes, and the white space
// behind a bare command stays before characters; elsewhere it is the other way round.
enum class Mode { text, math };

std::string to_text(const Node& node, Mode mode);

using NodeIterator = std::vector<NodePtr>::const_iterator;

std::string to_text(NodeIterator begin, NodeIterator end, Mode mode) {
  std::string out;
  for (auto at = begin; at != end; ++at) {
    if (mode == Mode::math && at != begin && (*at)->kind == Node::characters) out += (*std::prev(at))->post_space;
    out += to_text(**at, mode);
  }
  return out;
}

std::string to_text(const std::vector<NodePtr>& nodes, Mode mode) { return to_text(nodes.begin(), nodes.end(), mode); }

std::string argument_text(const Node& command, std::size_t index, Mode mode) {
  if (index >= command.arguments.size() || !command.arguments[index]) return {};
  return to_text(*command.arguments[index], mode);
}

std::string accented(std::string_view argument, std::string_view mark) {
  std::string out;
  for (std::size_t at = 0; at < argument.size();) {
    const std::size_t bytes = code_point(argument, at).bytes;
    std::string_view base = argument.substr(at, bytes);
    if (base == "ı") base = "i";
    if (base == "ȷ") base = "j";
    out += compose(std::string(base).append(mark));
    at += bytes;
    if (out.size() > max_accented) throw Unconvertible{};
  }
  return out;
}

std::string command_text(const Node& node, Mode mode) {
  const LatexCommand command = latex_command(node.text);
  const bool took = node.took && !command.arguments.empty();
  switch (command.kind) {
    case CommandText::literal: return std::string(command.text);
    case CommandText::arguments: {
      std::string out;
      for (std::size_t i = 0; i < node.arguments.size(); ++i) out += argument_text(node, i, mode);
      return out;
    }
    // Without arguments the reference leaves its template.
    case CommandText::only: return took ? argument_text(node, 0, mode) : "%s";
    case CommandText::fraction:
      return took ? argument_text(node, 0, mode) + "/" + argument_text(node, 1, mode) : "%s/%s";
    case CommandText::root:
      if (!took) throw Unconvertible{};
      return "√(" + argument_text(node, 1, mode) + ")";
    case CommandText::last:
      if (!took) throw Unconvertible{};
      return argument_text(node, node.arguments.size() - 1, mode);
    case CommandText::accent: {
      const std::string argument = took ? argument_text(node, 0, mode) : " ";
      return accented(took ? strip(argument) : std::string_view(argument), command.text);
    }
    default: break;
  }
  std::string out;
  const std::string argument = argument_text(node, 0, mode);
  for (std::size_t at = 0; at < argument.size(); at += code_point(argument, at).bytes)
    append_code_point(out, styled_letter(code_point(argument, at).value, command.kind));
  return out;
}

std::string indented_block(std::string_view content) { return "\n    " + replace_all(content, "\n", "\n    ") + "\n"; }

// [ 1 2; 3 4 ], the entries right-aligned to one width.
std::string matrix_text(const Node& node, Mode mode) {
  std::vector<std::vector<std::string>> rows(1);
  auto entry = node.children.begin();
  const auto finish_entry = [&](NodeIterator end) {
    if (entry != end) rows.back().emplace_back(strip(to_text(entry, end, mode)));
  };
  for (auto at = node.children.begin(); at != node.children.end(); ++at) {
    const bool column = (*at)->kind == Node::special && (*at)->text == "&";
    const bool row = (*at)->kind == Node::command && (*at)->text == "\\";
    if (!column && !row) continue;
    finish_entry(at);
    entry = std::next(at);
    if (row) rows.emplace_back();
  }
  finish_entry(node.children.end());
  std::size_t width = 0;
  bool any = false;
  for (const auto& row : rows)
    for (const auto& text : row) width = std::max(width, count_code_points(text)), any = true;
  if (!any) throw Unconvertible{};
  std::string out = "[ ";
  for (std::size_t r = 0; r < rows.size(); ++r) {
    if (r > 0) out += "; ";
    for (std::size_t c = 0; c < rows[r].size(); ++c) {
      if (c > 0) out += ' ';
      // One space stands for the alignment, so that a wide entry cannot make the text quadratic.
      if (count_code_points(rows[r][c]) < width) out += ' ';
      out += rows[r][c];
    }
  }
  return out + " ]";
}

std::string environment_text(const Node& node, Mode mode) {
  if (is_one_of(node.text, {"array", "pmatrix", "bmatrix", "smallmatrix", "psmallmatrix", "bsmallmatrix"}))
    return matrix_text(node, mode);
  const bool equation = is_one_of(node.text, {"equation", "equation*", "eqnarray", "eqnarray*", "align", "align*",
                                              "multline", "multline*", "gather", "gather*", "dmath", "dmath*"});
  const std::string body = to_text(node.children, equation ? Mode::math : mode);
  if (equation) return indented_block(strip(body));
  if (is_one_of(node.text, {"center", "flushleft", "flushright"})) return "\n" + body + "\n";
  return body;
}

std::string special_text(std::string_view mark) {
  if (mark == "&") return "   ";
  if (mark == "~") return "\u00A0";
  if (mark == "``") return "“";
  if (mark == "''") return "”";
  if (mark == "--") return "–";
  if (mark == "---") return "—";
  if (mark == "!`") return "¡";
  return "¿";
}

std::string to_text(const Node& node, Mode mode) {
  switch (node.kind) {
    case Node::characters: return mode == Mode::math && is_blank(node.text) ? std::string() : node.text;
    case Node::group: return to_text(node.children, mode);
    case Node::command: return command_text(node, mode);
    case Node::environment: return environment_text(node, mode);
    case Node::special: return special_text(node.text);
    case Node::math: break;
  }
  const std::string body = to_text(node.children, Mode::math);
  return node.text == "\\(" ? std::string(strip(body)) : indented_block(strip(body));
}

}  // namespace

std::optional<std::string> latex_to_text(std::string_view latex) {
  try {
    std::size_t at = 0;
    return to_text(Reader(latex).read(at, Reader::Until::end_of_text), Mode::text);
  } catch (const Unconvertible&) {
    return std::nullopt;
  }
}

}  // namespace furlong::grader
