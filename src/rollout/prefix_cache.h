// Beginnings of sequences that others may start from: the pages of their rows, shared by reference count, and a slot
// with the recurrent state behind the last one. States are kept at multiples of the delta rule's chunk, in fp32, so
// that a sequence that starts from one gets the bits of one that ran all rows itself. What is kept lies in the common
// pools and gives way, the least recently used first, when sequences need the room.
#pragma once
#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "rollout/memory.h"

namespace furlong {

// A hash for each of the prefixes of 64, 128, ... tokens that leave at least one row to run.
std::vector<uint64_t> prefix_chain(std::span<const int32_t> tokens);

class PrefixCache {
 public:
  // keep_ends: also keep where each prompt ends, for prompts to come.
  PrefixCache(RolloutMemory& memory, bool keep_ends) : memory_(memory), keep_ends_(keep_ends) {}

  struct Entry {
    std::vector<int32_t> tokens;
    SequenceMemory memory;
    // (1,H) of the last row: the MTP head's row there depends on the token behind it. Null without drafts.
    std::shared_ptr<OwnedTensor> hidden;
    uint64_t used = 0;
    int64_t rows() const { return memory.length; }
  };

  // Tells of a prompt to come.
  void expect(const std::vector<uint64_t>& chain);
  // The longest entry that these tokens begin with, or null.
  const Entry* find(std::span<const int32_t> tokens, const std::vector<uint64_t>& chain);
  // The first position behind `from` where a prompt's state should be kept, or 0.
  int64_t next_stop(const std::vector<uint64_t>& chain, int64_t from) const;
  // Keeps the sequence of these tokens, all of whose rows are committed. evict: in place of others, where there is no
  // room. Returns whether it is kept.
  bool keep(std::span<const int32_t> tokens, const SequenceMemory& at, std::shared_ptr<OwnedTensor> hidden, bool evict);
  // Drops the entry of exactly these tokens, if there is one.
  void drop(std::span<const int32_t> tokens);

  // What clear() would set free.
  int64_t pages() const;
  int64_t slots() const { return std::ssize(entries_); }
  // Gives up entries until so many pages and slots are free, or none is left.
  void make_room(int64_t pages, int64_t slots);
  void clear();

 private:
  bool planned(const std::vector<uint64_t>& chain, size_t i) const;
  void evict();
  void erase(std::unordered_map<uint64_t, Entry>::iterator);

  RolloutMemory& memory_;
  bool keep_ends_;
  uint64_t clock_ = 0;
  std::unordered_map<uint64_t, Entry> entries_;
  std::map<int32_t, int32_t> held_;                 // entries that hold a page
  std::unordered_map<uint64_t, int64_t> expected_;  // prompts that begin so
};

}  // namespace furlong
