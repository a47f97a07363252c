// The language-model head and what is computed on its logits, a chunk of rows at a time: logits are never held whole.
// Over a mesh: on the last pipeline stage; hidden and dhidden are those of the rows here (rows_here), lm_head and its
// gradient those of this rank's vocabulary.
#pragma once
#include <functional>
#include <span>

#include "model/batch.h"
#include "model/weights.h"

namespace furlong {

struct HeadRow {
  int32_t row = 0;     // of the batch
  int32_t target = 0;  // token id
};

struct HeadOptions {
  double temperature = 1;
  int64_t chunk_rows = -1;  // rows of logits at a time; -1: as many as keep them near 32 MiB
  bool entropy = false;     // also compute entropies
  int64_t batch_rows = -1;  // rows of the batch, which hidden is this rank's part of; -1: those of hidden
};

// log_probs and entropies (as long as rows) of the targets; entropies may be empty when not asked for.
// All ranks that share a batch get those of all its rows.
void score_rows(Exec&, const Weights&, Tensor hidden, std::span<const HeadRow> rows, const HeadOptions&,
                std::span<double> log_probs, std::span<double> entropies);

// What a row's loss needs next to its log-prob, and the derivatives it hands back.
struct HeadGradient {
  double d_log_prob = 0;
  double d_entropy = 0;
};
using RowLoss = std::function<HeadGradient(size_t row, double log_prob, double entropy)>;

// Calls loss(i, ...) for every row in order, of those on this context parallel rank, alike on its tensor parallel
// ranks, and back-propagates: dhidden (T,H) is overwritten (zero where no row points); dlm_head (V,H) f32 += unless
// undefined (a detached head).
void loss_head(Exec&, const Weights&, Tensor hidden, std::span<const HeadRow> rows, const HeadOptions&,
               const RowLoss& loss, Tensor dhidden, Tensor dlm_head);

}  // namespace furlong
