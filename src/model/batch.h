// A packed batch: rows of several sequences one after another, never padded, and the memory they may continue from.
#pragma once
#include <vector>

#include "ops/segments.h"
#include "parallel/mesh.h"
#include "tensor/buffer.h"
#include "tensor/stream.h"

namespace furlong {

// Where the earlier rows of each segment are kept, layer by layer.
struct MemoryView {
  std::vector<KvPages> attention;  // one per full-attention layer, in order
  std::vector<DeltaSlots> delta;   // one per delta-net layer, in order
  KvPages mtp;                     // of the MTP layer
};

// The experts and gate weights of a batch's rows, layer by layer: those of layer l are rows [l·T, (l+1)·T), T the rows
// here, l of the whole model's layers without the MTP head's. Either written by the layers, or given and read by them.
struct BatchRoutes {
  Tensor ids;      // (L·T,k) i32
  Tensor weights;  // (L·T,k) in the accumulate dtype
  bool given = false;
  Tensor own;  // (L·T,k) i32 for what the routers here would choose of given routes' rows; undefined: unwanted
};

// Training and scoring: segments are whole sequences, memory is null. Prefill: chunks with memory. Decode: one row per
// sequence plus drafts, with memory.
struct Batch {
  Tensor tokens;  // (T) i32
  Segments segments;
  const MemoryView* memory = nullptr;
  std::vector<int64_t> expert_rows = {};  // see with_expert_rows
  BatchRoutes routes = {};                // undefined: every layer keeps its own
  int64_t rows() const { return tokens.rows(); }
};

// What a computation runs in: the stream, the arena that holds its intermediates until the caller's scope closes, and
// the ranks that compute together. All ranks of a mesh call the same functions with the same batch (data parallel ones
// with batches of their own, which may be empty).
struct Exec {
  Stream& stream;
  Arena& arena;
  const Mesh& mesh = Mesh::alone();
};

// The rows of a batch that lie on this rank outside of the mixers.
inline Range rows_here(const Mesh& mesh, int64_t rows) {
  return block_of(rows, mesh.place().row_part(), mesh.place().row_parts());
}

// The most rows of a batch of so many that a rank can have.
inline int64_t most_rows_here(const Mesh& mesh, int64_t rows) {
  const int64_t parts = mesh.place().row_parts();
  return (rows + parts - 1) / parts;
}

// The batch in the exec's memory: itself on the CPU, copies of its integers in the arena on a device. The memory it
// continues from is taken as it is.
Batch placed(Exec&, const Batch& host);

// The batch with what the experts of a mesh need to know where rows are gathered without counting them: how many rows
// each rank of mesh.experts() has. Most of it as it is where that is known or not needed. All ranks of the group call.
Batch with_expert_rows(Exec&, const Batch&);

// Host-side owner of a batch's integers.
class BatchBuilder {
 public:
  // Appends a segment of tokens whose first row stands at `position`.
  void add(const int32_t* tokens, int64_t count, int64_t position = 0);
  void clear();
  int64_t rows() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t segments() const { return static_cast<int64_t>(starts_.size()) - 1; }
  // The first row of each segment, and one past the last.
  const std::vector<int32_t>& starts() const { return starts_; }
  // A view; valid until the builder changes.
  Batch batch(const MemoryView* memory = nullptr);

 private:
  std::vector<int32_t> tokens_, positions_, starts_ = {0};
};

// The dtype of statistics, router logits and gradients beside activations of `t`.
constexpr DType accumulate_dtype(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace furlong
