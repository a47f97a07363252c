// Trajectories into packed micro-batches, with the exact weight of every token in the step's loss.
#pragma once
#include <optional>
#include <span>
#include <vector>

#include "data/trajectory.h"
#include "model/batch.h"

namespace furlong {

struct PackOptions {
  bool dynamic = false;  // bins of at most max_tokens; otherwise micro_batch_size samples each
  int64_t max_tokens = 0;
  int64_t micro_batch_size = 1;
  bool balance = false;  // even out the token sums of the bins (Karmarkar–Karp), and of the ranks
  int64_t ranks = 1;     // data parallel ranks that take the same number of bins each
};

// Bins of sample indices. Dynamic: first-fit-decreasing bins of at most max_tokens (a longer sample is a bin of its
// own); with balance the same number of bins, of token sums as even as Karmarkar–Karp makes them, kept only where they
// fit. For several ranks the heaviest bins of more than one sample are halved until the ranks divide their number, as
// far as there are such bins. Within a bin samples stand in rising order, and bins by their first sample.
std::vector<std::vector<size_t>> make_bins(std::span<const int64_t> lengths, const PackOptions& options);

// Bins of these sizes dealt to ranks: indices by rank, as many for each as the fullest one needs; missing bins have the
// index sizes.size(). In turn, or with balance the largest first to the rank with the least.
std::vector<std::vector<size_t>> deal(std::span<const int64_t> sizes, int64_t ranks, bool balance);

// k sets of nearly equal sums by the largest differencing method.
std::vector<std::vector<size_t>> karmarkar_karp(std::span<const int64_t> sizes, size_t k);

// One trained token: row `row` of the packed batch predicts `target`.
struct LossRow {
  int32_t row = 0;
  int32_t target = 0;
  int32_t sample = 0;  // index into the step's trajectories
  int32_t offset = 0;  // of the target in the sample's response
  double weight = 0;   // of this token's loss in the step's mean
};

struct Pack {
  std::vector<size_t> samples;
  BatchBuilder batch;
  std::vector<LossRow> rows;         // masked-in response tokens
  std::vector<int32_t> next_tokens;  // (T) token t+1 of each row's sequence, 0 at its last
  std::vector<LossRow> mtp_rows;     // row t predicts token t+2, where that token is masked in
};

// What the losses of a step's tokens are divided by: its samples, Σ over them of (Σ mask, at least 1), its MTP rows.
struct StepTotals {
  int64_t samples = 0, tokens = 0, mtp_rows = 0;
};
StepTotals totals_of(std::span<const Trajectory* const> trajectories);

// Token weights of a step of `trajectories`: per sample, mask / (Σ mask of the sample, at least 1) / samples; per
// token, mask / Σ over samples of (Σ mask, at least 1). MTP rows weigh 1 / Σ of MTP rows over the step. These are the
// packs of all ranks. whole: the totals of the step of which these are a part; otherwise they are all of it.
std::vector<Pack> pack_step(std::span<const Trajectory* const> trajectories, const PackOptions& options, bool per_token,
                            bool mtp, const std::optional<StepTotals>& whole = {});

// Those of data parallel rank `rank`, in order; some may be empty.
std::vector<Pack> packs_of_rank(std::vector<Pack> packs, const PackOptions& options, int64_t rank);

}  // namespace furlong
