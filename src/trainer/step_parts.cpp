#include "trainer/step_parts.h"

#include <chrono>

#include "ops/reduce.h"

namespace furlong {

void TrainStep::begin(int64_t samples) {
  CHECK(mesh_.place().sizes.pipeline == 1, "a step in parts on pipeline stages");
  parts_ = std::make_unique<Parts>();
  parts_->samples = samples;
  // Tokens are not counted yet; what was computed is put right when they are.
  parts_->divisors = {samples, samples, samples};
  grads_.zero(stream_);
}

// The gradients so far as of other weights.
void TrainStep::rescale(double policy, double mtp) {
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& sum) {
        const double factor = spec.mtp ? mtp : policy;
        if (sum.defined() && factor != 1) scale(stream_, sum, factor);
      },
      grads_);
  parts_->sums.scale(policy, mtp);
  for (size_t i = parts_->next; i < parts_->queued.size(); i++) {
    Pack& pack = parts_->queued[i].pack;
    for (auto& row : pack.rows) row.weight *= policy;
    for (auto& row : pack.mtp_rows) row.weight *= mtp;
  }
}

void TrainStep::add(std::vector<Trajectory> trajectories, std::vector<TokenTargets> targets, bool last) {
  CHECK(parts_ && !parts_->complete, "trajectories for a step that is not under way");
  Parts::Added& of = parts_->added.emplace_back(
      Parts::Added{std::move(trajectories), std::move(targets), {}, static_cast<size_t>(parts_->added_totals.samples)});
  for (const Trajectory& t : of.trajectories) of.pointers.push_back(&t);
  const StepTotals totals = totals_of(of.pointers);
  StepTotals& all = parts_->added_totals;
  all.samples += totals.samples;
  all.tokens += totals.tokens;
  all.mtp_rows += totals.mtp_rows;
  if (last) {
    CHECK(all.samples == parts_->samples, "{} samples in a step of {}", all.samples, parts_->samples);
    const auto ratio = [](int64_t before, int64_t now) {
      return now > 0 ? static_cast<double>(before) / static_cast<double>(now) : 1.0;
    };
    const StepTotals before = std::exchange(parts_->divisors, all);
    rescale(options_.per_token ? ratio(before.tokens, all.tokens) : 1.0, ratio(before.mtp_rows, all.mtp_rows));
    parts_->complete = true;
  }
  Packs packs = packs_of(of.pointers, options_.mtp, parts_->divisors);
  StepSums unused;
  fit(1, packs, [&](Lane& lane, Stream& dry, Pack& pack) {
    Exec exec{dry, lane.arena, mesh_};
    lane.begin(*this, pack, 0);
    forward(exec, lane.flight, {of.pointers, of.targets, unused, of.first});
    backward(exec, lane.flight);
  });
  for (auto& pack : packs.mine) parts_->queued.push_back({&of, std::move(pack)});
}

bool TrainStep::advance() {
  CHECK(parts_ != nullptr, "a step that is not under way");
  Parts& p = *parts_;
  if (p.next == p.queued.size()) return false;
  const auto begun = std::chrono::steady_clock::now();
  const double exchanged = mesh_.world().exchange_seconds();
  auto& [of, pack] = p.queued[p.next++];
  Lane& lane = *lanes_.front();
  lane.begin(*this, pack, 0);
  if (p.complete && p.next == p.queued.size()) lane.flight.told = &optimizer_;
  Exec exec{stream_, lane.arena, mesh_};
  forward(exec, lane.flight, {of->pointers, of->targets, p.sums, of->first});
  backward(exec, lane.flight);
  lane.scope.reset();
  p.exchanged += mesh_.world().exchange_seconds() - exchanged;
  p.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  return true;
}

Metrics TrainStep::finish() {
  CHECK(parts_ && parts_->complete, "a step without its last trajectories");
  while (advance()) {
  }
  const auto begun = std::chrono::steady_clock::now();
  const double exchanged = mesh_.world().exchange_seconds();
  optimizer_.reduce(stream_, grads_);
  stream_.synchronize();
  const std::unique_ptr<Parts> done = std::move(parts_);
  done->exchanged += mesh_.world().exchange_seconds() - exchanged;
  done->seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  return update(done->sums, done->samples, done->seconds, done->exchanged);
}

}  // namespace furlong
