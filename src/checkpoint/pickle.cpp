#include "checkpoint/pickle.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/error.h"

namespace furlong::pickle {
namespace {

// Nodes every graph begins with.
constexpr Ref none_ref = 0, true_ref = 1, false_ref = 2, empty_tuple_ref = 3;

}  // namespace

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::none: return "None";
    case Kind::boolean: return "a bool";
    case Kind::integer: return "an int";
    case Kind::real: return "a float";
    case Kind::string: return "a string";
    case Kind::bytes: return "bytes";
    case Kind::list: return "a list";
    case Kind::tuple: return "a tuple";
    case Kind::dict: return "a dict";
    case Kind::set: return "a set";
    case Kind::global: return "a global";
    case Kind::object: return "an object";
    case Kind::persistent: return "a persistent id";
    case Kind::opaque: return "a huge int";
  }
  return "?";
}

int64_t Graph::integer(Ref r) const {
  CHECK(kind(r) == Kind::integer || kind(r) == Kind::boolean, "{}", name_of(kind(r)));
  return nodes_[r].integer;
}

double Graph::real(Ref r) const {
  CHECK(kind(r) == Kind::real, "{}", name_of(kind(r)));
  return nodes_[r].real;
}

std::string_view Graph::text(Ref r) const {
  CHECK(kind(r) == Kind::string || kind(r) == Kind::bytes, "{}", name_of(kind(r)));
  return {nodes_[r].text, nodes_[r].a};
}

// A global's two names are string nodes.
std::string_view Graph::module(Ref r) const {
  CHECK(kind(r) == Kind::global, "{}", name_of(kind(r)));
  return text(nodes_[r].b[0]);
}

std::string_view Graph::name(Ref r) const {
  CHECK(kind(r) == Kind::global, "{}", name_of(kind(r)));
  return text(nodes_[r].b[1]);
}

std::span<const Ref> Graph::items(Ref r) const {
  const Node& n = nodes_[r];
  if (n.kind == Kind::tuple) return {links_.data() + n.b[0], n.a};
  CHECK(n.kind == Kind::list || n.kind == Kind::dict || n.kind == Kind::set, "{}", name_of(n.kind));
  if (n.a == 0) return {};
  return lists_[n.a - 1];
}

Ref Graph::callable(Ref r) const {
  CHECK(kind(r) == Kind::object, "{}", name_of(kind(r)));
  return links_[nodes_[r].b[0]];
}

Ref Graph::arguments(Ref r) const {
  CHECK(kind(r) == Kind::object, "{}", name_of(kind(r)));
  return links_[nodes_[r].b[0] + 1];
}

Ref Graph::state(Ref r) const {
  CHECK(kind(r) == Kind::object, "{}", name_of(kind(r)));
  return links_[nodes_[r].b[0] + 2];
}

std::span<const Ref> Graph::object_items(Ref r) const {
  CHECK(kind(r) == Kind::object, "{}", name_of(kind(r)));
  if (nodes_[r].a == 0) return {};
  return lists_[nodes_[r].a - 1];
}

Ref Graph::persistent(Ref r) const {
  CHECK(kind(r) == Kind::persistent, "{}", name_of(kind(r)));
  return nodes_[r].b[0];
}

bool Graph::is_global(Ref r, std::string_view module_name, std::string_view own_name) const {
  return kind(r) == Kind::global && module(r) == module_name && name(r) == own_name;
}

const Ref* Graph::find(Ref dict, std::string_view key) const {
  const auto pairs = items(dict);
  const Ref* found = nullptr;
  for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
    if (is_text(pairs[i], key)) found = &pairs[i + 1];
  }
  return found;
}

class Machine {
 public:
  Machine(std::span<const uint8_t> bytes, const std::string& where, const GlobalCheck& check, const Limits& limits)
      : bytes_(bytes), where_(where), check_(check), limits_(limits) {
    if (bytes.size() > limits.bytes) {
      fail(Exit::input, "{}: a pickle of {} bytes; at most {} are read", where, bytes.size(), limits.bytes);
    }
    g_.nodes_.resize(4);
    g_.nodes_[true_ref].kind = g_.nodes_[false_ref].kind = Kind::boolean;
    g_.nodes_[true_ref].integer = 1;
    g_.nodes_[empty_tuple_ref].kind = Kind::tuple;
  }

  Graph run() {
    while (!stopped_) {
      op_at_ = at_;
      const uint8_t code = take(1)[0];
      if (!constant(code) && !container(code) && !memo(code) && !construction(code)) {
        bad("opcode 0x{:02x} is not one that checkpoints use", code);
      }
    }
    if (at_ != bytes_.size()) bad("{} bytes follow its end", bytes_.size() - at_);
    return std::move(g_);
  }

 private:
  template <class... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Exit::input, "{}: the pickle is damaged or hostile: {} (at byte {})", where_,
         fmt::format(format, std::forward<Args>(args)...), op_at_);
  }

  const uint8_t* take(uint64_t n) {
    if (n > bytes_.size() - at_) bad("{} bytes are wanted where {} are left", n, bytes_.size() - at_);
    const uint8_t* p = bytes_.data() + at_;
    at_ += n;
    return p;
  }

  uint64_t number(int bytes) {
    uint64_t value = 0;
    std::memcpy(&value, take(static_cast<uint64_t>(bytes)), static_cast<size_t>(bytes));
    return value;
  }

  Graph::Node& make(Kind kind) {
    if (g_.nodes_.size() >= limits_.nodes) bad("more than {} values", limits_.nodes);
    g_.nodes_.push_back({});
    g_.nodes_.back().kind = kind;
    return g_.nodes_.back();
  }
  Ref last() const { return static_cast<Ref>(g_.nodes_.size() - 1); }

  void push(Ref r) { stack_.push_back(r); }

  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  Ref pop() {
    if (stack_.size() <= floor()) bad("it takes a value from an empty stack");
    const Ref r = stack_.back();
    stack_.pop_back();
    return r;
  }

  Ref top() const {
    if (stack_.size() <= floor()) bad("it needs a value on an empty stack");
    return stack_.back();
  }

  // Removes the topmost mark; what was above it starts at the returned place.
  size_t pop_mark() {
    if (marks_.empty()) bad("it closes a mark that was not set");
    const size_t from = marks_.back();
    marks_.pop_back();
    return from;
  }

  void push_integer(int64_t value) {
    make(Kind::integer).integer = value;
    push(last());
  }

  void push_text(Kind kind, uint64_t length) {
    if (length > limits_.text) bad("a text of {} bytes", length);
    const auto* p = reinterpret_cast<const char*>(take(length));
    Graph::Node& node = make(kind);
    node.a = static_cast<uint32_t>(length);
    node.text = p;
    push(last());
  }

  void push_long(uint64_t length) {
    const uint8_t* p = take(length);
    if (length > 8) {
      make(Kind::opaque);
      return push(last());
    }
    uint64_t value = 0;
    std::memcpy(&value, p, length);
    if (length > 0 && length < 8 && (p[length - 1] & 0x80) != 0) value |= ~uint64_t{0} << (8 * length);
    push_integer(static_cast<int64_t>(value));
  }

  void push_tuple(size_t from) {
    const size_t n = stack_.size() - from;
    if (n == 0) return push(empty_tuple_ref);
    Graph::Node& node = make(Kind::tuple);
    node.a = static_cast<uint32_t>(n);
    node.b[0] = static_cast<uint32_t>(g_.links_.size());
    g_.links_.insert(g_.links_.end(), stack_.begin() + static_cast<std::ptrdiff_t>(from), stack_.end());
    stack_.resize(from);
    push(last());
  }

  bool constant(uint8_t code) {
    switch (code) {
      case 0x80:
        if (const uint64_t protocol = number(1); protocol > 5) bad("protocol {}", protocol);
        return true;
      case 0x95: take(8); return true;
      case 'N': push(none_ref); return true;
      case 0x88: push(true_ref); return true;
      case 0x89: push(false_ref); return true;
      case 'J': push_integer(static_cast<int32_t>(number(4))); return true;
      case 'K': push_integer(static_cast<int64_t>(number(1))); return true;
      case 'M': push_integer(static_cast<int64_t>(number(2))); return true;
      case 0x8a: push_long(number(1)); return true;
      case 0x8b: push_long(signed_length()); return true;
      case 'G': {
        const double value = std::bit_cast<double>(__builtin_bswap64(number(8)));
        make(Kind::real).real = value;
        push(last());
        return true;
      }
      case 0x8c: push_text(Kind::string, number(1)); return true;
      case 'X': push_text(Kind::string, number(4)); return true;
      case 0x8d: push_text(Kind::string, number(8)); return true;
      case 'U':
      case 'C': push_text(Kind::bytes, number(1)); return true;
      case 'B': push_text(Kind::bytes, number(4)); return true;
      case 'T': push_text(Kind::bytes, signed_length()); return true;
      case 0x8e: push_text(Kind::bytes, number(8)); return true;
      default: return false;
    }
  }

  uint64_t signed_length() {
    const auto length = static_cast<int32_t>(number(4));
    if (length < 0) bad("a negative length");
    return static_cast<uint64_t>(length);
  }

  // Moves the stack from `from` on to the children of a container or of an object.
  void append(Ref to, size_t from, bool pairs) {
    const size_t n = stack_.size() - from;
    Graph::Node& node = g_.nodes_[to];
    const bool fits = node.kind == Kind::object || (pairs ? node.kind == Kind::dict : node.kind == Kind::list);
    if (!fits) bad("it adds {} to {}", pairs ? "keys" : "items", name_of(node.kind));
    if (pairs && n % 2 != 0) bad("a key without a value");
    if (n == 0) return;
    if (node.a == 0) {
      g_.lists_.emplace_back();
      node.a = static_cast<uint32_t>(g_.lists_.size());
      g_.lists_.back().reserve(n);
    }
    // An object takes either; one that takes both would mix them up.
    if (node.kind == Kind::object) {
      Ref& taken = g_.links_[node.b[0] + 3];
      const Ref way = pairs ? true_ref : false_ref;
      if (taken != none_ref && taken != way) bad("it adds both keys and items to one object");
      taken = way;
    }
    auto& list = g_.lists_[node.a - 1];
    list.insert(list.end(), stack_.begin() + static_cast<std::ptrdiff_t>(from), stack_.end());
    stack_.resize(from);
  }

  // The container that stands just below the place `from`.
  Ref below(size_t from) const {
    if (from <= floor()) bad("there is nothing to add to");
    return stack_[from - 1];
  }

  void push_filled(Kind kind, size_t from) {
    make(kind);
    const Ref made = last();
    if (kind == Kind::set) {
      g_.nodes_[made].kind = Kind::list;
      append(made, from, false);
      g_.nodes_[made].kind = Kind::set;
    } else {
      append(made, from, kind == Kind::dict);
    }
    push(made);
  }

  bool container(uint8_t code) {
    switch (code) {
      case '(':
        if (marks_.size() >= limits_.depth) bad("more than {} nested marks", limits_.depth);
        marks_.push_back(stack_.size());
        return true;
      case '0': pop(); return true;
      case '1': stack_.resize(pop_mark()); return true;
      case '2': push(top()); return true;
      case ')': push(empty_tuple_ref); return true;
      case '}': make(Kind::dict), push(last()); return true;
      case ']': make(Kind::list), push(last()); return true;
      case 0x8f: make(Kind::set), push(last()); return true;
      case 0x85:
      case 0x86:
      case 0x87: {
        const size_t n = code - 0x84u;
        if (stack_.size() < floor() + n) bad("a tuple of more values than there are");
        push_tuple(stack_.size() - n);
        return true;
      }
      case 't': push_tuple(pop_mark()); return true;
      case 'l': push_filled(Kind::list, pop_mark()); return true;
      case 'd': push_filled(Kind::dict, pop_mark()); return true;
      case 0x91: push_filled(Kind::set, pop_mark()); return true;
      case 'a': add_counted(1, false); return true;
      case 's': add_counted(2, true); return true;
      case 'e': add_marked(false); return true;
      case 'u': add_marked(true); return true;
      case 0x90: {
        const size_t from = pop_mark();
        const Ref to = below(from);
        if (g_.nodes_[to].kind != Kind::set) bad("it adds members to {}", name_of(g_.nodes_[to].kind));
        g_.nodes_[to].kind = Kind::list;
        append(to, from, false);
        g_.nodes_[to].kind = Kind::set;
        return true;
      }
      default: return false;
    }
  }

  void add_counted(size_t n, bool pairs) {
    if (stack_.size() < floor() + n) bad("it adds more values than there are");
    const size_t from = stack_.size() - n;
    append(below(from), from, pairs);
  }

  void add_marked(bool pairs) {
    const size_t from = pop_mark();
    append(below(from), from, pairs);
  }

  void put(uint64_t index) {
    // Writers count up from 0 and spend bytes on every place, so that a larger index is no writer's.
    if (index >= bytes_.size() || index >= limits_.nodes) bad("memo place {}", index);
    if (index >= memo_.size()) memo_.resize(index + 1, absent);
    if (memo_[index] == absent) memoized_++;
    memo_[index] = top();
  }

  void get(uint64_t index) {
    if (index >= memo_.size() || memo_[index] == absent) bad("memo place {} is empty", index);
    push(memo_[index]);
  }

  bool memo(uint8_t code) {
    switch (code) {
      case 'q': put(number(1)); return true;
      case 'r': put(number(4)); return true;
      case 0x94: put(memoized_); return true;
      case 'h': get(number(1)); return true;
      case 'j': get(number(4)); return true;
      default: return false;
    }
  }

  Ref line() {
    const size_t begin = at_;
    while (at_ < bytes_.size() && bytes_[at_] != '\n') at_++;
    if (at_ == bytes_.size() || at_ - begin > limits_.text) bad("a name without an end");
    Graph::Node& node = make(Kind::string);
    node.a = static_cast<uint32_t>(at_ - begin);
    node.text = reinterpret_cast<const char*>(bytes_.data()) + begin;
    at_++;
    return last();
  }

  void push_global(Ref module, Ref name) {
    if (g_.kind(module) != Kind::string || g_.kind(name) != Kind::string) bad("a global's name is no text");
    if (check_) check_(g_.text(module), g_.text(name));
    Graph::Node& node = make(Kind::global);
    node.b[0] = module;
    node.b[1] = name;
    push(last());
  }

  void push_object(Ref callable, Ref arguments) {
    const Kind kind = g_.kind(callable);
    if (kind != Kind::global && kind != Kind::object) bad("{} is called", name_of(kind));
    if (g_.kind(arguments) != Kind::tuple) bad("arguments are {}, not a tuple", name_of(g_.kind(arguments)));
    Graph::Node& node = make(Kind::object);
    node.b[0] = static_cast<uint32_t>(g_.links_.size());
    g_.links_.insert(g_.links_.end(), {callable, arguments, none_ref, none_ref});
    push(last());
  }

  bool construction(uint8_t code) {
    switch (code) {
      case 'c': {
        const Ref module = line(), name = line();
        push_global(module, name);
        return true;
      }
      case 0x93: {
        const Ref name = pop(), module = pop();
        push_global(module, name);
        return true;
      }
      case 'R':
      case 0x81: {
        const Ref arguments = pop(), callable = pop();
        push_object(callable, arguments);
        return true;
      }
      case 0x92: {
        const Ref named = pop(), arguments = pop(), callable = pop();
        if (g_.kind(named) != Kind::dict) bad("named arguments are {}", name_of(g_.kind(named)));
        push_object(callable, arguments);
        return true;
      }
      case 'b': {
        const Ref state = pop(), object = top();
        if (g_.kind(object) != Kind::object) bad("it gives a state to {}", name_of(g_.kind(object)));
        Ref& slot = g_.links_[g_.nodes_[object].b[0] + 2];
        if (slot != none_ref) bad("an object is given two states");
        slot = state;
        return true;
      }
      case 'Q': {
        const Ref id = pop();
        make(Kind::persistent).b[0] = id;
        push(last());
        return true;
      }
      case '.':
        g_.root_ = pop();
        if (!stack_.empty() || !marks_.empty()) bad("it ends with {} values left over", stack_.size() + marks_.size());
        stopped_ = true;
        return true;
      default: return false;
    }
  }

  static constexpr Ref absent = UINT32_MAX;

  std::span<const uint8_t> bytes_;
  const std::string& where_;
  const GlobalCheck& check_;
  const Limits& limits_;
  Graph g_;
  std::vector<Ref> stack_, memo_;
  std::vector<size_t> marks_;
  uint64_t memoized_ = 0;  // places in use, and MEMOIZE's next one
  size_t at_ = 0, op_at_ = 0;
  bool stopped_ = false;
};

Graph parse(std::span<const uint8_t> bytes, const std::string& where, const GlobalCheck& check_global,
            const Limits& limits) {
  return Machine(bytes, where, check_global, limits).run();
}

}  // namespace furlong::pickle
