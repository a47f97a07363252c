// Pieces of the gated delta rule over one head and one chunk, shared by the forward, the commit and the backward.
#pragma once
#include <algorithm>
#include <array>

#include "ops/cpu/gemm.h"
#include "ops/cpu/scratch.h"
#include "ops/delta_rule.h"

namespace furlong::cpu::FURLONG_ISA {

// Consecutive rows of one chunk at one head: normalised keys, corrections, cumulative log decay.
template <class S>
struct ChunkRun {
  const S* k = nullptr;
  const S* u = nullptr;
  const double* gamma = nullptr;  // double: a decay is e to a difference of sums
  int64_t k_stride = 0, u_stride = 0, gamma_stride = 0;
  int64_t rows = 0;
};

// The rows of a chunk so far, in order: up to two runs of a ring, then rows of the batch.
template <class S>
struct ChunkRows {
  std::array<ChunkRun<S>, 3> runs;
  int count = 0;
  void push(const ChunkRun<S>& run) {
    if (run.rows > 0) runs[static_cast<size_t>(count++)] = run;
  }
  int64_t rows() const {
    int64_t n = 0;
    for (int i = 0; i < count; i++) n += runs[static_cast<size_t>(i)].rows;
    return n;
  }
};

// state (Dk,Dv) <- e^{γ_C} state + Σ_j k_j (e^{γ_C-γ_j} u_j)ᵀ over the rows of a chunk, γ_C that of the last row.
template <class S>
void advance_state(S* state, int64_t dk, int64_t dv, const ChunkRows<S>& rows) {
  const ChunkRun<S>& last = rows.runs[static_cast<size_t>(rows.count - 1)];
  const double end = last.gamma[(last.rows - 1) * last.gamma_stride];
  const S decay = exp_fast(static_cast<S>(end));
  for (int64_t i = 0; i < dk * dv; i++) state[i] *= decay;
  for (int r = 0; r < rows.count; r++) {
    const ChunkRun<S>& run = rows.runs[static_cast<size_t>(r)];
    S* scaled = scratch<S, Scratch::delta_scaled>(std::max(run.rows, delta_chunk) * dv);
    for (int64_t j = 0; j < run.rows; j++) {
      const S factor = exp_fast(static_cast<S>(end - run.gamma[j * run.gamma_stride]));
      for (int64_t c = 0; c < dv; c++) scaled[j * dv + c] = factor * run.u[j * run.u_stride + c];
    }
    gemm_nn(dk, dv, run.rows, run.k, 1, run.k_stride, scaled, dv, state, dv, true);
  }
}

// The rows of a slot's ring at one head whose positions are [first, end), in order.
template <class S>
void push_ring(ChunkRows<S>& rows, const DeltaSlots& slots, int64_t slot, int64_t key_head, int64_t value_head,
               int64_t first, int64_t end) {
  const int64_t ring = slots.ring_k.dim(1);
  const Tensor ks = slots.ring_k.at(slot), us = slots.ring_u.at(slot), gs = slots.ring_g.at(slot);
  while (first < end) {
    const int64_t entry = first % ring, n = std::min(end - first, ring - entry);
    rows.push({ks.as<S>() + entry * ks.row_stride() + key_head * ks.dim(2),
               us.as<S>() + entry * us.row_stride() + value_head * us.dim(2),
               gs.as<double>() + entry * gs.row_stride() + value_head, ks.row_stride(), us.row_stride(),
               gs.row_stride(), n});
    first += n;
  }
}

}  // namespace furlong::cpu::FURLONG_ISA
