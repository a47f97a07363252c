// Values of chat templates, as Python has them: everything but a namespace is immutable.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace furlong::jinja {

struct Value;
struct List;
struct Dict;
struct Namespace;
struct Loop;
struct Scope;
struct Stmt;
struct Method;

struct Undefined {
  std::string why;  // what an error says if it is used
};
struct None {};
struct Function {
  std::string name;  // of a global: range, namespace, dict, raise_exception, strftime_now
};

// Loop and Macro belong to the run, which outlives every value.
struct Macro {
  const Stmt* stmt;
  const Scope* scope;
  bool lasts;  // as long as the run: its scope is the template's own
};

struct Value {
  using Text = std::shared_ptr<const std::string>;
  std::variant<Undefined, None, bool, int64_t, double, Text, std::shared_ptr<const List>, std::shared_ptr<const Dict>,
               std::shared_ptr<Namespace>, const Loop*, const Macro*, std::shared_ptr<const Method>, Function>
      of;

  Value() = default;
  template <class T>
  requires(!std::is_same_v<std::decay_t<T>, Value>) explicit Value(T&& value) : of(std::forward<T>(value)) {}

  template <class T>
  const T* get() const {
    return std::get_if<T>(&of);
  }
  bool undefined() const { return get<Undefined>() != nullptr; }
  bool none() const { return get<None>() != nullptr; }
  bool boolean() const { return get<bool>() != nullptr; }
  bool integer() const { return get<int64_t>() != nullptr || boolean(); }  // Python's bool is an int
  bool number() const { return integer() || get<double>() != nullptr; }
  bool string() const { return get<Text>() != nullptr; }
  int64_t as_integer() const { return boolean() ? int64_t{*get<bool>()} : *get<int64_t>(); }
  double as_real() const { return integer() ? static_cast<double>(as_integer()) : *get<double>(); }
  const std::string& text() const { return **get<Text>(); }
  const List* list() const {
    const auto* p = get<std::shared_ptr<const List>>();
    return p == nullptr ? nullptr : p->get();
  }
  const Dict* dict() const {
    const auto* p = get<std::shared_ptr<const Dict>>();
    return p == nullptr ? nullptr : p->get();
  }
};

// generator: what map, select and their like return; it is walked once and has no length (its items are made at once,
// so that an error in a later one shows even where only the first is used). view: of a dict's keys,
// values or items.
enum class ListKind { list, tuple, generator, view, range };

struct List {
  std::vector<Value> items;
  ListKind kind = ListKind::list;
  int depth = 1;       // of nesting
  int64_t weight = 1;  // weight_of()
  mutable bool consumed = false;
};

struct Dict {
  std::vector<std::pair<Value, Value>> items;  // in order of insertion
  int depth = 1;
  int64_t weight = 1;
  const Value* find(std::string_view key) const;
  const Value* find(const Value& key) const;
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> items;
};

// A method of a value, or a namespace's or loop's function.
struct Method {
  Value self;
  std::string name;
};

constexpr int max_value_depth = 100;
constexpr int64_t max_value_weight = int64_t{1} << 26;

// What it costs to walk a value: its parts and the bytes of its texts, those that it shares with itself counted again.
int64_t weight_of(const Value& value);

Value make_text(std::string text);
Value make_undefined(std::string why);
// Both throw std::length_error for what nests too deeply or is too heavy, and for a namespace, loop or macro as an
// item.
Value make_list(std::vector<Value> items, ListKind kind = ListKind::list);
Value make_dict(std::vector<std::pair<Value, Value>> items);
// Whether a value may be part of another. Of macros those may that live as long as the run.
bool is_plain(const Value& value);

// What JSON text holds. Throws Error(Exit::input), naming `where`: not JSON, an integer beyond 64 bits.
Value value_of_json(std::string_view json, const std::string& where);

bool truth(const Value& value);
bool equal(const Value& a, const Value& b);
const char* type_name(const Value& value);  // "str", "dict", ...

// What errors of the three below say without the place: Python's TypeError.
struct TypeProblem {
  std::string message;
};

// -1, 0 or 1. Throws TypeProblem.
int compare(const Value& a, const Value& b);
// str() and repr(). Throw TypeProblem for what has no text of its own (a macro, a method, a generator).
std::string to_text(const Value& value);
std::string repr(const Value& value);

struct JsonStyle {
  int64_t indent = -1;  // below 0: on one line
  std::string item_separator = ", ", key_separator = ": ";
  bool ascii = false, sort_keys = false;
};
// json.dumps. Throws TypeProblem.
std::string to_json(const Value& value, const JsonStyle& style);

}  // namespace furlong::jinja
