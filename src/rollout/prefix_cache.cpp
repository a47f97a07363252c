#include "rollout/prefix_cache.h"

#include <algorithm>

#include "ops/segments.h"

namespace furlong {
namespace {

// More prompts than this are forgotten, for a server that runs for long.
constexpr size_t most_expected = size_t{1} << 18;

uint64_t hash_more(uint64_t hash, std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 29;
  }
  return hash;
}

// What a sequence that goes on behind these tokens has in its chain for them.
uint64_t hash_of(std::span<const int32_t> tokens) { return hash_more(0x243F6A8885A308D3ull, tokens); }

}  // namespace

std::vector<uint64_t> prefix_chain(std::span<const int32_t> tokens) {
  std::vector<uint64_t> chain;
  uint64_t hash = hash_of({});
  constexpr auto chunk = static_cast<size_t>(delta_chunk);
  for (size_t at = 0; at + chunk < tokens.size(); at += chunk) {
    hash = hash_more(hash, tokens.subspan(at, chunk));
    chain.push_back(hash);
  }
  return chain;
}

void PrefixCache::expect(const std::vector<uint64_t>& chain) {
  if (expected_.size() > most_expected) expected_.clear();
  for (const uint64_t hash : chain) expected_[hash]++;
}

const PrefixCache::Entry* PrefixCache::find(std::span<const int32_t> tokens, const std::vector<uint64_t>& chain) {
  const Entry* longest = nullptr;
  clock_++;
  for (const uint64_t hash : chain) {
    const auto found = entries_.find(hash);
    if (found == entries_.end()) continue;
    Entry& entry = found->second;
    if (!std::equal(entry.tokens.begin(), entry.tokens.end(), tokens.begin(),
                    tokens.begin() + std::min(std::ssize(tokens), std::ssize(entry.tokens)))) {
      continue;
    }
    entry.used = clock_;
    longest = &entry;
  }
  return longest;
}

// Where prompts that have gone the same way so far part, and where they end.
bool PrefixCache::planned(const std::vector<uint64_t>& chain, size_t i) const {
  if (entries_.contains(chain[i])) return false;
  const auto expected = [&](size_t n) {
    const auto found = n < chain.size() ? expected_.find(chain[n]) : expected_.end();
    return found == expected_.end() ? 0 : found->second;
  };
  const bool parts = expected(i) >= 2 && expected(i + 1) < expected(i);
  return parts || (keep_ends_ && i + 1 == chain.size());
}

int64_t PrefixCache::next_stop(const std::vector<uint64_t>& chain, int64_t from) const {
  for (auto i = static_cast<size_t>(from / delta_chunk); i < chain.size(); i++) {
    if (planned(chain, i)) return static_cast<int64_t>(i + 1) * delta_chunk;
  }
  return 0;
}

bool PrefixCache::keep(std::span<const int32_t> tokens, const SequenceMemory& at, std::shared_ptr<OwnedTensor> hidden,
                       bool evict) {
  const int64_t rows = std::ssize(tokens);
  CHECK(at.length == rows && rows % delta_chunk == 0 && rows > 0, "a state kept behind {} of {} rows", at.length, rows);
  const uint64_t hash = hash_of(tokens);
  if (entries_.contains(hash)) return false;
  const int64_t pages = memory_.pages_for_fork(rows, rows);
  if (evict) make_room(pages, 1);
  if (memory_.free_pages() < pages || memory_.free_slots() < 1) return false;
  Entry entry{.tokens = {tokens.begin(), tokens.end()},
              .memory = memory_.fork(at, rows),
              .hidden = std::move(hidden),
              .used = ++clock_};
  for (const int32_t page : entry.memory.pages) held_[page]++;
  entries_.emplace(hash, std::move(entry));
  return true;
}

void PrefixCache::drop(std::span<const int32_t> tokens) {
  const auto found = entries_.find(hash_of(tokens));
  if (found != entries_.end()) erase(found);
}

void PrefixCache::erase(std::unordered_map<uint64_t, Entry>::iterator entry) {
  for (const int32_t page : entry->second.memory.pages) {
    if (--held_[page] == 0) held_.erase(page);
  }
  memory_.release(entry->second.memory);
  entries_.erase(entry);
}

// Of several that were used at once the longest goes first: the others serve more prompts.
void PrefixCache::evict() {
  const auto worst = std::min_element(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
    if (a.second.used != b.second.used) return a.second.used < b.second.used;
    return a.second.rows() > b.second.rows();
  });
  erase(worst);
}

int64_t PrefixCache::pages() const {
  return std::count_if(held_.begin(), held_.end(),
                       [&](const auto& held) { return memory_.references(held.first) == held.second; });
}

void PrefixCache::make_room(int64_t pages, int64_t slots) {
  while (!entries_.empty() && (memory_.free_pages() < pages || memory_.free_slots() < slots)) evict();
}

void PrefixCache::clear() {
  while (!entries_.empty()) erase(entries_.begin());
  expected_.clear();
}

}  // namespace furlong
