#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "base/error.h"
#include "base/text.h"
#include "tokenizer/jinja_run.h"
#include "tokenizer/python_text.h"

namespace furlong::jinja {
namespace {

[[noreturn]] void fail_beyond(const Run& run) { run.fail("an integer beyond 64 bits"); }

int64_t floor_divide(const Run& run, int64_t a, int64_t b) {
  if (b == 0) run.fail("division by zero");
  if (a == INT64_MIN && b == -1) fail_beyond(run);
  return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

int64_t integer_power(const Run& run, int64_t base, int64_t exponent) {
  int64_t out = 1;
  if (base >= -1 && base <= 1) return exponent == 0 || base == 1 || (base == -1 && exponent % 2 == 0) ? 1 : base;
  for (; exponent > 0; exponent--) {
    if (__builtin_mul_overflow(out, base, &out)) fail_beyond(run);
  }
  return out;
}

Value integers(const Run& run, const std::string& op, int64_t a, int64_t b) {
  int64_t out = 0;
  if (op == "+" ? __builtin_add_overflow(a, b, &out) : op == "-" && __builtin_sub_overflow(a, b, &out))
    fail_beyond(run);
  if (op == "*" && __builtin_mul_overflow(a, b, &out)) fail_beyond(run);
  if (op == "//") out = floor_divide(run, a, b);
  if (op == "%") {
    if (b == 0) run.fail("division by zero");
    out = b == -1 ? 0 : a % b;
    if (out != 0 && (out < 0) != (b < 0)) out += b;
  }
  if (op == "/" && b == 0) run.fail("division by zero");
  if (op == "/") return Value(static_cast<double>(a) / static_cast<double>(b));
  if (op == "**" && b < 0) {
    if (a == 0) run.fail("division by zero");
    return Value(std::pow(static_cast<double>(a), static_cast<double>(b)));
  }
  if (op == "**") out = integer_power(run, a, b);
  return Value(out);
}

Value reals(const Run& run, const std::string& op, double a, double b) {
  if (op == "+") return Value(a + b);
  if (op == "-") return Value(a - b);
  if (op == "*") return Value(a * b);
  if (op == "**") {
    const double out = std::pow(a, b);
    if (!std::isfinite(out)) run.fail("a power that is no number");
    return Value(out);
  }
  if (b == 0) run.fail("division by zero");
  if (op == "/") return Value(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  return Value(op == "%" ? rest : std::floor((a - rest) / b + 0.5));
}

}  // namespace

Value Run::arithmetic(const std::string& op, const Value& a, const Value& b) {
  for (const Value* side : {&a, &b}) {
    if (side->undefined()) fail_undefined(*side);
  }
  if (a.integer() && b.integer()) return integers(*this, op, a.as_integer(), b.as_integer());
  if (a.number() && b.number()) return reals(*this, op, a.as_real(), b.as_real());
  if (op == "+" && a.string() && b.string()) {
    charge(std::ssize(a.text()) + std::ssize(b.text()));
    return text(a.text() + b.text());
  }
  const auto same_lists = [&] {
    const List *x = a.list(), *y = b.list();
    return x != nullptr && y != nullptr && x->kind == y->kind &&
           (x->kind == ListKind::list || x->kind == ListKind::tuple);
  };
  if (op == "+" && same_lists()) {
    charge(item_weight * (std::ssize(a.list()->items) + std::ssize(b.list()->items)));
    std::vector<Value> items = a.list()->items;
    items.insert(items.end(), b.list()->items.begin(), b.list()->items.end());
    return make_list(std::move(items), a.list()->kind);
  }
  if (op == "%" && a.string()) {
    const bool many = b.list() != nullptr && b.list()->kind == ListKind::tuple;
    charge(weight_of(b) + std::ssize(a.text()));
    return text(percent_format(*this, a.text(), many ? b.list()->items : std::vector<Value>{b}));
  }
  const Value& whole = a.integer() ? b : a;
  const Value& times = a.integer() ? a : b;
  const bool repeats = whole.string() || (whole.list() != nullptr && whole.list()->kind <= ListKind::tuple);
  if (op == "*" && times.integer() && repeats) {
    const int64_t n = std::max<int64_t>(0, times.as_integer());
    const int64_t one = whole.string() ? std::ssize(whole.text()) : item_weight * std::ssize(whole.list()->items);
    int64_t all = 0;
    if (__builtin_mul_overflow(n, one, &all) || all > limits_.output_bytes) fail("a repeated value is too large");
    charge(all);
    if (whole.string()) {
      std::string out;
      for (int64_t i = 0; one > 0 && i < n; i++) out += whole.text();
      return text(std::move(out));
    }
    std::vector<Value> items;
    for (int64_t i = 0; one > 0 && i < n; i++) {
      items.insert(items.end(), whole.list()->items.begin(), whole.list()->items.end());
    }
    return make_list(std::move(items), whole.list()->kind);
  }
  fail(fmt::format("`{}` does not work on {} and {}", op, type_name(a), type_name(b)));
}

Args Run::arguments(const Expr& expr, const Scope& scope) {
  Args args;
  const size_t unnamed = expr.args.size() - expr.names.size();
  for (size_t i = 1; i < expr.args.size(); i++) {
    Value value = evaluate(*expr.args[i], scope);
    if (i < unnamed) {
      args.positional.push_back(std::move(value));
    } else if (expr.names[i - unnamed] == "*") {
      for (Value& item : iterate(value)) args.positional.push_back(std::move(item));
    } else if (expr.names[i - unnamed] == "**") {
      if (value.dict() == nullptr) fail(fmt::format("** unpacks a dict, not a value of type {}", type_name(value)));
      charge(item_weight * std::ssize(value.dict()->items));
      for (const auto& [name, item] : value.dict()->items) args.named.emplace_back(to_text(name), item);
    } else {
      args.named.emplace_back(expr.names[i - unnamed], std::move(value));
    }
  }
  return args;
}

Value Run::evaluate_name(const Expr& expr, const Scope& scope) {
  if (expr.name.empty()) return *body_;
  if (const Value* found = scope.find(expr.name)) return *found;
  for (const char* function : {"range", "namespace", "dict", "raise_exception", "strftime_now"}) {
    if (expr.name == function) return Value(Function{expr.name});
  }
  return make_undefined(fmt::format("`{}` is undefined", expr.name));
}

Value Run::collect(const Expr& expr, const Scope& scope) {
  std::vector<Value> items;
  for (const ExprPtr& arg : expr.args) items.push_back(evaluate(*arg, scope));
  charge(item_weight * std::ssize(items));
  if (expr.op == Op::list || expr.op == Op::tuple) {
    return make_list(std::move(items), expr.op == Op::list ? ListKind::list : ListKind::tuple);
  }
  if (expr.op == Op::concat) {
    std::string out;
    for (const Value& item : items) {
      charge(weight_of(item));
      out += to_text(item);
    }
    return text(std::move(out));
  }
  std::vector<std::pair<Value, Value>> pairs;
  for (size_t i = 0; i < items.size(); i += 2) {
    if (items[i].list() != nullptr ? items[i].list()->kind != ListKind::tuple : items[i].dict() != nullptr) {
      fail(fmt::format("a value of type {} cannot be a key", type_name(items[i])));
    }
    const auto known = std::find_if(pairs.begin(), pairs.end(), [&](auto& pair) { return same(pair.first, items[i]); });
    if (known != pairs.end()) {
      known->second = items[i + 1];
    } else {
      pairs.emplace_back(items[i], items[i + 1]);
    }
  }
  return make_dict(std::move(pairs));
}

Value Run::evaluate_compare(const Expr& expr, const Scope& scope) {
  Value left = evaluate(*expr.args[0], scope);
  for (size_t i = 0; i < expr.names.size(); i++) {
    Value right = evaluate(*expr.args[i + 1], scope);
    line_ = expr.line;
    const std::string& op = expr.names[i];
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = same(left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(right, left) == (op == "in");
    } else {
      for (const Value* side : {&left, &right}) {
        if (side->undefined()) fail_undefined(*side);
      }
      const bool nan = left.number() && right.number() && (std::isnan(left.as_real()) || std::isnan(right.as_real()));
      charge(std::min(weight_of(left), weight_of(right)));
      const int order = nan ? 0 : compare(left, right);
      holds = !nan && (op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0);
    }
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Value Run::evaluate_slice(const Expr& expr, const Scope& scope) {
  const Value whole = evaluate(*expr.args[0], scope);
  std::optional<int64_t> parts[3];
  for (size_t i = 0; i < 3; i++) {
    if (!expr.args[i + 1]) continue;
    const Value part = evaluate(*expr.args[i + 1], scope);
    line_ = expr.line;
    if (part.none()) continue;
    if (part.undefined()) fail_undefined(part);
    parts[i] = need_integer(*this, "a slice", part);
  }
  line_ = expr.line;
  if (whole.undefined()) fail_undefined(whole);
  const List* list = whole.list();
  if (!whole.string() && (list == nullptr || list->kind == ListKind::generator || list->kind == ListKind::view)) {
    fail(fmt::format("a value of type {} has no slices", type_name(whole)));
  }
  charge(list != nullptr ? item_weight * std::ssize(list->items) : weight_of(whole));
  const int64_t n = list != nullptr ? std::ssize(list->items) : python::length(whole.text());
  const int64_t step = parts[2].value_or(1);
  if (step == 0) fail("the step of a slice cannot be 0");
  const auto place = [&](std::optional<int64_t> index, int64_t otherwise) {
    if (!index) return otherwise;
    const int64_t at = *index < 0 ? *index + n : *index;
    return step > 0 ? std::clamp<int64_t>(at, 0, n) : std::clamp<int64_t>(at, -1, n - 1);
  };
  const int64_t begin = place(parts[0], step > 0 ? 0 : n - 1), end = place(parts[1], step > 0 ? n : -1);
  const int64_t span = step > 0 ? end - begin : begin - end;
  const auto size = static_cast<uint64_t>(step > 0 ? step : -(step + 1)) + (step > 0 ? 0 : 1);
  const int64_t count = span <= 0 ? 0 : static_cast<int64_t>((static_cast<uint64_t>(span) - 1) / size) + 1;
  // One item may lie further apart than the text is long; the step is then never taken.
  const int64_t stride = count <= 1 ? 1 : step;
  if (list == nullptr) return text(python::pick(whole.text(), begin, stride, count));
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; i++) items.push_back(list->items[static_cast<size_t>(begin + i * stride)]);
  return make_list(std::move(items), list->kind);
}

Value Run::evaluate(const Expr& expr, const Scope& scope) {
  const Level level(*this);
  charge(0);
  const auto arg = [&](size_t i) {
    Value value = evaluate(*expr.args[i], scope);
    line_ = expr.line;
    return value;
  };
  switch (expr.op) {
    case Op::constant: return expr.value;
    case Op::name: line_ = expr.line; return evaluate_name(expr, scope);
    case Op::list:
    case Op::tuple:
    case Op::dict:
    case Op::concat: return collect(expr, scope);
    case Op::attribute: return attribute(arg(0), expr.name);
    case Op::item: {
      const Value whole = arg(0), key = arg(1);
      return item(whole, key);
    }
    case Op::slice: return evaluate_slice(expr, scope);
    case Op::call:
    case Op::filter:
    case Op::test: {
      const Value subject = arg(0);
      Args args = arguments(expr, scope);
      line_ = expr.line;
      if (expr.op == Op::call) return call(subject, std::move(args));
      if (expr.op == Op::filter) return apply_filter(*this, expr.name, subject, args);
      return Value(apply_test(*this, expr.name, subject, args));
    }
    case Op::negate: return arithmetic("-", Value(int64_t{0}), arg(0));
    case Op::plus: return arithmetic("+", Value(int64_t{0}), arg(0));
    case Op::invert: return Value(!truth(arg(0)));
    case Op::conjunction: {
      Value left = arg(0);
      return truth(left) ? arg(1) : left;
    }
    case Op::alternative: {
      Value left = arg(0);
      return truth(left) ? left : arg(1);
    }
    case Op::arithmetic: {
      const Value left = arg(0), right = arg(1);
      return arithmetic(expr.name, left, right);
    }
    case Op::compare: return evaluate_compare(expr, scope);
    case Op::conditional:
      if (truth(arg(0))) return arg(1);
      if (expr.args[2]) return arg(2);
      return make_undefined("the inline `if` was false and has no `else`");
  }
  return {};
}

}  // namespace furlong::jinja
