#include "trainer/train_step.h"

#include <chrono>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/text.h"
#include "checkpoint/tensor_file.h"
#include "model/mtp.h"
#include "ops/reduce.h"
#include "rl/loss_head.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

using Clock = std::chrono::steady_clock;

HeadOptions head_options(const TrainOptions& o) {
  return {.temperature = o.temperature, .chunk_rows = o.head_chunk, .entropy = o.entropy};
}

// Of the model, for Weights' only_mtp.
std::optional<bool> trained_part(const TrainOptions& o) { return o.mtp ? std::nullopt : std::optional<bool>(false); }

// Where a rank keeps the gradients of its weights.
Placement gradients_at(const MeshRank& place, const Weights& weights, const std::optional<bool>& only_mtp) {
  return {.device = weights.device(), .rank = place, .only_mtp = only_mtp, .copies = false};
}

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

// Weighted sums over the step; weights add up to 1 over its tokens, so that these are means.
struct MicroBatch::Sums {
  double policy = 0, clipped = 0, kl = 0, entropy = 0, ppo_kl = 0, ratio = 0, ratio_squared = 0, weight = 0;
  double abs_diff = 0, rollout_kl = 0, rollout_weight = 0;
  double mtp = 0;
  int64_t tokens = 0;
  bool has_reference = false;

  void add(const Sums& s) {
    for (auto member :
         {&Sums::policy, &Sums::clipped, &Sums::kl, &Sums::entropy, &Sums::ppo_kl, &Sums::ratio, &Sums::ratio_squared,
          &Sums::weight, &Sums::abs_diff, &Sums::rollout_kl, &Sums::rollout_weight, &Sums::mtp}) {
      this->*member += s.*member;
    }
    tokens += s.tokens;
    has_reference |= s.has_reference;
  }
};

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
      share_(std::move(memory)),
      arena_(share_.defined() ? Arena(share_) : Arena(0, weights.device())) {
  options_.pack.ranks = mesh.place().data_size;
}

template <class F>
void TrainStep::fit(std::vector<Pack>& packs, F&& body) {
  size_t wanted = 0;
  for (auto& pack : packs) {
    Arena measure = Arena::measuring(weights_.device());
    Exec exec{dry_, measure, mesh_};
    body(exec, pack);
    wanted = std::max(wanted, measure.high_mark());
  }
  if (wanted > arena_.capacity()) {
    if (share_.defined()) log::info("a micro-batch needs {} of working memory, more than planned", human_bytes(wanted));
    share_ = {};
    stream_.synchronize();
    arena_ = Arena(0, weights_.device());  // the old one goes first
    arena_ = Arena(wanted + wanted / 8, weights_.device());
  }
  if (share_.defined()) share_.enter();
}

void MicroBatch::mtp_loss(Exec& exec, Flight& f, Weights& grads, Sums& sums) {
  const Arena::Scope scope(exec.arena);
  Pack& pack = *f.pack;
  MtpSaved saved;
  const Tensor next = on_device(exec.stream, exec.arena, "mtp.next_tokens",
                                Tensor(pack.next_tokens.data(), DType::i32, {f.batch.rows()}));
  const Tensor m = mtp_forward(exec, config_, weights_, f.hidden, next, f.batch, {}, &saved);
  const Tensor dm = exec.arena.make("mtp.dm", weights_.dtype(), {m.rows(), config_.hidden_size});
  const double factor = options_.mtp_factor / static_cast<double>(config_.mtp_num_layers);
  loss_head(exec, weights_, m, head_rows(pack.mtp_rows), {.temperature = 1, .chunk_rows = options_.head_chunk},
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
          if (spec.part != part || !sum.defined()) return;
          add(stream, sum, own);
          set_zero(stream, own);
        },
        grads_, partial_);
  }
  if (told != nullptr) told->gradients_done(stream, grads_, part);
}

void MicroBatch::policy_loss(Exec& exec, Flight& f, const Samples& samples, Weights& grads) {
  const Pack& pack = *f.pack;
  const auto& [trajectories, targets, sums] = samples;
  loss_head(
      exec, weights_, f.hidden, head_rows(pack.rows), head_options(options_),
      [&](size_t i, double log_prob, double entropy) {
        const LossRow& row = pack.rows[i];
        const auto sample = static_cast<size_t>(row.sample), offset = static_cast<size_t>(row.offset);
        const Trajectory& t = *trajectories[sample];
        sums.tokens++;
        sums.weight += row.weight;
        if (options_.objective == Objective::supervised) {
          sums.policy -= row.weight * log_prob;
          return HeadGradient{.d_log_prob = -row.weight};
        }
        const TokenTargets& target = targets[sample];
        TokenInputs in{.log_prob = log_prob, .advantage = target.advantage};
        if (target.old_log_probs) in.old_log_prob = (*target.old_log_probs)[offset];
        if (target.ref_log_probs) in.ref_log_prob = (*target.ref_log_probs)[offset];
        const TokenLoss loss = token_loss(in, options_.loss);
        sums.policy += row.weight * loss.policy;
        sums.clipped += row.weight * loss.clipped;
        sums.kl += row.weight * loss.kl;
        sums.has_reference |= in.ref_log_prob.has_value();
        sums.entropy += row.weight * entropy;
        sums.ppo_kl += row.weight * (in.old_log_prob ? *in.old_log_prob - log_prob : 0);
        sums.ratio += row.weight * loss.ratio;
        sums.ratio_squared += row.weight * loss.ratio * loss.ratio;
        if (!t.rollout_log_probs.empty()) {
          const double sampled = t.rollout_log_probs[offset];
          // The trainer's own estimate of the sampling policy: the old log-prob where one was computed.
          const double trained = in.old_log_prob.value_or(static_cast<double>(static_cast<float>(log_prob)));
          sums.abs_diff += row.weight * std::abs(trained - sampled);
          sums.rollout_kl += row.weight * k3(sampled - trained);
          sums.rollout_weight += row.weight;
        }
        return HeadGradient{.d_log_prob = row.weight * loss.d_log_prob,
                            .d_entropy = -row.weight * options_.loss.entropy_coef};
      },
      f.dhidden, grads.lm_head);
}

void MicroBatch::forward(Exec& exec, Flight& f, const Samples& samples) {
  Weights& grads = accumulated();
  f.batch = placed(exec, f.pack->batch.batch());
  f.saved.recompute = options_.recompute;
  f.hidden = model_forward(exec, config_, weights_, f.batch, &f.saved);
  f.dhidden = exec.arena.make("train.dhidden", weights_.dtype(), {f.hidden.rows(), config_.hidden_size});
  policy_loss(exec, f, samples, grads);
  part_done(exec.stream, head_part(config_), f.told);
  if (!options_.mtp) return;
  mtp_loss(exec, f, grads, samples.sums);
  part_done(exec.stream, mtp_part(config_), f.told);
}

void MicroBatch::backward(Exec& exec, Flight& f) {
  model_backward(exec, config_, weights_, f.saved, f.dhidden, f.batch, accumulated(),
                 [&](int part) { part_done(exec.stream, part, f.told); });
}

std::vector<Pack> TrainStep::packs_of(const std::vector<const Trajectory*>& trajectories, bool mtp) const {
  return packs_of_rank(pack_step(trajectories, options_.pack, options_.per_token, mtp), options_.pack,
                       mesh_.place().data);
}

// Each row is counted once, by the first tensor parallel rank that has it.
MicroBatch::Sums TrainStep::over_ranks(const Sums& mine) const {
  if (mesh_.is_alone()) return mine;
  const auto messages = mesh_.world().gather_bytes({reinterpret_cast<const char*>(&mine), sizeof mine});
  Sums all;
  for (size_t r = 0; r < messages.size(); r++) {
    const MeshRank m = mesh_rank(mesh_.place().sizes, static_cast<int64_t>(r), mesh_.place().ranks());
    if (m.tensor != 0 || m.stage + 1 != m.sizes.pipeline) continue;
    Sums one;
    std::memcpy(&one, messages[r].data(), sizeof one);
    all.add(one);
  }
  return all;
}

Metrics TrainStep::run(const std::vector<const Trajectory*>& trajectories, const std::vector<TokenTargets>& targets) {
  auto packs = packs_of(trajectories, options_.mtp);
  Sums mine, unused;
  const auto micro_batch = [&](Exec& exec, Pack& pack, Sums& sums, Optimizer* told) {
    const Arena::Scope scope(exec.arena);
    Flight flight{.pack = &pack, .told = told};
    forward(exec, flight, {trajectories, targets, sums});
    backward(exec, flight);
  };
  fit(packs, [&](Exec& exec, Pack& pack) { micro_batch(exec, pack, unused, nullptr); });
  grads_.zero(stream_);
  Exec exec{stream_, arena_, mesh_};
  const auto begun = Clock::now();
  for (auto& pack : packs) micro_batch(exec, pack, mine, &pack == &packs.back() ? &optimizer_ : nullptr);
  optimizer_.reduce(stream_, grads_);
  stream_.synchronize();
  const auto learnt = Clock::now();
  const Sums sums = over_ranks(mine);
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
  const std::chrono::duration<double> gradients = learnt - begun, update = Clock::now() - learnt;
  Metrics m = metrics_of(sums, loss, result);
  m.emplace_back("perf/gradients_time", gradients.count());
  m.emplace_back("perf/optimizer_time", update.count());
  m.emplace_back("train/skipped_steps", static_cast<double>(skipped_));
  return m;
}

Metrics TrainStep::metrics_of(const Sums& sums, double loss, const StepResult& result) const {
  Metrics m = {{"train/loss", loss}, {"train/grad_norm", result.grad_norm}, {"train/lr-pg_0", result.lr}};
  if (options_.objective == Objective::policy) {
    m.emplace_back("train/pg_loss", sums.policy);
    m.emplace_back("train/pg_clipfrac", sums.clipped);
    m.emplace_back("train/ppo_kl", sums.ppo_kl);
    m.emplace_back("train/ess_ratio", sums.ratio * sums.ratio / (sums.weight * sums.ratio_squared));
    if (sums.has_reference) m.emplace_back("train/kl_loss", sums.kl);
    if (options_.entropy) m.emplace_back("train/entropy_loss", sums.entropy);
    if (sums.rollout_weight > 0) {
      m.emplace_back("train/train_rollout_logprob_abs_diff", sums.abs_diff / sums.rollout_weight);
      m.emplace_back("train/train_rollout_kl", sums.rollout_kl / sums.rollout_weight);
    }
  }
  if (options_.mtp) m.emplace_back("train/mtp_loss", sums.mtp);
  return m;
}

std::vector<std::vector<float>> TrainStep::score(const Weights& weights,
                                                 const std::vector<const Trajectory*>& trajectories) {
  std::vector<std::vector<float>> scores(trajectories.size());
  for (size_t i = 0; i < trajectories.size(); i++)
    scores[i].assign(static_cast<size_t>(trajectories[i]->response_length), 0.0f);
  auto packs = packs_of(trajectories, false);
  std::vector<TokenScore> mine;
  const auto body = [&](Exec& exec, Pack& pack) {
    const Arena::Scope scope(exec.arena);
    const Tensor hidden = model_forward(exec, config_, weights, placed(exec, pack.batch.batch()), nullptr);
    if (!is_last_stage()) return;
    std::vector<double> log_probs(pack.rows.size());
    HeadOptions head = head_options(options_);
    head.entropy = false;
    score_rows(exec, weights, hidden, head_rows(pack.rows), head, log_probs, {});
    if (exec.stream.is_dry() || mesh_.place().tensor != 0) return;
    const Range here = block_of(pack.batch.rows(), mesh_.place().context, mesh_.place().sizes.context);
    for (size_t i = 0; i < pack.rows.size(); i++) {
      const LossRow& row = pack.rows[i];
      if (here.begin <= row.row && row.row < here.end)
        mine.push_back({row.sample, row.offset, static_cast<float>(log_probs[i])});
    }
  };
  fit(packs, body);
  Exec exec{stream_, arena_, mesh_};
  for (auto& pack : packs) body(exec, pack);
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
  std::vector<std::string> whole;
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
                                        const TrainOptions& options, int64_t tokens, int64_t segments) {
  struct Measured : MicroBatch {
    using MicroBatch::backward, MicroBatch::Flight, MicroBatch::forward, MicroBatch::Sums;
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
  const Mesh mesh(weights.rank());
  Measured batch(config, weights, options, mesh);
  Arena measure = Arena::measuring(weights.device());
  Stream dry = Stream::dry(threads, weights.device());
  Exec exec{dry, measure, mesh};
  Measured::Sums unused;
  Measured::Flight flight{.pack = &packs.front()};
  batch.forward(exec, flight, {picked, std::vector<TokenTargets>(picked.size()), unused});
  batch.backward(exec, flight);
  std::map<std::string, uint64_t> parts;
  for (const auto& [name, bytes] : measure.at_high_mark()) parts[name.substr(0, name.find('.'))] += bytes;
  return {{parts.begin(), parts.end()}, measure.high_mark()};
}

}  // namespace furlong
