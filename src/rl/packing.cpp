#include "rl/packing.h"

#include <algorithm>
#include <numeric>
#include <queue>

namespace furlong {
namespace {

void sort_bins(std::vector<std::vector<size_t>>& bins) {
  for (auto& bin : bins) std::sort(bin.begin(), bin.end());
  std::sort(bins.begin(), bins.end(), [](const auto& a, const auto& b) { return a.front() < b.front(); });
}

int64_t sum_of(std::span<const int64_t> lengths, const std::vector<size_t>& bin) {
  int64_t sum = 0;
  for (const size_t i : bin) sum += lengths[i];
  return sum;
}

// Halves the heaviest bins that can be, longest samples first to the lighter half, until `ranks` divides their number.
void split_for(int64_t ranks, std::span<const int64_t> lengths, std::vector<std::vector<size_t>>& bins) {
  while (std::ssize(bins) % ranks != 0) {
    size_t heaviest = bins.size();
    for (size_t b = 0; b < bins.size(); b++) {
      if (bins[b].size() < 2) continue;
      if (heaviest == bins.size() || sum_of(lengths, bins[b]) > sum_of(lengths, bins[heaviest])) heaviest = b;
    }
    if (heaviest == bins.size()) return;
    std::vector<size_t> order = std::move(bins[heaviest]), halves[2];
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return lengths[a] > lengths[b]; });
    for (const size_t i : order) {
      halves[sum_of(lengths, halves[1]) < sum_of(lengths, halves[0]) ? 1 : 0].push_back(i);
    }
    bins[heaviest] = std::move(halves[0]);
    bins.push_back(std::move(halves[1]));
    sort_bins(bins);
  }
}

int64_t mask_sum(const Trajectory& t) { return std::accumulate(t.loss_mask.begin(), t.loss_mask.end(), int64_t{0}); }

}  // namespace

std::vector<std::vector<size_t>> karmarkar_karp(std::span<const int64_t> sizes, size_t k) {
  // A state is k sets with their sums, largest first; two states of the largest spread are merged, large with small.
  struct State {
    std::vector<std::pair<int64_t, std::vector<size_t>>> sets;
    int64_t spread() const { return sets.front().first - sets.back().first; }
  };
  const auto less = [](const State& a, const State& b) {
    return a.spread() != b.spread() ? a.spread() < b.spread() : a.sets.front().second > b.sets.front().second;
  };
  std::priority_queue<State, std::vector<State>, decltype(less)> queue(less);
  for (size_t i = 0; i < sizes.size(); i++) {
    State state;
    state.sets.resize(k);
    state.sets[0] = {sizes[i], {i}};
    queue.push(std::move(state));
  }
  while (queue.size() > 1) {
    State a = queue.top();
    queue.pop();
    const State b = queue.top();
    queue.pop();
    for (size_t j = 0; j < k; j++) {
      auto& into = a.sets[j];
      const auto& from = b.sets[k - 1 - j];
      into.first += from.first;
      into.second.insert(into.second.end(), from.second.begin(), from.second.end());
    }
    std::stable_sort(a.sets.begin(), a.sets.end(), [](const auto& x, const auto& y) { return x.first > y.first; });
    queue.push(std::move(a));
  }
  std::vector<std::vector<size_t>> result;
  if (!queue.empty()) {
    for (const auto& set : queue.top().sets) {
      if (!set.second.empty()) result.push_back(set.second);
    }
  }
  sort_bins(result);
  return result;
}

std::vector<std::vector<size_t>> make_bins(std::span<const int64_t> lengths, const PackOptions& options) {
  std::vector<std::vector<size_t>> bins;
  if (!options.dynamic) {
    for (size_t i = 0; i < lengths.size(); i++) {
      if (i % static_cast<size_t>(options.micro_batch_size) == 0) bins.emplace_back();
      bins.back().push_back(i);
    }
    split_for(options.ranks, lengths, bins);
    return bins;
  }
  std::vector<size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return lengths[a] > lengths[b]; });
  std::vector<int64_t> sums;
  for (const size_t i : order) {
    size_t b = 0;
    while (b < bins.size() && sums[b] + lengths[i] > options.max_tokens) b++;
    if (b == bins.size()) {
      bins.emplace_back();
      sums.push_back(0);
    }
    bins[b].push_back(i);
    sums[b] += lengths[i];
  }
  sort_bins(bins);
  split_for(options.ranks, lengths, bins);
  if (options.balance && bins.size() > 1) {
    auto balanced = karmarkar_karp(lengths, bins.size());
    const bool fits = std::all_of(balanced.begin(), balanced.end(), [&](const auto& bin) {
      return sum_of(lengths, bin) <= options.max_tokens || bin.size() == 1;
    });
    if (fits && balanced.size() == bins.size()) return balanced;
  }
  return bins;
}

std::vector<std::vector<size_t>> deal(std::span<const int64_t> sizes, int64_t ranks, bool balance) {
  std::vector<std::vector<size_t>> dealt(static_cast<size_t>(ranks));
  const size_t each = (sizes.size() + dealt.size() - 1) / dealt.size();
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (balance) std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sizes[a] > sizes[b]; });
  std::vector<int64_t> sums(dealt.size());
  for (size_t i = 0; i < order.size(); i++) {
    size_t rank = i % dealt.size();
    for (size_t r = 0; balance && r < dealt.size(); r++) {
      const bool room = dealt[r].size() < each, lighter = sums[r] < sums[rank];
      if (room && (lighter || dealt[rank].size() == each)) rank = r;
    }
    dealt[rank].push_back(order[i]);
    sums[rank] += sizes[order[i]];
  }
  for (auto& mine : dealt) {
    std::sort(mine.begin(), mine.end());
    mine.resize(each, sizes.size());
  }
  return dealt;
}

std::vector<Pack> packs_of_rank(std::vector<Pack> packs, const PackOptions& options, int64_t rank) {
  if (options.ranks == 1) return packs;
  std::vector<int64_t> sizes;
  for (const auto& pack : packs) sizes.push_back(pack.batch.rows());
  std::vector<Pack> mine;
  const auto dealt = deal(sizes, options.ranks, options.balance);
  for (const size_t i : dealt[static_cast<size_t>(rank)])
    mine.push_back(i < packs.size() ? std::move(packs[i]) : Pack());
  return mine;
}

StepTotals totals_of(std::span<const Trajectory* const> trajectories) {
  StepTotals totals{.samples = std::ssize(trajectories)};
  for (const Trajectory* t : trajectories) {
    totals.tokens += std::max<int64_t>(1, mask_sum(*t));
    for (int32_t i = 0; i < t->response_length; i++)
      totals.mtp_rows += t->prompt_length() + i >= 2 && t->loss_mask[static_cast<size_t>(i)] != 0;
  }
  return totals;
}

std::vector<Pack> pack_step(std::span<const Trajectory* const> trajectories, const PackOptions& options, bool per_token,
                            bool mtp, const std::optional<StepTotals>& whole) {
  const StepTotals totals = whole ? *whole : totals_of(trajectories);
  std::vector<int64_t> lengths;
  for (const Trajectory* t : trajectories) lengths.push_back(static_cast<int64_t>(t->tokens.size()));
  std::vector<Pack> packs;
  for (auto& bin : make_bins(lengths, options)) {
    Pack& pack = packs.emplace_back();
    for (const size_t s : bin) {
      const Trajectory& t = *trajectories[s];
      const auto base = static_cast<int32_t>(pack.batch.rows());
      pack.batch.add(t.tokens.data(), static_cast<int64_t>(t.tokens.size()));
      pack.next_tokens.insert(pack.next_tokens.end(), t.tokens.begin() + 1, t.tokens.end());
      pack.next_tokens.push_back(0);
      const double sample_weight =
          1.0 / (static_cast<double>(std::max<int64_t>(1, mask_sum(t))) * static_cast<double>(totals.samples));
      const double weight = per_token ? 1.0 / static_cast<double>(totals.tokens) : sample_weight;
      for (int32_t i = 0; i < t.response_length; i++) {
        if (t.loss_mask[static_cast<size_t>(i)] == 0) continue;
        const auto position = static_cast<int32_t>(t.prompt_length()) + i;
        const int32_t target = t.tokens[static_cast<size_t>(position)];
        if (position >= 1) pack.rows.push_back({base + position - 1, target, static_cast<int32_t>(s), i, weight});
        if (mtp && position >= 2) {
          pack.mtp_rows.push_back(
              {base + position - 2, target, static_cast<int32_t>(s), i, 1.0 / static_cast<double>(totals.mtp_rows)});
        }
      }
    }
    pack.samples = std::move(bin);
  }
  return packs;
}

}  // namespace furlong
