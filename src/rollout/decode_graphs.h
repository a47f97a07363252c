// Decode steps as CUDA graphs: one recording of the model's forward per batch size, replayed with new integers.
#pragma once
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "rollout/memory.h"

namespace furlong {

// A step in which every segment has the same few rows is padded with scrap sequences up to the next recorded batch
// size.
class DecodeGraphs {
 public:
  // sizes: batch sizes, in sequences; rows: of one segment; pages: of the longest sequence.
  DecodeGraphs(Stream& stream, std::vector<int64_t> sizes, int64_t rows, int64_t pages);

  using Forward = std::function<Tensor(const Batch&)>;
  // Runs forward(batch) over these segments, tokens holding `rows` ids for each, starting at the sequence's length. The
  // first time a size occurs the forward runs plainly, which makes room for everything it needs; then it is recorded.
  // The arena must be empty. Returns the hidden rows, padding behind; undefined when no recorded size is large enough.
  // least: the size is that of at least so many sequences, as ranks whose experts share rows want it. There may then be
  // no sequence at all.
  Tensor run(Arena& arena, const RolloutMemory& memory, std::span<const SequenceMemory* const> sequences,
             std::span<const int32_t> tokens, int64_t least, const Forward& forward);

 private:
  struct Recording {
    std::shared_ptr<cuda::Graph> graph;
    uint64_t version = 0;  // of the scratch it was recorded with
    size_t arena_bytes = 0;
    Tensor hidden;
    bool seen = false;
  };
  // The integers of a step, one after another in one block of device memory.
  struct Integers {
    Tensor tokens, positions, starts, table, slots, speculative;
  };
  Integers upload(std::span<const SequenceMemory* const> sequences, std::span<const int32_t> tokens, int64_t size);

  Stream& stream_;
  std::vector<int64_t> sizes_;
  int64_t rows_, pages_;
  Buffer integers_;
  std::vector<int32_t> host_;
  std::map<int64_t, Recording> recordings_;
};

}  // namespace furlong
