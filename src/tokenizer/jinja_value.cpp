#include "tokenizer/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "base/error.h"
#include "base/json.h"
#include "tokenizer/python_text.h"

namespace furlong::jinja {
namespace {

// Makes `item` a part of a list or dict.
template <class Whole>
void add_part(Whole& whole, const Value& item) {
  if (!is_plain(item)) throw std::length_error("a namespace, loop or macro cannot be part of a list or dict");
  const int inside = item.list() != nullptr ? item.list()->depth : item.dict() != nullptr ? item.dict()->depth : 0;
  whole.depth = std::max(whole.depth, inside + 1);
  whole.weight += weight_of(item);
  if (whole.depth > max_value_depth) throw std::length_error("lists or dicts nest too deeply");
  if (whole.weight > max_value_weight) throw std::length_error("a list or dict is too large");
}

Value from_json(const OrderedJson& json, const std::string& where) {
  if (json.is_null()) return Value(None{});
  if (json.is_boolean()) return Value(json.get<bool>());
  if (json.is_number_unsigned() && json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
    fail(Exit::input, "{}: the integer {} is beyond 64 bits", where, json.dump());
  }
  if (json.is_number_integer()) return Value(json.get<int64_t>());
  if (json.is_number_float()) return Value(json.get<double>());
  if (json.is_string()) return make_text(json.get<std::string>());
  if (json.is_array()) {
    std::vector<Value> items;
    for (const OrderedJson& item : json) items.push_back(from_json(item, where));
    return make_list(std::move(items));
  }
  std::vector<std::pair<Value, Value>> items;
  for (const auto& [key, value] : json.items()) items.emplace_back(make_text(key), from_json(value, where));
  return make_dict(std::move(items));
}

template <class T>
int order(const T& a, const T& b) {
  return a < b ? -1 : b < a ? 1 : 0;
}

std::string joined(const List& list) {
  std::string out;
  for (const Value& item : list.items) {
    if (!out.empty()) out += ", ";
    out += repr(item);
  }
  return out;
}

std::string repr_of(const List& list) {
  switch (list.kind) {
    case ListKind::list: return "[" + joined(list) + "]";
    case ListKind::tuple: return "(" + joined(list) + (list.items.size() == 1 ? ",)" : ")");
    case ListKind::generator: throw TypeProblem{"a filter's result has no text until it is a list; add | list"};
    case ListKind::view: throw TypeProblem{"a dict's keys, values or items have no text until they are a list"};
    case ListKind::range: throw TypeProblem{"a range has no text until it is a list; add | list"};
  }
  return {};
}

std::string repr_of(const Dict& dict) {
  std::string out = "{";
  for (const auto& [key, value] : dict.items) {
    if (out.size() > 1) out += ", ";
    out += repr(key) + ": " + repr(value);
  }
  return out + "}";
}

std::string json_number(double number) {
  if (std::isnan(number)) return "NaN";
  if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
  return python::repr(number);
}

std::string json_key(const Value& key) {
  if (key.string()) return key.text();
  if (key.none()) return "null";
  if (key.boolean()) return *key.get<bool>() ? "true" : "false";
  if (key.integer()) return std::to_string(key.as_integer());
  if (key.number()) return json_number(key.as_real());
  throw TypeProblem{fmt::format("keys of JSON must be texts or numbers, not {}", type_name(key))};
}

void write_json(std::string& out, const Value& value, const JsonStyle& style, int64_t level);

// The items of a list or dict between brackets; `write(i)` writes one.
template <class Write>
void write_items(std::string& out, const char* brackets, size_t n, const JsonStyle& style, int64_t level,
                 Write&& write) {
  out += brackets[0];
  const auto newline = [&](int64_t at) {
    if (style.indent < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(style.indent * at), ' ');
  };
  for (size_t i = 0; i < n; i++) {
    if (i > 0) out += style.item_separator;
    newline(level + 1);
    write(i);
  }
  if (n > 0) newline(level);
  out += brackets[1];
}

void write_json(std::string& out, const Value& value, const JsonStyle& style, int64_t level) {
  if (value.none()) {
    out += "null";
  } else if (value.boolean()) {
    out += *value.get<bool>() ? "true" : "false";
  } else if (value.integer()) {
    out += std::to_string(value.as_integer());
  } else if (value.number()) {
    out += json_number(value.as_real());
  } else if (value.string()) {
    out += python::json_string(value.text(), style.ascii);
  } else if (const List* list = value.list();
             list != nullptr && (list->kind == ListKind::list || list->kind == ListKind::tuple)) {
    write_items(out, "[]", list->items.size(), style, level,
                [&](size_t i) { write_json(out, list->items[i], style, level + 1); });
  } else if (const Dict* dict = value.dict()) {
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict->items) items.push_back(&item);
    if (style.sort_keys) {
      std::stable_sort(items.begin(), items.end(), [](auto* a, auto* b) { return compare(a->first, b->first) < 0; });
    }
    write_items(out, "{}", items.size(), style, level, [&](size_t i) {
      out += python::json_string(json_key(items[i]->first), style.ascii) + style.key_separator;
      write_json(out, items[i]->second, style, level + 1);
    });
  } else {
    throw TypeProblem{fmt::format("a value of type {} cannot be written as JSON", type_name(value))};
  }
}

}  // namespace

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : items) {
    if (name.string() && name.text() == key) return &value;
  }
  return nullptr;
}

const Value* Dict::find(const Value& key) const {
  for (const auto& [name, value] : items) {
    if (equal(name, key)) return &value;
  }
  return nullptr;
}

int64_t weight_of(const Value& value) {
  if (value.string()) return 1 + std::ssize(value.text());
  return value.list() != nullptr ? value.list()->weight : value.dict() != nullptr ? value.dict()->weight : 1;
}

bool is_plain(const Value& value) {
  return !value.get<std::shared_ptr<Namespace>>() && !value.get<const Loop*>() &&
         (!value.get<const Macro*>() || (*value.get<const Macro*>())->lasts) &&
         !value.get<std::shared_ptr<const Method>>();
}

Value make_text(std::string text) { return Value(std::make_shared<const std::string>(std::move(text))); }

Value make_undefined(std::string why) { return Value(Undefined{std::move(why)}); }

Value make_list(std::vector<Value> items, ListKind kind) {
  auto list = std::make_shared<List>();
  list->kind = kind;
  for (const Value& item : items) add_part(*list, item);
  list->items = std::move(items);
  return Value(std::shared_ptr<const List>(std::move(list)));
}

Value make_dict(std::vector<std::pair<Value, Value>> items) {
  auto dict = std::make_shared<Dict>();
  for (const auto& [key, value] : items) {
    add_part(*dict, key);
    add_part(*dict, value);
  }
  dict->items = std::move(items);
  return Value(std::shared_ptr<const Dict>(std::move(dict)));
}

Value value_of_json(std::string_view json, const std::string& where) {
  return from_json(parse_ordered_json(json, where), where);
}

bool truth(const Value& value) {
  if (value.undefined() || value.none()) return false;
  if (value.integer()) return value.as_integer() != 0;
  if (value.number()) return value.as_real() != 0;
  if (value.string()) return !value.text().empty();
  if (const List* list = value.list()) return list->kind == ListKind::generator || !list->items.empty();
  if (const Dict* dict = value.dict()) return !dict->items.empty();
  return true;
}

bool equal(const Value& a, const Value& b) {
  if (a.number() && b.number()) {
    return a.integer() && b.integer() ? a.as_integer() == b.as_integer() : a.as_real() == b.as_real();
  }
  if (a.of.index() != b.of.index()) return false;
  if (a.undefined() || a.none()) return true;
  if (a.string()) return a.text() == b.text();
  if (const List* x = a.list(), *y = b.list(); x != nullptr) {
    return x == y || (x->kind == y->kind && x->kind != ListKind::generator &&
                      std::equal(x->items.begin(), x->items.end(), y->items.begin(), y->items.end(), equal));
  }
  if (const Dict* x = a.dict(), *y = b.dict(); x != nullptr) {
    return x == y ||
           (x->items.size() == y->items.size() && std::all_of(x->items.begin(), x->items.end(), [&](const auto& item) {
              const Value* other = y->find(item.first);
              return other != nullptr && equal(item.second, *other);
            }));
  }
  if (const auto* x = a.get<std::shared_ptr<Namespace>>()) return *x == *b.get<std::shared_ptr<Namespace>>();
  return false;
}

const char* type_name(const Value& value) {
  constexpr const char* names[] = {"undefined", "NoneType",  "bool",        "int",   "float",  "str",     "list",
                                   "dict",      "Namespace", "LoopContext", "Macro", "method", "function"};
  if (const List* list = value.list()) {
    constexpr const char* kinds[] = {"list", "tuple", "generator", "dict view", "range"};
    return kinds[static_cast<size_t>(list->kind)];
  }
  return names[value.of.index()];
}

int compare(const Value& a, const Value& b) {
  if (a.integer() && b.integer()) return order(a.as_integer(), b.as_integer());
  if (a.number() && b.number()) return order(a.as_real(), b.as_real());
  if (a.string() && b.string()) return order(a.text(), b.text());  // UTF-8 sorts as its characters do
  const List *x = a.list(), *y = b.list();
  if (x == nullptr || y == nullptr || x->kind != y->kind || x->kind == ListKind::generator) {
    throw TypeProblem{fmt::format("{} and {} have no order", type_name(a), type_name(b))};
  }
  for (size_t i = 0; i < std::min(x->items.size(), y->items.size()); i++) {
    if (!equal(x->items[i], y->items[i])) return compare(x->items[i], y->items[i]);
  }
  return order(x->items.size(), y->items.size());
}

std::string to_text(const Value& value) {
  if (value.string()) return value.text();
  if (value.undefined()) return "";
  return repr(value);
}

std::string repr(const Value& value) {
  if (value.undefined()) return "Undefined";
  if (value.none()) return "None";
  if (value.boolean()) return *value.get<bool>() ? "True" : "False";
  if (value.integer()) return std::to_string(value.as_integer());
  if (value.number()) return python::repr(value.as_real());
  if (value.string()) return python::repr(value.text());
  if (const List* list = value.list()) return repr_of(*list);
  if (const Dict* dict = value.dict()) return repr_of(*dict);
  throw TypeProblem{fmt::format("a value of type {} has no text", type_name(value))};
}

std::string to_json(const Value& value, const JsonStyle& style) {
  std::string out;
  write_json(out, value, style, 0);
  return out;
}

}  // namespace furlong::jinja
