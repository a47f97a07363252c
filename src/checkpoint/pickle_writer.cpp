#include <bit>
#include <limits>

#include "base/check.h"
#include "checkpoint/pickle.h"

namespace furlong::pickle {

Writer::Writer(int protocol) : protocol_(protocol) {
  CHECK(protocol == 2 || protocol == 4, "protocol {}", protocol);
  out_ = {'\x80', static_cast<char>(protocol)};
}

void Writer::raw(uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) out_ += static_cast<char>(value >> (8 * i));
}

void Writer::integer(int64_t value) {
  if (value >= 0 && value < 256) {
    out_ += 'K';
    raw(static_cast<uint64_t>(value), 1);
  } else if (value >= 0 && value < 65536) {
    out_ += 'M';
    raw(static_cast<uint64_t>(value), 2);
  } else if (value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max()) {
    out_ += 'J';
    raw(static_cast<uint64_t>(value), 4);
  } else {
    out_ += '\x8a';
    raw(8, 1);
    raw(static_cast<uint64_t>(value), 8);
  }
}

void Writer::real(double value) {
  out_ += 'G';
  raw(__builtin_bswap64(std::bit_cast<uint64_t>(value)), 8);
}

bool Writer::fetched(const std::string& what) {
  const auto it = memo_.find(what);
  if (it == memo_.end()) return false;
  out_ += it->second < 256 ? 'h' : 'j';
  raw(it->second, it->second < 256 ? 1 : 4);
  return true;
}

void Writer::remember(const std::string& what) {
  const auto index = static_cast<uint32_t>(memo_.size());
  memo_[what] = index;
  if (protocol_ == 4) {
    out_ += '\x94';
  } else {
    out_ += index < 256 ? 'q' : 'r';
    raw(index, index < 256 ? 1 : 4);
  }
}

void Writer::plain_text(const std::string& value) {
  const bool is_short = protocol_ == 4 && value.size() < 256;
  out_ += is_short ? '\x8c' : 'X';
  raw(value.size(), is_short ? 1 : 4);
  out_ += value;
}

void Writer::text(const std::string& value) {
  if (fetched(value)) return;
  plain_text(value);
  remember(value);
}

void Writer::global(const std::string& module, const std::string& name) {
  // No text has a newline first, so that the two never share a place.
  const std::string key = "\n" + module + "\n" + name;
  if (fetched(key)) return;
  if (protocol_ == 4) {
    text(module);
    text(name);
    out_ += '\x93';
  } else {
    out_ += "c" + module + "\n" + name + "\n";
  }
  remember(key);
}

void Writer::tuple(std::span<const int64_t> values) {
  if (values.empty()) return op(empty_tuple);
  if (values.size() > 3) op(mark);
  for (const int64_t v : values) integer(v);
  op(values.size() > 3 ? close_tuple : static_cast<char>('\x84' + static_cast<char>(values.size())));
}

void Writer::size(std::span<const int64_t> extents) {
  global("torch", "Size");
  tuple(extents);
  op(tuple1);
  op(reduce);
}

std::string Writer::finish() {
  op('.');
  memo_.clear();
  return std::move(out_);
}

}  // namespace furlong::pickle
