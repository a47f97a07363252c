#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "base/error.h"
#include "base/text.h"
#include "tokenizer/jinja_run.h"
#include "tokenizer/python_text.h"

namespace furlong::jinja {
namespace method {  // apart from filters of the same names
namespace {

using python::Side;
using TextMethod = Value (*)(Run&, const std::string& text, const Args& args);

template <Side side>
Value strip(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "strip", args, {"chars"});
  if (bound[0] == nullptr || bound[0]->none()) return run.text(std::string(python::strip(text, side)));
  return run.text(std::string(python::strip(text, side, need_text(run, "strip", *bound[0]))));
}

Value texts(Run& run, const std::vector<std::string_view>& parts, ListKind kind = ListKind::list) {
  run.charge(item_weight * std::ssize(parts));
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.push_back(make_text(std::string(part)));
  return make_list(std::move(items), kind);
}

template <bool from_right>
Value split(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "split", args, {"sep", "maxsplit"});
  const int64_t most = bound[1] == nullptr ? -1 : need_integer(run, "split", *bound[1]);
  if (bound[0] == nullptr || bound[0]->none()) return texts(run, python::split(text, most, from_right));
  const std::string& separator = need_text(run, "split", *bound[0]);
  if (separator.empty()) run.fail("split: the separator is empty");
  return texts(run, python::split(text, separator, most, from_right));
}

template <bool from_right>
Value partition(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "partition", args, {"sep"}, 1);
  const std::string& separator = need_text(run, "partition", *bound[0]);
  if (separator.empty()) run.fail("partition: the separator is empty");
  auto parts = python::split(text, separator, 1, from_right);
  if (parts.size() == 1) {
    parts = from_right ? std::vector<std::string_view>{"", "", text} : std::vector<std::string_view>{text, "", ""};
  } else {
    parts.insert(parts.begin() + 1, separator);
  }
  return texts(run, parts, ListKind::tuple);
}

Value splitlines(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "splitlines", args, {"keepends"});
  return texts(run, python::lines(text, bound[0] != nullptr && truth(*bound[0])));
}

template <bool at_start>
Value affixed(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "startswith", args, {"prefix"}, 1);
  const List* several = bound[0]->list();
  const auto all =
      several != nullptr && several->kind == ListKind::tuple ? several->items : std::vector<Value>{*bound[0]};
  return Value(std::any_of(all.begin(), all.end(), [&](const Value& affix) {
    const std::string& wanted = need_text(run, at_start ? "startswith" : "endswith", affix);
    return at_start ? text.starts_with(wanted) : text.ends_with(wanted);
  }));
}

template <bool at_start>
Value remove_affix(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "removeprefix", args, {"prefix"}, 1);
  const std::string& affix = need_text(run, "removeprefix", *bound[0]);
  if (at_start ? !text.starts_with(affix) : !text.ends_with(affix)) return run.text(text);
  return run.text(at_start ? text.substr(affix.size()) : text.substr(0, text.size() - affix.size()));
}

Value replace(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "replace", args, {"old", "new", "count"}, 2);
  const std::string &from = need_text(run, "replace", *bound[0]), &to = need_text(run, "replace", *bound[1]);
  run.charge((std::ssize(text) + 1) * (1 + std::ssize(to)) / std::max<int64_t>(1, std::ssize(from)));
  return run.text(python::replace(text, from, to, bound[2] == nullptr ? -1 : need_integer(run, "replace", *bound[2])));
}

template <bool from_right>
int64_t position(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "find", args, {"sub"}, 1);
  const std::string& wanted = need_text(run, "find", *bound[0]);
  const size_t at = from_right ? text.rfind(wanted) : text.find(wanted);
  return at == std::string::npos ? -1 : python::length(std::string_view(text).substr(0, at));
}
template <bool from_right>
Value find(Run& run, const std::string& text, const Args& args) {
  return Value(position<from_right>(run, text, args));
}
template <bool from_right>
Value index(Run& run, const std::string& text, const Args& args) {
  const int64_t at = position<from_right>(run, text, args);
  if (at < 0) run.fail("index: the text does not occur");
  return Value(at);
}

Value count(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "count", args, {"sub"}, 1);
  const std::string& wanted = need_text(run, "count", *bound[0]);
  if (wanted.empty()) return Value(python::length(text) + 1);
  int64_t n = 0;
  for (size_t at = 0; (at = text.find(wanted, at)) != std::string::npos; at += wanted.size()) n++;
  return Value(n);
}

Value join(Run& run, const std::string& between, const Args& args) {
  const auto bound = bind(run, "join", args, {"iterable"}, 1);
  std::string out;
  bool first = true;
  for (const Value& item : run.iterate(*bound[0])) {
    if (!first) out += between;
    first = false;
    out += need_text(run, "join", item);
    run.charge(weight_of(item) + std::ssize(between));
    if (out.size() > static_cast<size_t>(max_value_weight)) run.fail("join makes too long a text");
  }
  return run.text(std::move(out));
}

Value upper(Run& run, const std::string& text, const Args&) { return run.text(python::upper(text)); }
Value lower(Run& run, const std::string& text, const Args&) { return run.text(python::lower(text)); }
Value title(Run& run, const std::string& text, const Args&) { return run.text(python::title(text)); }
Value capitalize(Run& run, const std::string& text, const Args&) { return run.text(python::capitalize(text)); }

template <bool (*is)(uint32_t)>
Value all_are(Run&, const std::string& text, const Args&) {
  const auto all = python::characters(text);
  return Value(!all.empty() && std::all_of(all.begin(), all.end(), is));
}
bool is_alphanumeric(uint32_t c) { return python::is_letter(c) || python::is_digit(c); }

template <bool upper>
Value one_case(Run& run, const std::string& text, const Args&) {
  return Value(apply_test(run, upper ? "upper" : "lower", make_text(text), {}));
}

template <bool left>
Value pad(Run& run, const std::string& text, const Args& args) {
  const auto bound = bind(run, "ljust", args, {"width", "fillchar"}, 1);
  const std::string fill = bound[1] == nullptr ? " " : need_text(run, "ljust", *bound[1]);
  if (python::length(fill) != 1) run.fail("ljust, rjust: the fill is one character");
  const int64_t missing = need_integer(run, "ljust", *bound[0]) - python::length(text);
  if (missing > max_value_weight / 8) run.fail("ljust, rjust: the width is too large");
  std::string filling;
  for (int64_t i = 0; i < missing; i++) filling += fill;
  return run.text(left ? text + filling : filling + text);
}

// "{} {0} {name}".format(...), without format specifications.
Value format(Run& run, const std::string& text, const Args& args) {
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < text.size(); at++) {
    const bool doubled = at + 1 < text.size() && text[at + 1] == text[at];
    if (text[at] != '{' && text[at] != '}') {
      out += text[at];
      continue;
    }
    if (doubled) {
      out += text[at++];
      continue;
    }
    const size_t end = text.find('}', at);
    if (text[at] == '}' || end == std::string::npos) run.fail("format: a single { or }");
    const std::string field = text.substr(at + 1, end - at - 1);
    at = end;
    const auto number = field.empty() ? std::optional<int64_t>(next++) : parse_integer(field);
    const Value* value = nullptr;
    if (number && *number >= 0 && *number < std::ssize(args.positional)) {
      value = &args.positional[static_cast<size_t>(*number)];
    }
    for (const auto& [name, named] : args.named) {
      if (name == field) value = &named;
    }
    if (value == nullptr) run.fail(fmt::format("format: there is no value for {{{}}}", printable(field)));
    run.charge(weight_of(*value));
    out += to_text(*value);
    if (out.size() > static_cast<size_t>(max_value_weight)) run.fail("format makes too long a text");
  }
  return run.text(std::move(out));
}

const std::unordered_map<std::string_view, TextMethod>& of_texts() {
  static const std::unordered_map<std::string_view, TextMethod> known = {{"strip", strip<Side::both>},
                                                                         {"lstrip", strip<Side::left>},
                                                                         {"rstrip", strip<Side::right>},
                                                                         {"split", split<false>},
                                                                         {"rsplit", split<true>},
                                                                         {"splitlines", splitlines},
                                                                         {"partition", partition<false>},
                                                                         {"rpartition", partition<true>},
                                                                         {"startswith", affixed<true>},
                                                                         {"endswith", affixed<false>},
                                                                         {"removeprefix", remove_affix<true>},
                                                                         {"removesuffix", remove_affix<false>},
                                                                         {"replace", replace},
                                                                         {"find", find<false>},
                                                                         {"rfind", find<true>},
                                                                         {"index", index<false>},
                                                                         {"rindex", index<true>},
                                                                         {"count", count},
                                                                         {"join", join},
                                                                         {"upper", upper},
                                                                         {"lower", lower},
                                                                         {"title", title},
                                                                         {"capitalize", capitalize},
                                                                         {"isspace", all_are<python::is_space>},
                                                                         {"isalpha", all_are<python::is_letter>},
                                                                         {"isdigit", all_are<python::is_digit>},
                                                                         {"isalnum", all_are<is_alphanumeric>},
                                                                         {"isupper", one_case<true>},
                                                                         {"islower", one_case<false>},
                                                                         {"ljust", pad<true>},
                                                                         {"rjust", pad<false>},
                                                                         {"format", format}};
  return known;
}

bool names(std::initializer_list<std::string_view> known, std::string_view name) {
  return std::find(known.begin(), known.end(), name) != known.end();
}

// Those that change their value are known, so that they can be refused.
bool dict_method(std::string_view name) {
  return names({"get", "items", "keys", "values", "copy", "pop", "update", "setdefault", "clear", "popitem"}, name);
}
bool list_method(std::string_view name) {
  return names({"index", "count", "copy", "append", "extend", "insert", "pop", "remove", "reverse", "sort", "clear"},
               name);
}

Value call_dict(Run& run, const Value& self, const std::string& name, const Args& args) {
  const Dict& dict = *self.dict();
  run.charge(item_weight * std::ssize(dict.items));
  if (name == "get") {
    const auto bound = bind(run, "get", args, {"key", "default"}, 1);
    const Value* found = dict.find(*bound[0]);
    return found != nullptr ? *found : bound[1] != nullptr ? *bound[1] : Value(None{});
  }
  bind(run, name, args, {});
  if (name == "copy") return self;
  std::vector<Value> out;
  out.reserve(dict.items.size());
  for (const auto& [key, value] : dict.items) {
    out.push_back(name == "keys" ? key : name == "values" ? value : make_list({key, value}, ListKind::tuple));
  }
  return make_list(std::move(out), ListKind::view);
}

Value call_list(Run& run, const Value& self, const std::string& name, const Args& args) {
  if (name == "copy") return make_list(run.iterate(self));
  const auto bound = bind(run, name, args, {"value"}, 1);
  const auto& items = self.list()->items;
  int64_t n = 0;
  for (size_t i = 0; i < items.size(); i++) {
    if (!run.same(items[i], *bound[0])) continue;
    if (name == "index") return Value(static_cast<int64_t>(i));
    n++;
  }
  if (name == "index") run.fail("index: the value is not in the list");
  return Value(n);
}

Value call_loop(Run& run, const Loop& loop, const std::string& name, const Args& args) {
  if (name == "cycle") {
    if (args.positional.empty()) run.fail("loop.cycle needs values to cycle through");
    return args.positional[static_cast<size_t>(loop.index % std::ssize(args.positional))];
  }
  const Value value = make_list(args.positional, ListKind::tuple);
  const bool changed = !loop.changed || !run.same(*loop.changed, value);
  loop.changed = value;
  return Value(changed);
}

}  // namespace
}  // namespace method

bool has_method(const Value& value, std::string_view name) {
  if (value.string()) return method::of_texts().contains(name);
  if (value.dict() != nullptr) return method::dict_method(name);
  return value.list() != nullptr && value.list()->kind == ListKind::list && method::list_method(name);
}

Value call_method(Run& run, const Method& bound, const Args& args) {
  if (const auto* loop = bound.self.get<const Loop*>()) return method::call_loop(run, **loop, bound.name, args);
  const std::string& name = bound.name;
  if (bound.self.string()) {
    run.charge(weight_of(bound.self));
    return method::of_texts().at(name)(run, bound.self.text(), args);
  }
  const bool reads = bound.self.dict() != nullptr ? method::names({"get", "items", "keys", "values", "copy"}, name)
                                                  : method::names({"index", "count", "copy"}, name);
  if (!reads) run.fail(fmt::format("a template may not change a {} (.{})", type_name(bound.self), name));
  return bound.self.dict() != nullptr ? method::call_dict(run, bound.self, name, args)
                                      : method::call_list(run, bound.self, name, args);
}

std::vector<const Value*> bind(const Run& run, const std::string& what, const Args& args,
                               std::initializer_list<const char*> names, size_t needed) {
  std::vector<const Value*> out(names.size(), nullptr);
  if (args.positional.size() > names.size()) {
    run.fail(fmt::format("{} takes at most {} arguments, not {}", what, names.size(), args.positional.size()));
  }
  for (size_t i = 0; i < args.positional.size(); i++) out[i] = &args.positional[i];
  for (const auto& [name, value] : args.named) {
    const auto known = std::find(names.begin(), names.end(), name) - names.begin();
    if (known == std::ssize(names)) run.fail(fmt::format("{} has no argument {}", what, printable(name)));
    if (out[static_cast<size_t>(known)] != nullptr) run.fail(fmt::format("{} gets its argument {} twice", what, name));
    out[static_cast<size_t>(known)] = &value;
  }
  for (size_t i = 0; i < needed; i++) {
    if (out[i] == nullptr) run.fail(fmt::format("{} lacks its argument {}", what, *(names.begin() + i)));
  }
  return out;
}

const std::string& need_text(const Run& run, const std::string& what, const Value& value) {
  if (value.undefined()) run.fail_undefined(value);
  if (!value.string()) run.fail(fmt::format("{} needs a text, not a value of type {}", what, type_name(value)));
  return value.text();
}

int64_t need_integer(const Run& run, const std::string& what, const Value& value) {
  if (value.undefined()) run.fail_undefined(value);
  if (!value.integer()) run.fail(fmt::format("{} needs an integer, not a value of type {}", what, type_name(value)));
  return value.as_integer();
}

std::string percent_format(const Run& run, const std::string& format, const std::vector<Value>& values) {
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < format.size(); at++) {
    if (format[at] != '%') {
      out += format[at];
      continue;
    }
    bool left = false, zeros = false;
    for (at++; at < format.size() && (format[at] == '-' || format[at] == '0'); at++) {
      (format[at] == '-' ? left : zeros) = true;
    }
    size_t width = 0;
    for (; at < format.size() && format[at] >= '0' && format[at] <= '9'; at++) {
      width = std::min<size_t>(4096, width * 10 + static_cast<size_t>(format[at] - '0'));
    }
    const char kind = at < format.size() ? format[at] : '\0';
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (std::string_view("srdi").find(kind) == std::string_view::npos || kind == '\0') {
      run.fail("a format with % knows the conversions %s, %r, %d and %i, with a width");
    }
    if (next >= values.size()) run.fail("a format with % has fewer values than conversions");
    const Value& value = values[next++];
    std::string text;
    if (kind == 's') text = to_text(value);
    if (kind == 'r') text = repr(value);
    if (kind == 'd' || kind == 'i') {
      if (!value.number()) run.fail(fmt::format("%d needs a number, not a value of type {}", type_name(value)));
      if (!value.integer() && !(std::abs(value.as_real()) < 9e18)) run.fail("an integer beyond 64 bits");
      text = std::to_string(value.integer() ? value.as_integer() : static_cast<int64_t>(value.as_real()));
    }
    const auto length = static_cast<size_t>(python::length(text));
    const std::string filling(width > length ? width - length : 0, ' ');
    const bool zero = zeros && !left && (kind == 'd' || kind == 'i');
    if (zero) text.insert(text.starts_with('-') ? 1 : 0, std::string(filling.size(), '0'));
    out += zero ? text : left ? text + filling : filling + text;
    if (out.size() > static_cast<size_t>(max_value_weight)) run.fail("a format makes too long a text");
  }
  if (next < values.size()) run.fail("a format with % has more values than conversions");
  return out;
}

}  // namespace furlong::jinja
