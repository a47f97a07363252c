// Byte-pair encoding of one piece of text, given as bytes.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace furlong {

// (left id, right id) -> the merge's rank (its line, lower first) and the id of the joined token.
class MergeTable {
 public:
  struct Merge {
    int32_t rank, id;
  };
  explicit MergeTable(size_t capacity = 0);
  // The last line naming a pair counts. No more pairs than the capacity.
  void insert(int32_t left, int32_t right, Merge merge);
  const Merge* find(int32_t left, int32_t right) const;

 private:
  size_t slot_of(uint64_t key) const;
  struct Slot {
    uint64_t key;
    Merge merge;
  };
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

// Working memory of encode_piece, reused from piece to piece.
struct BpeScratch {
  struct Symbol {
    int32_t id, previous, next;  // neighbours by index, -1 at the ends; id -1: joined into its left neighbour
  };
  std::vector<Symbol> symbols;
  std::vector<uint64_t> heap;  // rank << 32 | index of the left symbol
};

// Appends the ids of `piece`: beginning with one token per byte, the pair of lowest rank (the leftmost of equals) is
// joined until none is left. O(n log n) in the piece's length, which must be below 2^31.
void encode_piece(const MergeTable& merges, const std::array<int32_t, 256>& byte_ids, std::string_view piece,
                  BpeScratch& scratch, std::vector<int32_t>& ids);

}  // namespace furlong
