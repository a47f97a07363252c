// The rollout's memory: pages of keys and values, and recurrent slots. Page 0 and slot 0 are scrap. Pools hand out the
// lowest free index. A sequence reserves what it may need, commits what was accepted, and releases.
#pragma once
#include <array>
#include <set>
#include <span>
#include <vector>

#include "model/batch.h"
#include "model/config.h"
#include "parallel/mesh.h"

namespace furlong {

struct MemoryOptions {
  int64_t page = 32;       // rows per page
  int64_t pages = 0;       // scrap included
  int64_t slots = 0;       // scrap included
  int64_t draft_rows = 1;  // rows of one decode segment at most: 1 + drafts
  bool mtp = false;        // keep the MTP layer's keys and values
  bool exact = false;      // attention over it sums as training does (KvPages)
};

// What one sequence holds.
struct SequenceMemory {
  int32_t slot = 0;
  std::vector<int32_t> pages;
  int64_t length = 0;  // committed rows
};

// What one rank keeps of a sequence: the layers of its stage, with the heads that its mixers compute.
ModelConfig remembered_model(const ModelConfig&, const MeshRank&);

// For the model that is given, which on several ranks is a remembered_model.
class RolloutMemory {
 public:
  // stream: where the memory lies and is copied; null: the host. place: the memory, of block_bytes; undefined: its own.
  RolloutMemory(const ModelConfig&, DType dtype, const MemoryOptions&, Stream* stream = nullptr,
                const Share& place = {});

  // Bytes that these options take, by part.
  struct Bytes {
    size_t pages = 0, slots = 0;
  };
  static Bytes bytes_of(const ModelConfig&, DType dtype, const MemoryOptions&, Device = Device::cpu);
  // What one block of all of it takes, each tensor on a boundary.
  static size_t block_bytes(const ModelConfig&, DType dtype, const MemoryOptions&, Device = Device::cpu);
  static size_t page_bytes(const ModelConfig&, DType dtype, const MemoryOptions&);
  static size_t slot_bytes(const ModelConfig&, DType dtype, const MemoryOptions&, Device = Device::cpu);

  const MemoryOptions& options() const { return options_; }
  int64_t free_pages() const { return static_cast<int64_t>(free_pages_.size()); }
  int64_t free_slots() const { return static_cast<int64_t>(free_slots_.size()); }
  int32_t references(int32_t page) const { return references_[static_cast<size_t>(page)]; }
  int64_t pages_for(int64_t rows) const { return (rows + options_.page - 1) / options_.page; }
  // New pages that a fork of a prompt of `prompt` rows needs to hold `rows` rows.
  int64_t pages_for_fork(int64_t prompt, int64_t rows) const { return pages_for(rows) - shared_pages(prompt); }

  // A slot with an empty state and pages for `rows` rows. There must be room (free_pages, free_slots).
  SequenceMemory reserve(int64_t rows);
  // Shares the parent's full pages, copies the page of its last row (the MTP row of the last prompt position depends on
  // the sample's first token) and its slot, and adds pages for `rows` rows in all.
  SequenceMemory fork(const SequenceMemory& parent, int64_t rows);
  // Adds pages for `rows` rows in all. There must be room.
  void extend(SequenceMemory&, int64_t rows);
  // Moves the sequences on to their new lengths: a delta-net state passes the chunk that the accepted rows complete.
  // Rejected rows are overwritten later.
  void commit(Stream&, std::span<SequenceMemory* const> sequences, std::span<const int64_t> lengths);
  void release(SequenceMemory&);
  // After the memory was used for something else, while no sequence holds any of it. On a device everything is zeroed:
  // kernels multiply rows that nobody wrote by 0. On the host no such row is read.
  void reset();

  // A view for one segment per sequence; valid until the next call. speculative[i]: the segment's rows may be rejected.
  const MemoryView& view(std::span<const SequenceMemory* const> sequences, std::span<const uint8_t> speculative);
  // The whole pools under tables of the caller's: table (S, n), slots (S), speculative (S), all i32.
  MemoryView view_over(Tensor table, Tensor slots, Tensor speculative) const;

 private:
  int64_t shared_pages(int64_t prompt) const { return prompt == 0 ? 0 : (prompt - 1) / options_.page; }
  int32_t take_page();
  void drop_page(int32_t page);
  void copy_page(int32_t to, int32_t from);
  void copy_slot(int32_t to, int32_t from);
  void clear_slot(int32_t slot);
  void copy_entry(const Tensor& t, int32_t to, int32_t from);
  // `shape` integers where the ops read them: `host` itself, or a copy in the part-th piece of device memory.
  Tensor integers(size_t part, const std::vector<int32_t>& host, std::initializer_list<int64_t> shape);

  ModelConfig config_;
  MemoryOptions options_;
  Stream* stream_;
  Device device_;
  std::vector<OwnedTensor> tensors_;
  MemoryView view_;  // over the whole pools; the tables are set per view
  std::set<int32_t> free_pages_, free_slots_;
  std::vector<int32_t> references_;  // per page
  std::vector<int32_t> table_, slots_, speculative_, commits_;
  std::array<Buffer, 4> device_integers_;
};

}  // namespace furlong
