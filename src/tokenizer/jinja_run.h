// One rendering of a chat template.
#pragma once
#include <deque>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/jinja.h"
#include "tokenizer/jinja_syntax.h"
#include "tokenizer/jinja_value.h"

namespace furlong::jinja {

// What work costs, in bytes of text handled: a step, an item made, an item passed over.
constexpr int64_t step_weight = 128, item_weight = 128, walk_weight = 8;

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

struct Scope {
  const Scope* parent = nullptr;
  std::vector<std::pair<std::string, Value>> names;
  const Value* find(std::string_view name) const;  // here or further out
  void set(const std::string& name, Value value);
};

struct Loop {
  const std::vector<Value>* items;
  int64_t index = 0;
  mutable std::optional<Value> changed;  // the last argument of loop.changed()
};

class Run {
 public:
  Run(const std::string& name, const JinjaLimits& limits, const Value& variables, std::time_t now);
  JinjaText render(const Body& body);

  [[noreturn]] void fail(const std::string& message) const;
  // Counts one step, and one more for every step_weight bytes.
  void charge(int64_t weight);
  // A text that was made, within the limits.
  Value text(std::string text);
  std::time_t now() const { return now_; }

  // The items to loop over. Fails for what has none; uses a generator up.
  std::vector<Value> iterate(const Value& value);
  // a.name and a[key]; undefined where there is none.
  Value attribute(const Value& value, const std::string& name);
  Value item(const Value& value, const Value& key);
  // a["x"]["y"][0] for "x.y.0", as filters take attributes.
  Value path(const Value& value, const Value& attribute);
  Value call(const Value& callee, Args args);
  bool same(const Value& a, const Value& b);  // a == b
  bool contains(const Value& whole, const Value& part);
  [[noreturn]] void fail_undefined(const Value& value) const;

 private:
  enum class Flow { on, leave, skip };

  // One level of evaluation while it lives.
  struct Level {
    explicit Level(Run& owner);
    ~Level() { run.depth_--; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    Run& run;
  };

  Flow execute(const Body& body, Scope& scope);
  Flow execute(const Stmt& stmt, Scope& scope);
  Flow loop(const Stmt& stmt, Scope& scope);
  std::string capture(const Body& body, const Scope& scope);
  void write(std::string_view text);
  void assign(const std::vector<Target>& targets, bool unpacks, Value value, Scope& scope);
  Value through_filters(const Expr* filters, Value input, const Scope& scope);
  Value define(const Stmt& macro, const Scope& scope);
  Value call_with(const Stmt& stmt, const Scope& scope);
  std::string call_macro(const Macro& macro, Args args);
  Value call_function(const std::string& name, Args args);
  Value loop_attribute(const Loop& loop, const std::string& name);

  Value evaluate(const Expr& expr, const Scope& scope);
  Value evaluate_name(const Expr& expr, const Scope& scope);
  Value evaluate_compare(const Expr& expr, const Scope& scope);
  Value evaluate_slice(const Expr& expr, const Scope& scope);
  Value arithmetic(const std::string& op, const Value& a, const Value& b);
  Value collect(const Expr& expr, const Scope& scope);
  Args arguments(const Expr& expr, const Scope& scope);

  const std::string& name_;
  const JinjaLimits& limits_;
  std::time_t now_;
  Scope variables_;
  std::vector<const Dict*> messages_;
  std::deque<Macro> macros_;
  JinjaText result_;
  std::string* out_ = &result_.text;
  const Value* body_ = nullptr;  // the input of filters over a block
  int64_t steps_ = 0;
  int depth_ = 0, line_ = 1;
};

// The arguments of a filter, test, method or function under their names; absent ones are null. Fails for more or for
// unknown ones, and for absent ones among the first `needed`.
std::vector<const Value*> bind(const Run& run, const std::string& what, const Args& args,
                               std::initializer_list<const char*> names, size_t needed = 0);
const std::string& need_text(const Run& run, const std::string& what, const Value& value);
int64_t need_integer(const Run& run, const std::string& what, const Value& value);

Value apply_filter(Run& run, const std::string& name, const Value& input, const Args& args);
bool apply_test(Run& run, const std::string& name, const Value& value, const Args& args);
// Whether a value has a method, and its call.
bool has_method(const Value& value, std::string_view name);
Value call_method(Run& run, const Method& method, const Args& args);
// "%s and %d" % (...): the conversions s, r, d, i and %%, with a width.
std::string percent_format(const Run& run, const std::string& format, const std::vector<Value>& values);

}  // namespace furlong::jinja
