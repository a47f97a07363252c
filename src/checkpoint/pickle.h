// A symbolic reader of Python pickles: it builds the graph that the bytes describe and never calls, imports or makes
// anything. What a REDUCE or NEWOBJ would call is only remembered. Opcodes: Python's Lib/pickletools.py, protocols 2-5.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace furlong::pickle {

enum class Kind : uint8_t {
  none,
  boolean,
  integer,
  real,
  string,
  bytes,
  list,
  tuple,
  dict,
  set,
  global,      // a name "module name", not what it names
  object,      // callable + arguments + state, never called
  persistent,  // a reference that the file's container resolves
  opaque       // an integer of more than 64 bits
};
const char* name_of(Kind kind);

using Ref = uint32_t;  // a value of the graph; the graph may have cycles

class Graph {
 public:
  Ref root() const { return root_; }
  size_t size() const { return nodes_.size(); }
  Kind kind(Ref r) const { return nodes_[r].kind; }
  int64_t integer(Ref r) const;  // integer and boolean
  double real(Ref r) const;
  std::string_view text(Ref r) const;       // string, bytes; points into the input
  std::string_view module(Ref r) const;     // global
  std::string_view name(Ref r) const;       // global
  std::span<const Ref> items(Ref r) const;  // list, tuple, set; dict: key, value, key, value ...
  // object
  Ref callable(Ref r) const;
  Ref arguments(Ref r) const;                      // a tuple
  Ref state(Ref r) const;                          // what BUILD gave, or the none value
  std::span<const Ref> object_items(Ref r) const;  // set by SETITEMS (key, value ...) or APPENDS
  Ref persistent(Ref r) const;

  bool is_text(Ref r, std::string_view expected) const { return kind(r) == Kind::string && text(r) == expected; }
  bool is_global(Ref r, std::string_view module, std::string_view name) const;
  // The value of a string key in a dict, null if absent; the last one counts, as in Python.
  const Ref* find(Ref dict, std::string_view key) const;

 private:
  friend class Machine;
  struct Node {
    Kind kind = Kind::none;
    uint32_t a = 0;  // length, or where in links_ or lists_
    union {
      int64_t integer = 0;
      double real;
      const char* text;
      uint32_t b[2];
    };
  };
  std::vector<Node> nodes_;
  std::vector<Ref> links_;               // children that never change: tuples, and four of each object
  std::vector<std::vector<Ref>> lists_;  // children that may grow
  Ref root_ = 0;
};

struct Limits {
  size_t bytes = size_t{256} << 20;
  size_t nodes = 16'000'000;  // values, and places in the memo
  size_t depth = 200;         // open MARKs
  size_t text = size_t{16} << 20;
};

// Called for every global the pickle names; throws to refuse it.
using GlobalCheck = std::function<void(std::string_view module, std::string_view name)>;

// Parses one pickle that fills `bytes` exactly. The graph points into `bytes`. Memory: at most about 64 bytes for each
// byte of input. Throws Error(Exit::input) with the place for anything malformed, beyond the limits, or outside the
// opcodes that Python's default protocols write (no text forms, INST, OBJ, EXT, persistent text ids, out-of-band
// buffers).
Graph parse(std::span<const uint8_t> bytes, const std::string& where, const GlobalCheck& check_global = nullptr,
            const Limits& limits = {});

// Writes pickles opcode by opcode. Strings and globals written before are fetched from the memo.
class Writer {
 public:
  explicit Writer(int protocol);  // 2 or 4
  void none() { out_ += 'N'; }
  void boolean(bool value) { out_ += value ? '\x88' : '\x89'; }
  void integer(int64_t value);
  void real(double value);
  void text(const std::string& value);
  void global(const std::string& module, const std::string& name);
  void op(char opcode) { out_ += opcode; }
  void tuple(std::span<const int64_t> values);
  // torch.Size of these extents.
  void size(std::span<const int64_t> extents);
  // The bytes, ended by STOP.
  std::string finish();

  static constexpr char mark = '(', close_tuple = 't', empty_tuple = ')', empty_dict = '}', empty_list = ']',
                        set_items = 'u', append_all = 'e', build = 'b', reduce = 'R', new_object = '\x81',
                        tuple1 = '\x85', persistent_id = 'Q';

 private:
  bool fetched(const std::string& what);
  void remember(const std::string& what);
  void raw(uint64_t value, int bytes);
  void plain_text(const std::string& value);

  int protocol_;
  std::string out_;
  std::unordered_map<std::string, uint32_t> memo_;
};

}  // namespace furlong::pickle
