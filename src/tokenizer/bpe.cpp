#include "tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "base/check.h"

namespace furlong {
namespace {

constexpr uint64_t no_key = ~uint64_t{0};

uint64_t key_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

MergeTable::MergeTable(size_t capacity)
    : slots_(std::bit_ceil(std::max<size_t>(2 * capacity, 2)), Slot{no_key, {0, 0}}) {}

// Where `key` is, or the empty slot where it would go.
size_t MergeTable::slot_of(uint64_t key) const {
  const uint64_t mixed = key * 0x9E3779B97F4A7C15ull;
  size_t i = (mixed ^ mixed >> 29) & (slots_.size() - 1);
  while (slots_[i].key != key && slots_[i].key != no_key) i = (i + 1) & (slots_.size() - 1);
  return i;
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  const uint64_t key = key_of(left, right);
  slots_[slot_of(key)] = {key, merge};
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  const Slot& slot = slots_[slot_of(key_of(left, right))];
  return slot.key == no_key ? nullptr : &slot.merge;
}

void encode_piece(const MergeTable& merges, const std::array<int32_t, 256>& byte_ids, std::string_view piece,
                  BpeScratch& scratch, std::vector<int32_t>& ids) {
  CHECK(piece.size() < (size_t{1} << 31));
  const auto n = static_cast<int32_t>(piece.size());
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  symbols.resize(piece.size());
  heap.clear();
  const auto merge_at = [&](int32_t i) -> const MergeTable::Merge* {
    const auto& symbol = symbols[static_cast<size_t>(i)];
    return symbol.id < 0 || symbol.next < 0 ? nullptr
                                            : merges.find(symbol.id, symbols[static_cast<size_t>(symbol.next)].id);
  };
  const auto entry = [](int32_t rank, int32_t i) {
    return static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(i);
  };
  for (int32_t i = 0; i < n; i++) {
    const auto byte = static_cast<unsigned char>(piece[static_cast<size_t>(i)]);
    symbols[static_cast<size_t>(i)] = {byte_ids[byte], i - 1, i + 1 < n ? i + 1 : -1};
  }
  for (int32_t i = 0; i < n; i++) {
    if (const auto* merge = merge_at(i)) heap.push_back(entry(merge->rank, i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto push = [&](int32_t i) {
    if (const auto* merge = merge_at(i)) {
      heap.push_back(entry(merge->rank, i));
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto i = static_cast<int32_t>(heap.back() & 0xFFFFFFFFu);
    const auto rank = static_cast<int32_t>(heap.back() >> 32);
    heap.pop_back();
    const auto* merge = merge_at(i);
    if (merge == nullptr || merge->rank != rank) continue;  // one of the two has been joined elsewhere since
    auto& left = symbols[static_cast<size_t>(i)];
    auto& right = symbols[static_cast<size_t>(left.next)];
    left.id = merge->id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = i;
    if (left.previous >= 0) push(left.previous);
    push(i);
  }
  for (int32_t i = n > 0 ? 0 : -1; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    ids.push_back(symbols[static_cast<size_t>(i)].id);
  }
}

}  // namespace furlong
