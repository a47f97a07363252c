#include "trainer/train_step.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/text.h"
#include "checkpoint/tensor_file.h"
#include "model/mtp.h"
#include "ops/reduce.h"
#include "rl/loss_head.h"
#include "rl/value_head.h"
#include "tensor/copy.h"
#include "trainer/pipeline.h"
#include "trainer/replay.h"
#include "trainer/step_parts.h"

namespace furlong {
namespace {

using Clock = std::chrono::steady_clock;

HeadOptions head_options(const TrainOptions& o, int64_t batch_rows) {
  return {.temperature = o.temperature, .chunk_rows = o.head_chunk, .entropy = o.entropy, .batch_rows = batch_rows};
}

// Of the model, for Weights' only_mtp.
std::optional<bool> trained_part(const TrainOptions& o) { return o.mtp ? std::nullopt : std::optional<bool>(false); }

// Where a rank keeps the gradients of its weights.
Placement gradients_at(const MeshRank& place, const Weights& weights, const std::optional<bool>& only_mtp) {
  return {.device = weights.device(), .rank = place, .only_mtp = only_mtp, .copies = false};
}

constexpr size_t lane_boundary = 256;

// The log-prob of a response token.
struct TokenScore {
  int32_t sample, offset;
  float log_prob;
};

std::vector<HeadRow> head_rows(const std::vector<LossRow>& rows) {
  std::vector<HeadRow> out;
  out.reserve(rows.size());
  for (const auto& r : rows) out.push_back({r.row, r.target});
  return out;
}

}  // namespace

MicroBatch::MicroBatch(const ModelConfig& config, Weights& weights, TrainOptions options, const Mesh& mesh,
                       Weights grads, Weights partial)
    : config_(config),
      weights_(weights),
      options_(std::move(options)),
      mesh_(mesh),
      grads_(std::move(grads)),
      partial_(std::move(partial)) {
  CHECK(options_.mtp == options_.optim.train_mtp, "the MTP head is either trained or left alone");
  if (options_.loss.entropy_coef != 0) options_.entropy = true;
}

TrainStep::TrainStep(const ModelConfig& config, Weights& weights, ThreadPool& threads, TrainOptions options,
                     Share memory, const Mesh& mesh)
    : MicroBatch(
          config, weights, options, mesh,
          Weights(config, options.optim.main_grads, gradients_at(mesh.place(), weights, trained_part(options))),
          options.optim.main_grads == DType::f32
              ? Weights()
              : Weights::one_part_at_a_time(config, DType::f32, gradients_at(mesh.place(), weights, std::nullopt))),
      stream_(threads, weights.device()),
      dry_(Stream::dry(threads, weights.device())),
      optimizer_(config, weights, options_.optim, &stream_, mesh),
      share_(std::move(memory)) {
  options_.pack.ranks = mesh.place().data_size;
}

TrainStep::~TrainStep() = default;

void TrainStep::fit(size_t lanes, Packs& packs, const std::function<void(Lane&, Stream&, Pack&)>& body) {
  size_t wanted = 0;
  for (auto& pack : packs.measured.empty() ? packs.mine : packs.measured) {
    Lane measure(Arena::measuring(weights_.device()));
    body(measure, dry_, pack);
    wanted = std::max(wanted, measure.arena.high_mark());
  }
  if (share_.defined()) {
    const size_t each = lanes == 1 ? share_.bytes() : share_.bytes() / lanes / lane_boundary * lane_boundary;
    if (wanted <= each) {
      if (lanes_.size() != lanes) lanes_.clear();
      for (size_t i = lanes_.size(); i < lanes; i++)
        lanes_.push_back(std::make_unique<Lane>(Arena(share_.part(i * each, each))));
      share_.enter();
      return;
    }
    log::info("a micro-batch needs {} of working memory, more than planned", human_bytes(wanted));
    share_ = {};
    lanes_.clear();
  }
  if (lanes_.size() >= lanes && lanes_.front()->arena.capacity() >= wanted) return;
  stream_.synchronize();
  lanes_.clear();  // the old ones go first
  for (size_t i = 0; i < lanes; i++)
    lanes_.push_back(std::make_unique<Lane>(Arena(wanted + wanted / 8, weights_.device())));
}

size_t TrainStep::working_bytes() const {
  size_t bytes = 0;
  for (const auto& lane : lanes_) bytes += lane->arena.capacity();
  return share_.defined() ? share_.bytes() : bytes;
}

void MicroBatch::mtp_loss(Exec& exec, Flight& f, Weights& grads, StepSums& sums) {
  const Arena::Scope scope(exec.arena);
  Pack& pack = *f.pack;
  MtpSaved saved;
  const Tensor next = on_device(exec.stream, exec.arena, "mtp.next_tokens",
                                Tensor(pack.next_tokens.data(), DType::i32, {f.batch.rows()}));
  const Tensor m = mtp_forward(exec, config_, weights_, f.output, next, f.batch, {}, &saved);
  const Tensor dm = exec.arena.make("mtp.dm", weights_.dtype(), {m.rows(), config_.hidden_size});
  const double factor = options_.mtp_factor / static_cast<double>(config_.mtp_num_layers);
  loss_head(exec, weights_, m, head_rows(pack.mtp_rows),
            {.temperature = 1, .chunk_rows = options_.head_chunk, .batch_rows = f.batch.rows()},
            [&](size_t i, double log_prob, double) {
              const double weight = pack.mtp_rows[i].weight;
              sums.mtp -= weight * log_prob;
              return HeadGradient{.d_log_prob = -factor * weight};
            },
            dm, {});
  mtp_backward(exec, config_, weights_, saved, dm, f.batch, grads);
}

void MicroBatch::part_done(Stream& stream, int part, Optimizer* told) {
  if (!partial_.tensors().empty()) {
    for_each_tensor(
        [&](const TensorSpec& spec, const Tensor& sum, const Tensor& own) {
          if ((spec.part != part && spec.also_part != part) || !sum.defined()) return;
          add(stream, sum, own);
          set_zero(stream, own);
        },
        grads_, partial_);
  }
  if (told != nullptr) told->gradients_done(stream, grads_, part);
}

void MicroBatch::policy_loss(Exec& exec, Flight& f, const Samples& samples, Weights& grads) {
  const Pack& pack = *f.pack;
  StepSums& sums = samples.sums;
  const std::vector<HeadRow> rows = head_rows(pack.rows);
  const HeadOptions head = head_options(options_, f.batch.rows());
  PolicyObjective objective(options_.loss, samples.trajectories, samples.targets, pack.rows);
  const bool dry = exec.stream.is_dry();
  if (dry ? PolicyObjective::may_need_log_probs(options_.loss) : objective.needs_log_probs()) {
    std::vector<double> log_probs(rows.size());
    score_log_probs(exec, weights_, f.output, pack, log_probs);
    if (!dry) objective.set_log_probs(log_probs);
  }
  loss_head(
      exec, weights_, f.output, rows, head,
      [&](size_t i, double log_prob, double entropy) {
        const LossRow& row = pack.rows[i];
        sums.tokens++;
        sums.weight += row.weight;
        if (options_.objective == Objective::supervised) {
          sums.policy -= row.weight * log_prob;
          return HeadGradient{.d_log_prob = -row.weight};
        }
        const TokenInputs in = objective.inputs(i, log_prob);
        const TokenLoss loss = token_loss(in, options_.loss);
        sums.add_policy(samples.first + static_cast<size_t>(row.sample), row.weight, in, loss, entropy);
        if (in.sampled_log_prob) {
          // The trainer's own estimate of the sampling policy: the old log-prob where one was computed.
          const bool known = in.old_log_prob && !samples.targets[static_cast<size_t>(row.sample)].old_is_sampler;
          const double trained = known ? *in.old_log_prob : static_cast<double>(static_cast<float>(log_prob));
          sums.abs_diff += row.weight * std::abs(trained - *in.sampled_log_prob);
          sums.rollout_kl += row.weight * k3(*in.sampled_log_prob - trained);
          sums.rollout_weight += row.weight;
        }
        return HeadGradient{.d_log_prob = objective.derivative(i, loss),
                            .d_entropy = objective.entropy_derivative(i, in)};
      },
      f.d_output, grads.lm_head);
}

void MicroBatch::value_loss_of(Exec& exec, Flight& f, const Samples& samples, Weights& grads) {
  const Pack& pack = *f.pack;
  StepSums& sums = samples.sums;
  value_head(
      exec, weights_, f.output, rows_here(mesh_, f.batch.rows()), head_rows(pack.rows),
      [&](size_t i, double value) {
        const LossRow& row = pack.rows[i];
        const TokenTargets& target = samples.targets[static_cast<size_t>(row.sample)];
        const auto offset = static_cast<size_t>(row.offset);
        const ValueLoss loss =
            value_loss(value, target.old_values[offset], target.returns[offset], options_.value_clip);
        sums.tokens++;
        sums.weight += row.weight;
        sums.policy += row.weight * loss.loss;
        sums.clipped += row.weight * loss.clipped;
        return row.weight * loss.d_value;
      },
      f.d_output, grads.lm_head);
}

void MicroBatch::forward(Exec& exec, Flight& f, const Samples& samples) {
  Weights& grads = accumulated();
  f.batch = placed(exec, f.pack->batch.batch());
  if (options_.replay_routes) f.batch.routes = replayed_routes(exec, config_, *f.pack, samples.trajectories, true);
  f.saved.recompute = options_.recompute;
  f.output = stage_forward(exec, config_, weights_, f.batch, f.input, &f.saved);
  if (options_.replay_routes && !exec.stream.is_dry()) {
    const RouteDifference found = route_difference(config_, *f.pack, f.batch.routes);
    samples.sums.choices += static_cast<double>(found.choices);
    samples.sums.differing += static_cast<double>(found.differing);
  }
  if (!is_last_stage()) return;
  f.d_output = exec.arena.make("train.dhidden", weights_.dtype(), {f.output.rows(), config_.hidden_size});
  if (options_.objective == Objective::value) {
    value_loss_of(exec, f, samples, grads);
  } else {
    policy_loss(exec, f, samples, grads);
  }
  part_done(exec.stream, head_part(config_), f.told);
  if (!options_.mtp) return;
  mtp_loss(exec, f, grads, samples.sums);
  part_done(exec.stream, mtp_part(config_), f.told);
}

void MicroBatch::start(Arena& arena, Flight& f, int64_t rows) const {
  const int64_t here = rows_here(mesh_, f.pack->batch.rows()).size();
  const auto edge = [&](const char* name) {
    return arena.make(name, weights_.dtype(), {rows, config_.hidden_size}).rows(0, here);
  };
  if (!is_last_stage()) f.d_output = edge("pipeline.d_output");
  if (is_first_stage()) return;
  f.d_input = edge("pipeline.d_input");
  f.input = edge("pipeline.input");
}

void MicroBatch::backward(Exec& exec, Flight& f) {
  const Tensor d = stage_backward(exec, config_, weights_, f.saved, f.d_output, f.batch, accumulated(),
                                  [&](int part) { part_done(exec.stream, part, f.told); });
  if (!is_first_stage()) convert(exec.stream, f.d_input, d);
}

TrainStep::Packs TrainStep::packs_of(const std::vector<const Trajectory*>& trajectories, bool mtp,
                                     const std::optional<StepTotals>& whole) const {
  auto all = pack_step(trajectories, options_.pack, options_.per_token, mtp, whole);
  Packs packs;
  // Rows of any pack may come to the experts of this rank.
  if (mesh_.experts().size() > 1) packs.measured = all;
  packs.mine = packs_of_rank(std::move(all), options_.pack, mesh_.place().data);
  return packs;
}

// Each row is counted once: by the first tensor parallel rank that has it, or by the only one that has its value.
StepSums TrainStep::over_ranks(const StepSums& mine) const {
  if (mesh_.is_alone()) return mine;
  const auto messages = mesh_.world().gather_bytes(mine.message());
  StepSums all;
  for (size_t r = 0; r < messages.size(); r++) {
    const MeshRank m = mesh_rank(mesh_.place().sizes, static_cast<int64_t>(r), mesh_.place().ranks());
    const bool counts = m.tensor == 0 || options_.objective == Objective::value;
    if (counts && m.stage + 1 == m.sizes.pipeline) all.add(StepSums::of_message(messages[r]));
  }
  return all;
}

// All micro-batches of this rank, forward and backward.
double TrainStep::learn(Packs& packs_of_step, const Samples& samples) {
  auto& packs = packs_of_step.mine;
  int64_t rows = 0;
  for (const auto* some : {&packs, &packs_of_step.measured})
    for (const auto& pack : *some) rows = std::max(rows, rows_here(mesh_, pack.batch.rows()).size());
  const size_t lanes = in_flight(mesh_.place(), packs.size());
  StepSums unused;
  fit(lanes, packs_of_step, [&](Lane& lane, Stream& dry, Pack& pack) {
    Exec exec{dry, lane.arena, mesh_};
    lane.begin(*this, pack, rows);
    forward(exec, lane.flight, {samples.trajectories, samples.targets, unused});
    backward(exec, lane.flight);
  });
  const auto lane_of = [&](size_t i) -> Lane& { return *lanes_[i % lanes]; };
  const auto exec_of = [&](size_t i) { return Exec{stream_, lane_of(i).arena, mesh_}; };
  StageWork work;
  work.input = [&](size_t i) {
    lane_of(i).begin(*this, packs[i], rows);
    if (i + 1 == packs.size()) lane_of(i).flight.told = &optimizer_;
    return lane_of(i).flight.input;
  };
  work.forward = [&](size_t i) {
    Exec exec = exec_of(i);
    forward(exec, lane_of(i).flight, samples);
  };
  work.backward = [&](size_t i) {
    Exec exec = exec_of(i);
    backward(exec, lane_of(i).flight);
  };
  work.output = [&](size_t i) { return lane_of(i).flight.output; };
  work.d_output = [&](size_t i) { return lane_of(i).flight.d_output; };
  work.d_input = [&](size_t i) { return lane_of(i).flight.d_input; };
  grads_.zero(stream_);
  const auto begun = Clock::now();
  run_stage(stream_, mesh_, packs.size(), work);
  for (const auto& lane : lanes_) lane->scope.reset();
  optimizer_.reduce(stream_, grads_);
  stream_.synchronize();
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

Metrics TrainStep::run(const std::vector<const Trajectory*>& trajectories, const std::vector<TokenTargets>& targets) {
  auto packs = packs_of(trajectories, options_.mtp);
  StepSums mine;
  const double exchanged_before = mesh_.world().exchange_seconds();
  const double gradients = learn(packs, {trajectories, targets, mine});
  return update(mine, std::ssize(trajectories), gradients, mesh_.world().exchange_seconds() - exchanged_before);
}

Metrics TrainStep::update(const StepSums& mine, int64_t samples, double gradients, double exchanged) {
  const auto learnt = Clock::now();
  const StepSums sums = over_ranks(mine);
  if (sums.tokens == 0) fail(Exit::numerics, "a training step has no token to learn from: every loss mask is empty");
  // Per sample, a sample whose mask is empty has no weight, so the weights may add up to less than 1, never to more.
  if (!(sums.weight < 1 + 1e-6)) {
    fail(Exit::numerics, "the token weights of a training step add up to {} instead of at most 1", sums.weight);
  }
  if (!options_.dump_grads.empty()) dump_gradients();
  if (options_.before_update) options_.before_update(stream_);

  const double loss = sums.policy + options_.loss.kl_loss_coef * sums.kl - options_.loss.entropy_coef * sums.entropy;
  StepResult result;
  if (std::isfinite(loss) && std::isfinite(sums.mtp)) {
    result = optimizer_.step(stream_, grads_);
  } else {
    optimizer_.drop_gradients();
    result.skipped = true;
    result.grad_norm = std::nan("");
  }
  stream_.synchronize();  // the rollout reads the weights in a stream of its own
  skipped_in_a_row_ = result.skipped ? skipped_in_a_row_ + 1 : 0;
  if (result.skipped) {
    skipped_++;
    log::warn("a training step was skipped: {} is not finite; weights and optimizer are as before",
              std::isfinite(loss) ? "the gradient norm" : "the loss");
  }
  const std::chrono::duration<double> update = Clock::now() - learnt;
  Metrics m = metrics_of(sums, samples, loss, result);
  m.emplace_back("perf/gradients_time", gradients);
  if (exchanged > 0) m.emplace_back("perf/exchange_time", exchanged);
  m.emplace_back("perf/optimizer_time", update.count());
  m.emplace_back("train/skipped_steps", static_cast<double>(skipped_));
  return m;
}

Metrics TrainStep::metrics_of(const StepSums& sums, int64_t samples, double loss, const StepResult& result) const {
  Metrics m = {{"train/loss", loss}, {"train/grad_norm", result.grad_norm}, {"train/lr-pg_0", result.lr}};
  if (options_.objective == Objective::policy) {
    sums.policy_metrics(m, options_.loss, options_.entropy, samples, options_.per_token);
  } else if (options_.objective == Objective::value) {
    m.emplace_back("train/value_loss", sums.policy);
    m.emplace_back("train/value_clipfrac", sums.clipped);
  }
  if (options_.mtp) m.emplace_back("train/mtp_loss", sums.mtp);
  return m;
}

void MicroBatch::score_log_probs(Exec& exec, const Weights& weights, const Tensor& hidden, const Pack& pack,
                                 std::vector<double>& log_probs) const {
  HeadOptions head = head_options(options_, pack.batch.rows());
  head.entropy = false;
  score_rows(exec, weights, hidden, head_rows(pack.rows), head, log_probs, {});
}

std::vector<std::vector<float>> TrainStep::score(const Weights& weights,
                                                 const std::vector<const Trajectory*>& trajectories) {
  std::vector<std::vector<float>> scores(trajectories.size());
  for (size_t i = 0; i < trajectories.size(); i++)
    scores[i].assign(static_cast<size_t>(trajectories[i]->response_length), 0.0f);
  auto packs = packs_of(trajectories, false);
  const bool replays = options_.replay_routes && &weights == &weights_;
  std::vector<TokenScore> mine;
  const auto body = [&](Lane& lane, Stream& stream, Pack& pack) {
    Exec exec{stream, lane.arena, mesh_};
    const Arena::Scope scope(lane.arena);
    Batch batch = placed(exec, pack.batch.batch());
    if (replays) batch.routes = replayed_routes(exec, config_, pack, trajectories, false);
    const Tensor hidden = model_forward(exec, config_, weights, batch, nullptr);
    if (!is_last_stage()) return;
    std::vector<double> log_probs(pack.rows.size());
    const bool values = options_.objective == Objective::value;
    if (values) {
      value_rows(exec, weights, hidden, rows_here(mesh_, pack.batch.rows()), head_rows(pack.rows), log_probs);
    } else {
      score_log_probs(exec, weights, hidden, pack, log_probs);
    }
    if (stream.is_dry() || (!values && mesh_.place().tensor != 0)) return;
    const Range here = values ? rows_here(mesh_, pack.batch.rows())
                              : block_of(pack.batch.rows(), mesh_.place().context, mesh_.place().sizes.context);
    for (size_t i = 0; i < pack.rows.size(); i++) {
      const LossRow& row = pack.rows[i];
      if (here.begin <= row.row && row.row < here.end)
        mine.push_back({row.sample, row.offset, static_cast<float>(log_probs[i])});
    }
  };
  fit(1, packs, body);
  for (auto& pack : packs.mine) body(*lanes_.front(), stream_, pack);
  const std::string_view bytes(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(TokenScore));
  for (const auto& message : mesh_.world().gather_bytes(bytes)) {
    std::vector<TokenScore> theirs(message.size() / sizeof(TokenScore));
    std::memcpy(theirs.data(), message.data(), message.size());
    for (const TokenScore& s : theirs)
      scores[static_cast<size_t>(s.sample)][static_cast<size_t>(s.offset)] = s.log_prob;
  }
  return scores;
}

void TrainStep::dump_gradients() {
  const bool writes = mesh_.world().rank() == 0;
  std::vector<std::pair<std::string, Tensor>> named;
  std::deque<std::string> whole;  // whose texts stay where they are
  for (size_t i = 0; i < grads_.specs().size(); i++) {
    const TensorSpec& spec = grads_.specs()[i];
    if (spec.mtp && !options_.mtp) continue;
    whole.push_back(optimizer_.owners().whole(grads_, i));
    if (!writes) continue;
    const DType dtype = spec.always_f32 ? DType::f32 : grads_.dtype();
    const auto& shape = spec.full_shape;
    named.emplace_back(spec.name, Tensor(whole.back().data(), dtype, shape.data(), static_cast<int>(shape.size())));
  }
  if (!writes) return;
  make_directories(options_.dump_grads);
  save_tensors(fmt::format("{}/step_{:07d}.safetensors", options_.dump_grads, optimizer_.steps()), named);
}

WorkingMemory TrainStep::working_memory(const ModelConfig& config, Weights& weights, ThreadPool& threads,
                                        const TrainOptions& options, int64_t tokens, int64_t segments,
                                        Dispatcher dispatcher) {
  struct Measured : MicroBatch {
    using MicroBatch::backward, MicroBatch::Flight, MicroBatch::forward, MicroBatch::start;
    Measured(const ModelConfig& c, Weights& w, const TrainOptions& o, const Mesh& mesh)
        : MicroBatch(c, w, o, mesh, Weights::outline(c, o.optim.main_grads, gradients_at(w.rank(), w, trained_part(o))),
                     o.optim.main_grads == DType::f32
                         ? Weights()
                         : Weights::outline(c, DType::f32, gradients_at(w.rank(), w, std::nullopt))) {}
  };
  // Every sequence one token past a multiple of the delta rule's chunk, so that the most chunks are begun.
  segments = std::clamp<int64_t>(segments, 1, std::max<int64_t>(1, tokens / 2));
  const int64_t chunks = (tokens - segments) / delta_chunk, rest = (tokens - segments) % delta_chunk;
  std::vector<Trajectory> samples(static_cast<size_t>(segments));
  std::vector<const Trajectory*> picked;
  for (int64_t i = 0; i < segments; i++) {
    int64_t length = 1 + delta_chunk * (chunks / segments + (i < chunks % segments ? 1 : 0));
    if (i + 1 == segments) length += rest;
    Trajectory& t = samples[static_cast<size_t>(i)];
    t.tokens.assign(static_cast<size_t>(length), 0);
    t.response_length = static_cast<int32_t>(length);
    t.loss_mask.assign(static_cast<size_t>(length), 1);
    picked.push_back(&t);
  }
  auto packs = pack_step(picked, {.micro_batch_size = segments}, false, options.mtp);
  const Mesh mesh = Mesh::planned(weights.rank(), dispatcher);
  Measured batch(config, weights, options, mesh);
  Arena measure = Arena::measuring(weights.device());
  Stream dry = Stream::dry(threads, weights.device());
  Exec exec{dry, measure, mesh};
  StepSums unused;
  Measured::Flight flight{.pack = &packs.front()};
  batch.start(measure, flight, most_rows_here(mesh, packs.front().batch.rows()));
  batch.forward(exec, flight, {picked, std::vector<TokenTargets>(picked.size()), unused});
  batch.backward(exec, flight);
  // A pipeline stage holds several micro-batches at a time.
  const size_t lanes = in_flight(mesh.place(), std::numeric_limits<size_t>::max());
  std::map<std::string, uint64_t> parts;
  for (const auto& [name, bytes] : measure.at_high_mark()) parts[name.substr(0, name.find('.'))] += lanes * bytes;
  uint64_t all = lanes * measure.high_mark();
  if (lanes > 1) {
    parts["boundaries"] = lanes * lane_boundary;
    all += parts["boundaries"];
  }
  return {{parts.begin(), parts.end()}, all};
}

}  // namespace furlong
