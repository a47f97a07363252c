#include "tokenizer/jinja_run.h"

#include <algorithm>
#include <stdexcept>

#include "base/error.h"
#include "base/text.h"
#include "tokenizer/python_text.h"

namespace furlong::jinja {
namespace {

// Of evaluation and of macros that call macros, together.
constexpr int max_run_depth = 1000;
constexpr int64_t max_range = 100'000;

}  // namespace

const Value* Scope::find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->parent) {
    for (const auto& [known, value] : scope->names) {
      if (known == name) return &value;
    }
  }
  return nullptr;
}

void Scope::set(const std::string& name, Value value) {
  for (auto& [known, old] : names) {
    if (known != name) continue;
    old = std::move(value);
    return;
  }
  names.emplace_back(name, std::move(value));
}

Run::Level::Level(Run& owner) : run(owner) {
  if (++run.depth_ <= max_run_depth) return;
  run.depth_--;
  run.fail("the template calls itself or nests too deeply");
}

Run::Run(const std::string& name, const JinjaLimits& limits, const Value& variables, std::time_t now)
    : name_(name), limits_(limits), now_(now) {
  for (const auto& [key, value] : variables.dict()->items) variables_.set(key.text(), value);
  const Value* messages = variables.dict()->find("messages");
  if (messages == nullptr || messages->list() == nullptr) return;
  for (const Value& message : messages->list()->items) messages_.push_back(message.dict());
}

void Run::fail(const std::string& message) const { furlong::fail(Exit::input, "{}:{}: {}", name_, line_, message); }

void Run::charge(int64_t weight) {
  steps_ += 1 + weight / step_weight;
  if (steps_ > limits_.steps) {
    fail(fmt::format("the template takes more than {} steps for this conversation; it may never end", limits_.steps));
  }
}

Value Run::text(std::string text) {
  charge(std::ssize(text));
  if (std::ssize(text) > limits_.output_bytes) {
    fail(fmt::format("the template makes a text of more than {}",
                     human_bytes(static_cast<uint64_t>(limits_.output_bytes))));
  }
  return make_text(std::move(text));
}

void Run::fail_undefined(const Value& value) const { fail(value.get<Undefined>()->why); }

JinjaText Run::render(const Body& body) {
  try {
    Scope root{&variables_, {}};
    execute(body, root);
  } catch (const TypeProblem& problem) {
    fail(problem.message);
  } catch (const std::length_error& problem) {
    fail(problem.what());
  }
  return std::move(result_);
}

void Run::write(std::string_view text) {
  charge(std::ssize(text));
  if (std::ssize(*out_) + std::ssize(text) > limits_.output_bytes) {
    fail(fmt::format("the template writes more than {}", human_bytes(static_cast<uint64_t>(limits_.output_bytes))));
  }
  *out_ += text;
}

std::string Run::capture(const Body& body, const Scope& scope) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  Scope inner{&scope, {}};
  execute(body, inner);  // an exception ends the run
  out_ = outer;
  return text;
}

Run::Flow Run::execute(const Body& body, Scope& scope) {
  const Level level(*this);
  for (const Stmt& stmt : body) {
    line_ = stmt.line;
    charge(0);
    if (const Flow flow = execute(stmt, scope); flow != Flow::on) return flow;
  }
  return Flow::on;
}

Run::Flow Run::execute(const Stmt& stmt, Scope& scope) {
  switch (stmt.act) {
    case Act::text: write(stmt.text); break;
    case Act::output: {
      const Value value = evaluate(*stmt.exprs[0], scope);
      charge(weight_of(value));
      write(to_text(value));
      break;
    }
    case Act::branch:
      for (size_t i = 0; i < stmt.bodies.size(); i++) {
        if (i == stmt.exprs.size() || truth(evaluate(*stmt.exprs[i], scope))) return execute(stmt.bodies[i], scope);
      }
      break;
    case Act::loop: return loop(stmt, scope);
    case Act::set: assign(stmt.targets, stmt.unpacks, evaluate(*stmt.exprs[0], scope), scope); break;
    case Act::set_body: {
      Value value = text(capture(stmt.bodies[0], scope));
      assign(stmt.targets, false, through_filters(stmt.exprs[0].get(), std::move(value), scope), scope);
      break;
    }
    case Act::macro: scope.set(stmt.text, define(stmt, scope)); break;
    case Act::call: write(to_text(call_with(stmt, scope))); break;
    case Act::with: {
      Scope inner{&scope, {}};
      for (size_t i = 0; i < stmt.targets.size(); i++) inner.set(stmt.targets[i].name, evaluate(*stmt.exprs[i], scope));
      return execute(stmt.bodies[0], inner);
    }
    case Act::filter: {
      Value value = text(capture(stmt.bodies[0], scope));
      write(to_text(through_filters(stmt.exprs[0].get(), std::move(value), scope)));
      break;
    }
    case Act::group: {
      Scope inner{&scope, {}};
      return execute(stmt.bodies[0], inner);
    }
    case Act::leave: return Flow::leave;
    case Act::skip: return Flow::skip;
  }
  return Flow::on;
}

Run::Flow Run::loop(const Stmt& stmt, Scope& scope) {
  std::vector<Value> items = iterate(evaluate(*stmt.exprs[0], scope));
  if (stmt.exprs[1]) {
    std::erase_if(items, [&](const Value& item) {
      Scope inner{&scope, {}};
      assign(stmt.targets, stmt.unpacks, item, inner);
      return !truth(evaluate(*stmt.exprs[1], inner));
    });
  }
  if (items.empty()) {
    Scope inner{&scope, {}};
    return execute(stmt.bodies[1], inner);
  }
  Loop state{&items, 0, {}};
  for (; state.index < std::ssize(items); state.index++) {
    Scope inner{&scope, {}};
    inner.set("loop", Value(static_cast<const Loop*>(&state)));
    const Value& item = items[static_cast<size_t>(state.index)];
    assign(stmt.targets, stmt.unpacks, item, inner);
    const size_t begin = result_.text.size();
    const Flow flow = execute(stmt.bodies[0], inner);
    if (item.dict() != nullptr && result_.text.size() > begin) {
      const auto message = std::find(messages_.begin(), messages_.end(), item.dict());
      if (message != messages_.end()) {
        result_.spans.push_back({static_cast<size_t>(message - messages_.begin()), begin, result_.text.size()});
      }
    }
    if (flow == Flow::leave) break;
  }
  return Flow::on;
}

void Run::assign(const std::vector<Target>& targets, bool unpacks, Value value, Scope& scope) {
  std::vector<Value> values;
  if (unpacks) {
    values = iterate(value);
    if (values.size() != targets.size()) {
      fail(fmt::format("{} values for {} names", values.size(), targets.size()));
    }
  } else {
    values.push_back(std::move(value));
  }
  for (size_t i = 0; i < targets.size(); i++) {
    const Target& target = targets[i];
    if (target.attribute.empty()) {
      scope.set(target.name, std::move(values[i]));
      continue;
    }
    const Value* space = scope.find(target.name);
    const auto* found = space == nullptr ? nullptr : space->get<std::shared_ptr<Namespace>>();
    if (found == nullptr)
      fail(fmt::format("`{}` is no namespace; only a namespace's attributes can be set", target.name));
    if (!is_plain(values[i])) fail("a namespace cannot hold a namespace, loop or macro");
    if (target.attribute[0] == '_') fail("attributes of a namespace cannot begin with an underscore");
    auto& items = (*found)->items;
    const auto known =
        std::find_if(items.begin(), items.end(), [&](auto& item) { return item.first == target.attribute; });
    if (known != items.end()) {
      known->second = std::move(values[i]);
    } else {
      items.emplace_back(target.attribute, std::move(values[i]));
    }
  }
}

Value Run::through_filters(const Expr* filters, Value input, const Scope& scope) {
  if (filters == nullptr) return input;
  const Value* const outer = std::exchange(body_, &input);
  Value out = evaluate(*filters, scope);
  body_ = outer;
  return out;
}

Value Run::define(const Stmt& macro, const Scope& scope) {
  macros_.push_back({&macro, &scope, scope.parent == &variables_});
  return Value(static_cast<const Macro*>(&macros_.back()));
}

// A call block: the call, with what stands in the block as a macro for it to call.
Value Run::call_with(const Stmt& stmt, const Scope& scope) {
  const Expr& expr = *stmt.exprs[0];
  const Value callee = evaluate(*expr.args[0], scope);
  Args args = arguments(expr, scope);
  args.named.emplace_back("caller", define(stmt.bodies[0][0], scope));
  line_ = stmt.line;
  return call(callee, std::move(args));
}

std::string Run::call_macro(const Macro& macro, Args args) {
  const Level level(*this);
  const Stmt& stmt = *macro.stmt;
  if (args.positional.size() > stmt.targets.size()) {
    fail(fmt::format("macro {} takes at most {} arguments, not {}", stmt.text, stmt.targets.size(),
                     args.positional.size()));
  }
  Scope inner{macro.scope, {}};
  for (size_t i = 0; i < stmt.targets.size(); i++) {
    const std::string& name = stmt.targets[i].name;
    const auto named = std::find_if(args.named.begin(), args.named.end(), [&](auto& arg) { return arg.first == name; });
    if (i < args.positional.size()) {
      if (named != args.named.end()) fail(fmt::format("macro {} gets its argument {} twice", stmt.text, name));
      inner.set(name, std::move(args.positional[i]));
    } else if (named != args.named.end()) {
      inner.set(name, std::move(named->second));
      args.named.erase(named);
    } else if (stmt.exprs[i]) {
      inner.set(name, evaluate(*stmt.exprs[i], inner));
    } else {
      inner.set(name, make_undefined(fmt::format("the argument `{}` was not given", name)));
    }
  }
  if (args.named.size() == 1 && args.named[0].first == "caller") {
    inner.set("caller", std::move(args.named[0].second));
    args.named.clear();
  }
  if (!args.named.empty()) fail(fmt::format("macro {} has no argument {}", stmt.text, args.named[0].first));
  return capture(stmt.bodies[0], inner);
}

Value Run::call(const Value& callee, Args args) {
  if (const auto* macro = callee.get<const Macro*>()) {
    const int line = line_;
    std::string out = call_macro(**macro, std::move(args));
    line_ = line;
    return text(std::move(out));
  }
  if (const auto* method = callee.get<std::shared_ptr<const Method>>()) return call_method(*this, **method, args);
  if (const auto* function = callee.get<Function>()) return call_function(function->name, std::move(args));
  if (callee.undefined()) fail_undefined(callee);
  fail(fmt::format("a value of type {} cannot be called", type_name(callee)));
}

Value Run::call_function(const std::string& name, Args args) {
  if (name == "raise_exception") {
    const auto bound = bind(*this, name, args, {"message"}, 1);
    fail(fmt::format("the template refuses the conversation: {}", printable(to_text(*bound[0]), 400)));
  }
  if (name == "strftime_now") {
    const auto bound = bind(*this, name, args, {"format"}, 1);
    const std::string& format = need_text(*this, name, *bound[0]);
    std::tm local{};
    localtime_r(&now_, &local);
    std::vector<char> out(format.size() * 64 + 64);
    const size_t n = std::strftime(out.data(), out.size(), format.c_str(), &local);
    return text(std::string(out.data(), n));
  }
  if (name == "range") {
    const auto bound = bind(*this, name, args, {"start", "stop", "step"}, 1);
    int64_t begin = 0, end = need_integer(*this, name, *bound[0]);
    if (bound[1] != nullptr) begin = std::exchange(end, need_integer(*this, name, *bound[1]));
    const int64_t step = bound[2] == nullptr ? 1 : need_integer(*this, name, *bound[2]);
    if (step == 0) fail("range: the step cannot be 0");
    const __int128 length = step > 0 ? __int128{end} - begin : __int128{begin} - end,
                   stride = step > 0 ? step : -__int128{step};
    const __int128 count = length <= 0 ? 0 : (length + stride - 1) / stride;
    if (count > max_range) fail(fmt::format("range has more than {} numbers", max_range));
    charge(item_weight * static_cast<int64_t>(count));
    std::vector<Value> items;
    items.reserve(static_cast<size_t>(count));
    for (__int128 i = begin; std::ssize(items) < count; i += step) items.emplace_back(static_cast<int64_t>(i));
    return make_list(std::move(items), ListKind::range);
  }
  // namespace and dict: a dict's items, then the named ones.
  std::vector<std::pair<Value, Value>> items;
  if (!args.positional.empty()) {
    if (args.positional.size() > 1 || args.positional[0].dict() == nullptr) fail(name + " takes one dict and names");
    items = args.positional[0].dict()->items;
  }
  for (auto& arg : args.named) {
    Value key = make_text(arg.first);
    const auto known =
        std::find_if(items.begin(), items.end(), [&](const auto& item) { return same(item.first, key); });
    if (known != items.end()) {
      known->second = std::move(arg.second);
    } else {
      items.emplace_back(std::move(key), std::move(arg.second));
    }
  }
  charge(item_weight * std::ssize(items));
  if (name == "dict") return make_dict(std::move(items));
  auto space = std::make_shared<Namespace>();
  for (auto& [key, value] : items) {
    if (!is_plain(value)) fail("a namespace cannot hold a namespace, loop or macro");
    space->items.emplace_back(to_text(key), std::move(value));
  }
  return Value(std::move(space));
}

Value Run::loop_attribute(const Loop& loop, const std::string& name) {
  const auto n = std::ssize(*loop.items), i = loop.index;
  const auto at = [&](int64_t index, const char* which) {
    if (index < 0 || index >= n) return make_undefined(fmt::format("there is no {} item", which));
    return (*loop.items)[static_cast<size_t>(index)];
  };
  if (name == "index") return Value(int64_t{i + 1});
  if (name == "index0") return Value(int64_t{i});
  if (name == "revindex") return Value(int64_t{n - i});
  if (name == "revindex0") return Value(int64_t{n - i - 1});
  if (name == "first") return Value(i == 0);
  if (name == "last") return Value(i + 1 == n);
  if (name == "length") return Value(int64_t{n});
  if (name == "depth" || name == "depth0") return Value(int64_t{name == "depth" ? 1 : 0});  // deeper only in recursion
  if (name == "previtem") return at(i - 1, "previous");
  if (name == "nextitem") return at(i + 1, "next");
  if (name == "cycle" || name == "changed") return Value(std::make_shared<const Method>(Method{Value(&loop), name}));
  return make_undefined(fmt::format("loop has no attribute `{}`", name));
}

Value Run::attribute(const Value& value, const std::string& name) {
  if (value.undefined()) fail_undefined(value);
  if (const auto* loop = value.get<const Loop*>()) return loop_attribute(**loop, name);
  if (const auto* space = value.get<std::shared_ptr<Namespace>>()) {
    for (const auto& [known, item] : (*space)->items) {
      if (known == name) return item;
    }
    return make_undefined(fmt::format("the namespace has no attribute `{}`", name));
  }
  if (has_method(value, name)) return Value(std::make_shared<const Method>(Method{value, name}));
  if (const Dict* dict = value.dict()) {
    charge(walk_weight * std::ssize(dict->items));
    if (const Value* found = dict->find(name)) return *found;
  }
  return make_undefined(fmt::format("a value of type {} has no attribute `{}`", type_name(value), printable(name)));
}

Value Run::item(const Value& value, const Value& key) {
  if (value.undefined()) fail_undefined(value);
  if (const Dict* dict = value.dict()) {
    charge(walk_weight * std::ssize(dict->items));
    if (const Value* found = dict->find(key)) return *found;
  }
  const List* list = value.list();
  const bool indexed = list != nullptr && list->kind != ListKind::generator && list->kind != ListKind::view;
  if ((indexed || value.string()) && key.integer()) {
    const int64_t n = indexed ? std::ssize(list->items) : python::length(value.text());
    charge(indexed ? 0 : std::ssize(value.text()));
    int64_t index = key.as_integer();
    if (index < 0) index += n;
    if (index < 0 || index >= n) {
      return make_undefined(fmt::format("a {} of {} items has none at {}", type_name(value), n, key.as_integer()));
    }
    return indexed ? list->items[static_cast<size_t>(index)] : text(python::pick(value.text(), index, 1, 1));
  }
  if (key.string()) return attribute(value, key.text());
  return make_undefined(fmt::format("a value of type {} has no item {}", type_name(value),
                                    is_plain(key) ? printable(key.list() ? "of that key" : repr(key)) : "of that key"));
}

Value Run::path(const Value& value, const Value& attribute) {
  if (attribute.integer()) return item(value, attribute);
  Value out = value;
  for (const std::string_view part : python::split(need_text(*this, "attribute", attribute), ".", -1, false)) {
    const auto index = parse_integer(part);
    out = item(out, index && *index >= 0 ? Value(*index) : make_text(std::string(part)));
  }
  return out;
}

std::vector<Value> Run::iterate(const Value& value) {
  std::vector<Value> out;
  if (const List* list = value.list()) {
    charge(walk_weight * std::ssize(list->items));
    if (list->kind != ListKind::generator) return list->items;
    if (!std::exchange(list->consumed, true)) out = list->items;
  } else if (const Dict* dict = value.dict()) {
    charge(walk_weight * std::ssize(dict->items));
    out.reserve(dict->items.size());
    for (const auto& item : dict->items) out.push_back(item.first);
  } else if (value.string()) {
    charge(item_weight * std::ssize(value.text()));  // each becomes a value of its own
    std::string_view rest = value.text();
    out.reserve(rest.size());
    for (size_t n = 0; (n = python::first_bytes(rest)) > 0; rest.remove_prefix(n)) {
      out.push_back(make_text(std::string(rest.substr(0, n))));
    }
  } else if (!value.undefined()) {
    fail(fmt::format("a value of type {} cannot be looped over", type_name(value)));
  }
  return out;
}

bool Run::same(const Value& a, const Value& b) {
  charge(std::min(weight_of(a), weight_of(b)));
  return equal(a, b);
}

bool Run::contains(const Value& whole, const Value& part) {
  if (whole.string()) {
    charge(weight_of(whole));
    if (part.undefined()) fail_undefined(part);
    if (!part.string()) fail(fmt::format("`in` a text needs a text, not a value of type {}", type_name(part)));
    return whole.text().find(part.text()) != std::string::npos;
  }
  const std::vector<Value> items = iterate(whole);
  return std::any_of(items.begin(), items.end(), [&](const Value& item) { return same(item, part); });
}

}  // namespace furlong::jinja
