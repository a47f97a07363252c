#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "tokenizer/jinja_run.h"
#include "tokenizer/python_text.h"

namespace furlong::jinja {
namespace {

// Texts with letters that are all of one case.
bool is_cased(Run& run, const Value& value, bool upper) {
  run.charge(weight_of(value));
  bool any = false;
  for (const uint32_t c : python::characters(to_text(value))) {
    if (upper ? python::is_lower(c) : python::is_upper(c)) return false;
    any = any || (upper ? python::is_upper(c) : python::is_lower(c));
  }
  return any;
}

bool is_sequence(const Value& value) {
  const List* list = value.list();
  return value.undefined() || value.string() || value.dict() != nullptr ||
         (list != nullptr && list->kind != ListKind::generator && list->kind != ListKind::view);
}

// Tests without an argument; nothing for other names.
std::optional<bool> plain_test(Run& run, std::string_view name, const Value& value) {
  if (name == "defined") return !value.undefined();
  if (name == "undefined") return value.undefined();
  if (name == "none") return value.none();
  if (name == "string") return value.string();
  if (name == "mapping") return value.dict() != nullptr;
  if (name == "iterable") {
    return value.undefined() || value.string() || value.list() != nullptr || value.dict() != nullptr ||
           value.get<const Loop*>() != nullptr;
  }
  if (name == "sequence") return is_sequence(value);
  if (name == "number") return value.number();
  if (name == "integer") return value.integer() && !value.boolean();
  if (name == "float") return value.number() && !value.integer();
  if (name == "boolean") return value.boolean();
  if (name == "true") return value.boolean() && truth(value);
  if (name == "false") return value.boolean() && !truth(value);
  if (name == "upper") return is_cased(run, value, true);
  if (name == "lower") return is_cased(run, value, false);
  if (name == "callable") {
    return value.undefined() || value.get<const Macro*>() != nullptr || value.get<Function>() != nullptr ||
           value.get<std::shared_ptr<const Method>>() != nullptr;
  }
  if (name == "odd" || name == "even") {
    return (need_integer(run, std::string(name), value) % 2 != 0) == (name == "odd");
  }
  return std::nullopt;
}

// Of a value and one argument; nothing for other names.
std::optional<bool> test_with(Run& run, std::string_view name, const Value& value, const Value& arg) {
  if (name == "eq" || name == "equalto" || name == "==") return run.same(value, arg);
  if (name == "ne" || name == "!=") return !run.same(value, arg);
  if (name == "in") return run.contains(arg, value);
  if (name == "sameas") return value.of.index() == arg.of.index() && run.same(value, arg);
  if (name == "divisibleby") {
    const int64_t by = need_integer(run, "divisibleby", arg);
    if (by == 0) run.fail("division by zero");
    return by == -1 || need_integer(run, "divisibleby", value) % by == 0;
  }
  const bool less = name == "lt" || name == "lessthan" || name == "<", at_most = name == "le" || name == "<=";
  const bool more = name == "gt" || name == "greaterthan" || name == ">", at_least = name == "ge" || name == ">=";
  if (!less && !at_most && !more && !at_least) return std::nullopt;
  run.charge(std::min(weight_of(value), weight_of(arg)));
  const int order = compare(value, arg);
  return less ? order < 0 : at_most ? order <= 0 : more ? order > 0 : order >= 0;
}

}  // namespace

bool apply_test(Run& run, const std::string& name, const Value& value, const Args& args) {
  run.charge(0);
  if (!args.named.empty() || args.positional.size() > 1) run.fail(fmt::format("test `{}`: too many arguments", name));
  const auto known =
      args.positional.empty() ? plain_test(run, name, value) : test_with(run, name, value, args.positional[0]);
  if (known) return *known;
  run.fail(fmt::format("there is no test `{}` {} here", printable(name),
                       args.positional.empty() ? "without an argument" : "with an argument"));
}

}  // namespace furlong::jinja
