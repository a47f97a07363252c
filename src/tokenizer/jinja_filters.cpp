#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "base/error.h"
#include "base/text.h"
#include "tokenizer/jinja_run.h"
#include "tokenizer/python_text.h"

namespace furlong::jinja {
namespace filter {  // apart from methods of the same names
namespace {

using Filter = Value (*)(Run&, const Value& input, const Args& args);
constexpr const char* nameless = "a filter";

// The input as a text, as filters of texts take it.
std::string text_of(Run& run, const Value& value) {
  run.charge(weight_of(value));
  return to_text(value);
}

bool flag(const Value* value, bool otherwise) { return value == nullptr ? otherwise : truth(*value); }

Value lowered(const Value& value, bool case_sensitive) {
  return !case_sensitive && value.string() ? make_text(python::lower(value.text())) : value;
}

Value length(Run& run, const Value& value, const Args&) {
  if (value.undefined()) return Value(int64_t{0});
  if (value.string()) {
    run.charge(weight_of(value));
    return Value(python::length(value.text()));
  }
  if (value.dict() != nullptr) return Value(int64_t{std::ssize(value.dict()->items)});
  if (const auto* loop = value.get<const Loop*>()) return Value(int64_t{std::ssize(*(*loop)->items)});
  if (value.list() == nullptr || value.list()->kind == ListKind::generator) {
    run.fail(fmt::format("a value of type {} has no length", type_name(value)));
  }
  return Value(int64_t{std::ssize(value.list()->items)});
}

Value default_of(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "default", args, {"default_value", "boolean"});
  const bool absent = value.undefined() || (flag(bound[1], false) && !truth(value));
  return !absent ? value : bound[0] == nullptr ? make_text("") : *bound[0];
}

Value trim(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "trim", args, {"chars"});
  const std::string text = text_of(run, value);
  if (bound[0] == nullptr || bound[0]->none()) return run.text(std::string(python::strip(text, python::Side::both)));
  return run.text(std::string(python::strip(text, python::Side::both, need_text(run, "trim", *bound[0]))));
}

Value tojson(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style{.ascii = flag(bound[0], false), .sort_keys = flag(bound[3], false)};
  if (bound[1] != nullptr && !bound[1]->none()) {
    style.indent = std::clamp<int64_t>(need_integer(run, "tojson", *bound[1]), 0, 32);
    style.item_separator = ",";
  }
  if (bound[2] != nullptr && !bound[2]->none()) {
    const auto parts = run.iterate(*bound[2]);
    if (parts.size() != 2) run.fail("tojson: separators are two texts");
    style.item_separator = need_text(run, "tojson", parts[0]);
    style.key_separator = need_text(run, "tojson", parts[1]);
  }
  const int64_t widest = 4 + std::ssize(style.item_separator) + std::ssize(style.key_separator) +
                         (style.indent > 0 ? style.indent * max_value_depth / 8 : 0);
  run.charge(weight_of(value) * widest);
  return run.text(to_json(value, style));
}

Value join(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "join", args, {"d", "attribute"});
  const std::string between = bound[0] == nullptr ? "" : to_text(*bound[0]);
  std::string out;
  bool first = true;
  for (const Value& item : run.iterate(value)) {
    if (!first) out += between;
    first = false;
    out += text_of(run, bound[1] == nullptr || bound[1]->none() ? item : run.path(item, *bound[1]));
    run.charge(std::ssize(between));
    if (out.size() > static_cast<size_t>(max_value_weight)) run.fail("join makes too long a text");
  }
  return run.text(std::move(out));
}

Value items(Run& run, const Value& value, const Args&) {
  std::vector<Value> out;
  if (value.undefined()) return make_list({}, ListKind::generator);
  if (value.dict() == nullptr) run.fail(fmt::format("items needs a dict, not a value of type {}", type_name(value)));
  run.charge(item_weight * std::ssize(value.dict()->items));
  out.reserve(value.dict()->items.size());
  for (const auto& [key, item] : value.dict()->items) out.push_back(make_list({key, item}, ListKind::tuple));
  return make_list(std::move(out), ListKind::generator);
}

Value list(Run& run, const Value& value, const Args&) { return make_list(run.iterate(value)); }
Value string(Run& run, const Value& value, const Args&) { return run.text(text_of(run, value)); }
Value same_value(Run&, const Value& value, const Args&) { return value; }

Value first(Run& run, const Value& value, const Args&) {
  if (value.string())
    return value.text().empty() ? make_undefined("the text is empty") : run.item(value, Value(int64_t{0}));
  const auto all = run.iterate(value);
  return all.empty() ? make_undefined("there is no first item: the list is empty") : all.front();
}

Value last(Run& run, const Value& value, const Args&) {
  if (value.string())
    return value.text().empty() ? make_undefined("the text is empty") : run.item(value, Value(int64_t{-1}));
  const auto all = run.iterate(value);
  return all.empty() ? make_undefined("there is no last item: the list is empty") : all.back();
}

Value upper(Run& run, const Value& value, const Args&) { return run.text(python::upper(text_of(run, value))); }
Value lower(Run& run, const Value& value, const Args&) { return run.text(python::lower(text_of(run, value))); }
Value capitalize(Run& run, const Value& v, const Args&) { return run.text(python::capitalize(text_of(run, v))); }

// Unlike str.title, words begin after white space, hyphens and opening brackets alone.
Value title(Run& run, const Value& value, const Args&) {
  std::string out, word;
  const auto flush = [&] {
    out += python::capitalize(word);
    word.clear();
  };
  for (const uint32_t c : python::characters(text_of(run, value))) {
    const bool between = python::is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    if (between) flush();
    python::append_character(between ? out : word, c);
  }
  flush();
  return run.text(std::move(out));
}

Value replace(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "replace", args, {"old", "new", "count"}, 2);
  const std::string text = text_of(run, value), from = to_text(*bound[0]), to = to_text(*bound[1]);
  const bool limited = bound[2] != nullptr && !bound[2]->none();
  run.charge((std::ssize(text) + 1) * (1 + std::ssize(to)) / std::max<int64_t>(1, std::ssize(from)));
  return run.text(python::replace(text, from, to, limited ? need_integer(run, "replace", *bound[2]) : -1));
}

Value indent(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "indent", args, {"width", "first", "blank"});
  std::string by = "    ";
  if (bound[0] != nullptr && bound[0]->string()) by = bound[0]->text();
  if (bound[0] != nullptr && bound[0]->integer()) {
    by = std::string(static_cast<size_t>(std::clamp<int64_t>(bound[0]->as_integer(), 0, 4096)), ' ');
  }
  const std::string text = text_of(run, value) + "\n";
  run.charge(std::count(text.begin(), text.end(), '\n') * std::ssize(by));
  std::string out;
  for (const std::string_view line : python::lines(text, false)) {
    const bool opens = out.empty() && line.data() == text.data();
    if (!opens) out += "\n";
    if (opens ? flag(bound[1], false) : flag(bound[2], false) || !line.empty()) out += by;
    out += line;
  }
  return run.text(std::move(out));
}

Value reverse(Run& run, const Value& value, const Args&) {
  if (value.string()) {
    run.charge(weight_of(value));
    return run.text(python::pick(value.text(), python::length(value.text()) - 1, -1, python::length(value.text())));
  }
  auto all = run.iterate(value);
  std::reverse(all.begin(), all.end());
  return make_list(std::move(all), ListKind::generator);
}

// What a filter compares of an item: itself or an attribute, texts in lower case unless case counts.
Value key_of(Run& run, const Value& item, const Value* attribute, bool case_sensitive) {
  return lowered(attribute == nullptr || attribute->none() ? item : run.path(item, *attribute), case_sensitive);
}

std::vector<Value> sorted(Run& run, const std::vector<Value>& all, bool reversed,
                          const std::function<Value(const Value&)>& key) {
  std::vector<std::pair<Value, size_t>> keys;
  keys.reserve(all.size());
  for (size_t i = 0; i < all.size(); i++) keys.emplace_back(key(all[i]), i);
  std::stable_sort(keys.begin(), keys.end(), [&](const auto& a, const auto& b) {
    if (run.same(a.first, b.first)) return false;
    return reversed ? compare(b.first, a.first) < 0 : compare(a.first, b.first) < 0;
  });
  std::vector<Value> out;
  out.reserve(all.size());
  for (const auto& [unused, i] : keys) out.push_back(all[i]);
  return out;
}

Value sort(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "sort", args, {"reverse", "case_sensitive", "attribute"});
  const bool cased = flag(bound[1], false);
  return make_list(sorted(run, run.iterate(value), flag(bound[0], false),
                          [&](const Value& item) { return key_of(run, item, bound[2], cased); }));
}

Value dictsort(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "dictsort", args, {"case_sensitive", "by", "reverse"});
  const bool cased = flag(bound[0], false);
  const std::string by = bound[1] == nullptr ? "key" : to_text(*bound[1]);
  if (by != "key" && by != "value") run.fail("dictsort: by is \"key\" or \"value\"");
  const Value position(int64_t{by == "key" ? 0 : 1});
  return make_list(sorted(run, run.iterate(items(run, value, {})), flag(bound[2], false),
                          [&](const Value& item) { return key_of(run, item, &position, cased); }));
}

Value unique(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "unique", args, {"case_sensitive", "attribute"});
  std::vector<Value> out, seen;
  for (const Value& item : run.iterate(value)) {
    Value key = key_of(run, item, bound[1], flag(bound[0], false));
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& other) { return run.same(other, key); })) continue;
    seen.push_back(std::move(key));
    out.push_back(item);
  }
  return make_list(std::move(out), ListKind::generator);
}

Value extreme(Run& run, const Value& value, const Args& args, bool largest) {
  const auto bound = bind(run, largest ? "max" : "min", args, {"case_sensitive", "attribute"});
  const auto all = sorted(run, run.iterate(value), largest,
                          [&](const Value& item) { return key_of(run, item, bound[1], flag(bound[0], false)); });
  return all.empty() ? make_undefined("there is no item: the list is empty") : all.front();
}
Value min(Run& run, const Value& value, const Args& args) { return extreme(run, value, args, false); }
Value max(Run& run, const Value& value, const Args& args) { return extreme(run, value, args, true); }

Value sum(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "sum", args, {"attribute", "start"});
  Value total = bound[1] == nullptr ? Value(int64_t{0}) : *bound[1];
  for (const Value& item : run.iterate(value)) {
    const Value part = bound[0] == nullptr || bound[0]->none() ? item : run.path(item, *bound[0]);
    if (!total.number() || !part.number()) run.fail("sum adds numbers alone");
    int64_t whole = 0;
    if (total.integer() && part.integer()) {
      if (__builtin_add_overflow(total.as_integer(), part.as_integer(), &whole)) run.fail("an integer beyond 64 bits");
      total = Value(whole);
    } else {
      total = Value(total.as_real() + part.as_real());
    }
  }
  return total;
}

Value map(Run& run, const Value& value, const Args& args) {
  std::vector<Value> out;
  if (args.positional.empty()) {
    const auto bound = bind(run, "map", args, {"attribute", "default"}, 1);
    const auto all = run.iterate(value);
    out.reserve(all.size());
    for (const Value& item : all) {
      Value part = run.path(item, *bound[0]);
      out.push_back(part.undefined() && bound[1] != nullptr ? *bound[1] : std::move(part));
    }
    return make_list(std::move(out), ListKind::generator);
  }
  const std::string name = need_text(run, "map", args.positional[0]);
  Args rest = args;
  rest.positional.erase(rest.positional.begin());
  const auto all = run.iterate(value);
  out.reserve(all.size());
  for (const Value& item : all) out.push_back(apply_filter(run, name, item, rest));
  return make_list(std::move(out), ListKind::generator);
}

// Items for which a test holds, or does not: of an attribute of theirs (the first argument) or of themselves; without
// a test, truth.
Value choose(Run& run, const Value& value, const Args& args, bool of_attribute, bool wanted) {
  Args rest = args;
  const auto take = [&] {
    Value taken = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
    return taken;
  };
  if (of_attribute && rest.positional.empty()) run.fail("an attribute's name is missing");
  const Value attribute = of_attribute ? take() : Value(None{});
  const bool tested = !rest.positional.empty();
  const std::string test = tested ? need_text(run, nameless, take()) : "";
  const auto all = run.iterate(value);
  std::vector<Value> out;
  out.reserve(all.size());
  for (const Value& item : all) {
    const Value subject = of_attribute ? run.path(item, attribute) : item;
    if ((tested ? apply_test(run, test, subject, rest) : truth(subject)) == wanted) out.push_back(item);
  }
  return make_list(std::move(out), ListKind::generator);
}
Value select(Run& run, const Value& value, const Args& args) { return choose(run, value, args, false, true); }
Value reject(Run& run, const Value& value, const Args& args) { return choose(run, value, args, false, false); }
Value selectattr(Run& run, const Value& value, const Args& args) { return choose(run, value, args, true, true); }
Value rejectattr(Run& run, const Value& value, const Args& args) { return choose(run, value, args, true, false); }

Value to_integer(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "int", args, {"default", "base"});
  const Value otherwise = bound[0] == nullptr ? Value(int64_t{0}) : *bound[0];
  if (value.integer()) return Value(value.as_integer());
  double real = 0;
  if (value.string()) {
    const std::string_view text = python::strip(value.text(), python::Side::both);
    const auto base = bound[1] == nullptr ? 10 : std::clamp<int64_t>(need_integer(run, "int", *bound[1]), 2, 36);
    const std::string_view digits = text.starts_with('+') ? text.substr(1) : text;
    int64_t number = 0;
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), number, static_cast<int>(base));
    if (!digits.empty() && read.ec == std::errc() && read.ptr == digits.data() + digits.size()) return Value(number);
    const auto parsed = parse_real(text);
    if (!parsed) return otherwise;
    real = *parsed;
  } else if (value.number()) {
    real = value.as_real();
  } else {
    return otherwise;
  }
  return std::abs(real) < 9e18 ? Value(static_cast<int64_t>(real)) : otherwise;
}

Value to_real(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "float", args, {"default"});
  if (value.number()) return Value(value.as_real());
  if (value.string()) {
    if (const auto parsed = parse_real(python::strip(value.text(), python::Side::both))) return Value(*parsed);
  }
  return bound[0] == nullptr ? Value(0.0) : *bound[0];
}

Value absolute(Run& run, const Value& value, const Args&) {
  if (!value.number()) run.fail(fmt::format("abs needs a number, not a value of type {}", type_name(value)));
  if (!value.integer()) return Value(std::abs(value.as_real()));
  if (value.as_integer() == INT64_MIN) run.fail("an integer beyond 64 bits");
  return Value(std::abs(value.as_integer()));
}

Value round_to(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "round", args, {"precision", "method"});
  if (!value.number()) run.fail(fmt::format("round needs a number, not a value of type {}", type_name(value)));
  const auto digits = bound[0] == nullptr ? 0 : std::clamp<int64_t>(need_integer(run, "round", *bound[0]), 0, 300);
  const std::string method = bound[1] == nullptr ? "common" : to_text(*bound[1]);
  const double scale = std::pow(10.0, static_cast<double>(digits)), number = value.as_real();
  if (method == "ceil") return Value(std::ceil(number * scale) / scale);
  if (method == "floor") return Value(std::floor(number * scale) / scale);
  if (method != "common") run.fail("round: the method is common, ceil or floor");
  if (value.integer()) return value;
  return Value(*parse_real(fmt::format("{:.{}f}", number, digits)));  // half to even, of the decimal it is
}

Value attr(Run& run, const Value& value, const Args& args) {
  const auto bound = bind(run, "attr", args, {"name"}, 1);
  const std::string& name = need_text(run, "attr", *bound[0]);
  if (value.dict() != nullptr && !has_method(value, name))
    return make_undefined(fmt::format("a dict has no attribute `{}`", name));
  return run.attribute(value, name);
}

Value format(Run& run, const Value& value, const Args& args) {
  if (!args.named.empty()) run.fail("format takes values in order alone");
  for (const Value& arg : args.positional) run.charge(weight_of(arg));
  return run.text(percent_format(run, text_of(run, value), args.positional));
}

Value wordcount(Run& run, const Value& value, const Args&) {
  int64_t words = 0;
  bool inside = false;
  for (const uint32_t c : python::characters(text_of(run, value))) {
    const bool part = python::is_letter(c) || python::is_digit(c) || c == '_';
    words += part && !inside ? 1 : 0;
    inside = part;
  }
  return Value(words);
}

const std::unordered_map<std::string_view, Filter>& table() {
  static const std::unordered_map<std::string_view, Filter> known = {{"abs", absolute},
                                                                     {"attr", attr},
                                                                     {"capitalize", capitalize},
                                                                     {"count", length},
                                                                     {"d", default_of},
                                                                     {"default", default_of},
                                                                     {"dictsort", dictsort},
                                                                     {"first", first},
                                                                     {"float", to_real},
                                                                     {"format", format},
                                                                     {"indent", indent},
                                                                     {"int", to_integer},
                                                                     {"items", items},
                                                                     {"join", join},
                                                                     {"last", last},
                                                                     {"length", length},
                                                                     {"list", list},
                                                                     {"lower", lower},
                                                                     {"map", map},
                                                                     {"max", max},
                                                                     {"min", min},
                                                                     {"reject", reject},
                                                                     {"rejectattr", rejectattr},
                                                                     {"replace", replace},
                                                                     {"reverse", reverse},
                                                                     {"round", round_to},
                                                                     {"safe", same_value},
                                                                     {"select", select},
                                                                     {"selectattr", selectattr},
                                                                     {"sort", sort},
                                                                     {"string", string},
                                                                     {"sum", sum},
                                                                     {"title", title},
                                                                     {"tojson", tojson},
                                                                     {"trim", trim},
                                                                     {"unique", unique},
                                                                     {"upper", upper},
                                                                     {"wordcount", wordcount}};
  return known;
}

}  // namespace
}  // namespace filter

Value apply_filter(Run& run, const std::string& name, const Value& input, const Args& args) {
  const auto found = filter::table().find(name);
  if (found == filter::table().end()) run.fail(fmt::format("there is no filter `{}` here", printable(name)));
  run.charge(0);
  return found->second(run, input, args);
}

}  // namespace furlong::jinja
