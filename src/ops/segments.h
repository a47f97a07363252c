// How the rows of a packed batch belong to sequences, and where a sequence's earlier rows are kept.
#pragma once
#include "tensor/tensor.h"

namespace furlong {

// Rows [starts[s], starts[s+1]) belong to segment s. Without memory a segment is a whole sequence from position 0.
struct Segments {
  Tensor starts;        // (S+1) i32
  Tensor positions;     // (T) i32: the position of each row in its sequence, consecutive within a segment
  int64_t chunks = -1;  // delta_chunks of these segments where starts and positions do not lie on the host
  int64_t count() const { return starts.rows() - 1; }
};

// Pages of keys and values of one attention layer. Row at position p of segment s lies in page table[s][p / page].
struct KvPages {
  Tensor k, v;   // (pages, page, Hkv·D)
  Tensor table;  // (S, max pages) i32
  // On a GPU in bf16: a row is summed in the order that training sums it in, however few rows its segment has.
  bool exact = false;
  bool defined() const { return k.defined(); }
};

// Recurrent memory of one delta-net layer (architecture.md, rule 4). A slot holds the state S at the start of the chunk
// of 64 rows that its next row falls into, a ring of the rows since then, and the last inputs of the convolution.
// Rings of keys and corrections in f32 hold rows as they were solved. In bf16 (see delta_rings) they hold what a chunk
// is solved from on tensor cores: keys, and in place of u the right-hand sides r = beta (v - e^gamma S0ᵀk), with S0 the
// slot's state; the rows of a chunk are then solved anew with each row that joins them, for the same bits.
struct DeltaSlots {
  Tensor state;   // (slots, Vh, Dk, Dv) f32
  Tensor ring_k;  // (slots, ring, Kh, Dk) f32 or bf16: normalised keys, row at position p in entry p % ring
  Tensor ring_u;  // (slots, ring, Vh, Dv) f32: corrections u = beta (v - Sᵀk); bf16: right-hand sides
  Tensor ring_g;  // (slots, ring, Vh) f64: cumulative log decay since the chunk's start
  Tensor window;  // (slots, window, C): convolution inputs, position p in entry p % window
  Tensor slots;   // (S) i32: the slot of each segment
  // Per segment: 1 where its rows are drafts to be verified, so that a state that they complete is not yet kept: the
  // slot's state moves on in delta_commit once the rows are accepted. 0 (prefill): it moves on at once.
  Tensor speculative;  // (S) i32
  Tensor ring_beta;    // (slots, ring, Vh) f32: beta of the rows; only with rings in bf16
  bool defined() const { return state.defined(); }
};

// Rows per chunk of the delta rule; chunks are anchored at position 0 of a sequence.
constexpr int64_t delta_chunk = 64;

}  // namespace furlong
