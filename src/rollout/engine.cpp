#include "rollout/engine.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <utility>

#include "base/error.h"
#include "model/model.h"
#include "ops/reduce.h"
#include "rollout/round.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

std::string bytes_of_pools(const MemoryOptions& o) { return fmt::format("{} {}", o.pages, o.slots); }

MemoryOptions smaller_pools(MemoryOptions mine, const std::string& theirs) {
  int64_t pages = 0, slots = 0;
  CHECK(std::sscanf(theirs.c_str(), "%" SCNd64 " %" SCNd64, &pages, &slots) == 2, "pools of \"{}\"", theirs);
  mine.pages = std::min(mine.pages, pages);
  mine.slots = std::min(mine.slots, slots);
  return mine;
}

// Whether steps can be recorded: what a rank sends to others in one must not depend on what they or it hold.
bool may_record(const Mesh& mesh) {
  const MeshRank& place = mesh.place();
  return place.row_parts() == 1 && place.sizes.pipeline == 1 &&
         (mesh.experts().size() == 1 || mesh.dispatcher() == Dispatcher::flex);
}

// What a step consists of: only decoding rows, one or 1 + drafts a sequence; nothing at all, which goes with any; or
// something else.
enum class StepKind : uint8_t { any, plain, drafted, other };

// What all ranks of the group do, `other` where they differ, and the most sequences of any of them.
std::pair<StepKind, int64_t> agree(Group& group, StepKind kind, int64_t sequences) {
  if (group.size() == 1) return {kind, sequences};
  for (const std::string& theirs : group.gather_bytes(fmt::format("{} {}", static_cast<int>(kind), sequences))) {
    int other = 0;
    int64_t count = 0;
    CHECK(std::sscanf(theirs.c_str(), "%d %" SCNd64, &other, &count) == 2, "a step of \"{}\"", theirs);
    const auto of_other = static_cast<StepKind>(other);
    if (kind == StepKind::any) kind = of_other;
    if (of_other != StepKind::any && of_other != kind) kind = StepKind::other;
    sequences = std::max(sequences, count);
  }
  return {kind, sequences};
}

}  // namespace

Engine::Engine(const ModelConfig& config, const Weights& weights, const EngineOptions& options, ThreadPool& threads,
               Share memory, const Mesh& mesh)
    : config_(config),
      weights_(weights),
      mesh_(mesh),
      options_(options),
      stream_(threads, weights.device()),
      share_(std::move(memory)),
      arena_(0),
      policy_(options.drafts, options.step_costs) {
  const ModelConfig kept = remembered_model(config, weights.rank());
  EngineNeeds needs = engine_needs(config, weights, options, threads);
  if (in_lockstep()) {
    for (const std::string& theirs : mesh.world().gather_bytes(bytes_of_pools(needs.memory))) {
      needs.memory = smaller_pools(needs.memory, theirs);
    }
  }
  const size_t pools = RolloutMemory::block_bytes(kept, weights.dtype(), needs.memory, weights.device());
  const auto place_unread = [&](void* data) {
    if (needs.unread > 0)
      unread_ = Tensor(data, weights.dtype(), {most_unread(options), config.hidden_size}, weights.device());
  };
  const auto place_packs = [&](void* memory) {
    if (needs.packs == 0) return;
    packs_.emplace(weights_of_products(weights, options), memory);
    stream_.use_packs(&*packs_);
  };
  if (share_.defined()) {
    share_ = share_.part(0, pools + needs.arena + needs.unread + needs.packs);
    memory_ = std::make_unique<RolloutMemory>(kept, weights.dtype(), needs.memory, &stream_, share_.part(0, pools));
    arena_ = Arena(share_.part(pools, needs.arena));
    place_unread(share_.part(pools + needs.arena, needs.unread).data());
    place_packs(share_.part(pools + needs.arena + needs.unread, needs.packs).data());
  } else {
    memory_ = std::make_unique<RolloutMemory>(kept, weights.dtype(), needs.memory, &stream_);
    arena_ = Arena(needs.arena, weights.device());
    own_unread_ = Buffer(needs.unread, weights.device());
    place_unread(own_unread_.data());
    own_packs_ = Buffer(needs.packs);
    place_packs(own_packs_.data());
  }
  scheduler_ = std::make_unique<Scheduler>(*memory_, SchedulerOptions{.max_running = options.max_running,
                                                                      .drafts = options.drafts,
                                                                      .margin = options.margin,
                                                                      .share_prefixes = options.share_prefixes,
                                                                      .keep_prefixes = options.keep_prefixes});
  CHECK(options.prefill_budget % delta_chunk == 0 && options.prefill_budget > 0, "prefill budget {}",
        options.prefill_budget);
  CHECK(!options.record_routes || (weights.rank().row_parts() == 1 && weights.rank().sizes.pipeline == 1),
        "routes of a part of the rows or layers");
  CHECK(options.drafts == 0 || !weights.mtp.empty(), "drafts without an MTP head");
  CHECK(weights.rank().ranks() == mesh.place().ranks(), "weights for {} ranks on {}", weights.rank().ranks(),
        mesh.place().ranks());
  const bool graphs = !options.graph_batches.empty() && !options.record_routes;
  if (weights.device() == Device::cuda && graphs && may_record(mesh)) {
    const int64_t pages = pages_of_longest(options);
    graphs_ = std::make_unique<DecodeGraphs>(stream_, options.graph_batches, 1 + options.drafts, pages);
    if (may_leave_drafts_out(options)) {
      plain_graphs_ = std::make_unique<DecodeGraphs>(stream_, options.graph_batches, 1, pages);
    }
  }
}

Engine::~Engine() = default;

// Before the memory is used: others may have had it since.
void Engine::enter() {
  if (std::exchange(awake_, true)) return;
  if (share_.defined() && share_.enter()) {
    scheduler_->cache().clear();
    memory_->reset();
    packs_are_old_ = true;
  }
  if (packs_ && std::exchange(packs_are_old_, false)) packs_->fill(stream_);
  measure_speculation();
}

// Others may use the memory of an engine without work.
void Engine::rest() {
  if (!scheduler_->idle()) return;
  stream_.synchronize();
  awake_ = false;
}

std::vector<Completion> Engine::generate(std::span<const Request> requests, const Progress& progress) {
  size_t wanted = 0;
  std::vector<size_t> order;
  for (size_t i = 0; i < requests.size(); i++) {
    scheduler_->check(requests[i], i);
    wanted += static_cast<size_t>(requests[i].samples);
    order.push_back(i);
  }
  // What ends last starts first.
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return requests[a].expected_new > requests[b].expected_new; });
  packs_are_old_ = packs_are_old_ || (!awake_ && !options_.keep_prefixes);
  enter();
  std::vector<Completion> done;
  std::vector<uint64_t> ids;
  for (const size_t i : order) {
    ids.push_back(scheduler_->submit(requests[i], [&done, i](const Emitted& e) {
      if (e.finished == nullptr) return;
      done.push_back(*e.finished);
      done.back().request = i;
    }));
  }
  try {
    while (any_left(done.size() < wanted)) {
      advance();
      if (progress) progress(done.size(), stats_.emitted);
    }
  } catch (...) {
    scheduler_->forget(ids);
    scheduler_->cache().clear();
    rest();
    throw;
  }
  if (!options_.keep_prefixes) scheduler_->cache().clear();
  rest();
  std::sort(done.begin(), done.end(), [](const Completion& a, const Completion& b) {
    return a.request != b.request ? a.request < b.request : a.sample < b.sample;
  });
  return done;
}

uint64_t Engine::submit(Request request, Sink sink) {
  CHECK(!in_lockstep(), "requests that come and go on {} ranks", mesh_.place().ranks());
  return scheduler_->submit(std::move(request), std::move(sink));
}

void Engine::sleep() {
  CHECK(!stepping_, "sleep within a step");
  scheduler_->preempt_all();
  stream_.synchronize();
  awake_ = false;
  packs_are_old_ = true;
}

void Engine::set_weights_version(uint64_t version) {
  CHECK(idle() || !awake_, "weights that change while requests run");
  if (std::exchange(weights_version_, version) == version) return;
  scheduler_->cache().clear();
  packs_are_old_ = true;
}

void Engine::cancel(uint64_t request) { scheduler_->cancel(request); }

bool Engine::step() {
  if (scheduler_->idle()) return false;
  enter();
  advance();
  rest();
  return true;
}

void Engine::advance() {
  CHECK(!stepping_, "a step within a step");
  scheduler_->schedule();
  stats_.preemptions += scheduler_->preempted();
  stats_.shared_rows += scheduler_->shared_rows();
  {
    const Arena::Scope scope(arena_);
    Round round;
    run(round);
  }
  const auto ended = scheduler_->retire();
  stepping_ = true;
  const auto done = [&](void*) { stepping_ = false; };
  const std::unique_ptr<void, decltype(done)> guard(this, done);
  for (const auto& sample : scheduler_->running()) tell(*sample, false);
  for (const auto& sample : ended) tell(*sample, true);
}

void Engine::tell(Sample& s, bool finished) {
  const Completion& c = s.out;
  if (!s.job->sink || (!finished && s.told == c.tokens.size())) return;
  const size_t from = std::exchange(s.told, c.tokens.size());
  Emitted e{.request = c.request, .sample = c.sample, .tokens = {}, .log_probs = {}, .alternatives = {}};
  e.tokens = std::span(c.tokens).subspan(from);
  e.log_probs = std::span(c.log_probs).subspan(from);
  if (!c.alternatives.empty()) e.alternatives = std::span(c.alternatives).subspan(from);
  if (finished) e.finished = &c;
  s.job->sink(e);
}

bool Engine::any_left(bool here) {
  if (!in_lockstep()) return here;
  const auto all = mesh_.world().gather_bytes(here ? "1" : "");
  return std::any_of(all.begin(), all.end(), [](const std::string& rank) { return !rank.empty(); });
}

Tensor Engine::all_rows(Tensor here, int64_t rows) {
  const int64_t parts = mesh_.place().row_parts();
  if (parts == 1 || !here.defined()) return here;
  const Tensor all = arena_.make("rollout.hidden", here.dtype(), {rows, here.dim(1)});
  std::vector<Tensor> to;
  for (int64_t r = 0; r < parts; r++) {
    const Range block = block_of(rows, r, parts);
    to.push_back(all.rows(block.begin, block.end));
  }
  mesh_.rows().exchange(stream_, to, std::vector<Tensor>(to.size(), here));
  return all;
}

void Engine::run(Round& round) {
  build(round);
  stats_.steps++;
  const Tensor hidden = round.batch.rows() > 0 || in_lockstep() ? forward(round) : Tensor();
  run_pieces(round, hidden);
  draw(round, hidden);
  if (options_.drafts > 0) extend_drafts(round, hidden);
  for (Sample* s : round.fresh) s->fresh = nullptr;
  keep_states(round, hidden);
}

// Where a step of so many rows leaves its routes; undefined unless they are recorded.
BatchRoutes Engine::routes_of(int64_t rows) {
  if (!options_.record_routes) return {};
  const int64_t all = config_.num_layers * rows, k = config_.experts_per_token;
  return {.ids = arena_.make("rollout.ids", DType::i32, {all, k}),
          .weights = arena_.make("rollout.weights", DType::f32, {all, k})};
}

// The routes of the rows of a step, from layer after layer to row after row.
void Engine::take_routes(Round& round, const BatchRoutes& routes) {
  const auto wants = [](const auto& job) { return job->request.routes; };
  const bool wanted =
      std::any_of(round.pieces.begin(), round.pieces.end(),
                  [&](auto& p) { return p.prefix && wants(p.prefix->job); }) ||
      std::any_of(round.decoding.begin(), round.decoding.end(), [&](const Sample* s) { return wants(s->job); });
  if (!routes.ids.defined() || !wanted) return;
  const OnHost ids(routes.ids), weights(routes.weights);
  const int64_t rows = round.batch.rows(), layers = config_.num_layers, k = config_.experts_per_token;
  round.routes.width = layers * k;
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t layer = 0; layer < layers; layer++) {
      const int64_t at = (layer * rows + row) * k;
      for (int64_t i = at; i < at + k; i++) {
        round.routes.ids.push_back(static_cast<uint16_t>(ids.view().as<int32_t>()[i]));
        round.routes.weights.push_back(weights.view().as<float>()[i]);
      }
    }
  }
}

// Appends the routes of a row of the step, if the request wants them.
void Engine::record(const Round& round, const Request& request, int64_t row, RouteRows& to) const {
  const int64_t width = round.routes.width;
  if (!request.routes || width == 0) return;
  to.width = width;
  const auto* ids = round.routes.ids.data() + row * width;
  const auto* weights = round.routes.weights.data() + row * width;
  to.ids.insert(to.ids.end(), ids, ids + width);
  to.weights.insert(to.weights.end(), weights, weights + width);
}

// Rows of pieces are in the memory; a finished prompt keeps its last hidden row for its samples.
void Engine::run_pieces(Round& round, Tensor hidden) {
  int64_t row = 0;
  for (const Piece& piece : round.pieces) {
    const int64_t first = std::exchange(row, row + piece.rows);
    const int64_t end = piece.memory().length = piece.begin + piece.rows;
    if (piece.sample != nullptr) {  // its routes are those that its tokens were drawn with
      piece.sample->again = end < piece.sample->rows();
      continue;
    }
    Prefix& prefix = *piece.prefix;
    prefix.done = end;
    for (int64_t r = first; r < row; r++) record(round, prefix.job->request, r, *prefix.routes);
    if (!prefix.complete() || !is_last_stage()) continue;
    prefix.hidden = copy_of(hidden.rows(row - 1, row));
  }
}

// A hidden row (1,H) that outlives the step, in memory that nobody else holds any more.
std::shared_ptr<OwnedTensor> Engine::copy_of(Tensor row) {
  auto free = std::find_if(hidden_rows_.begin(), hidden_rows_.end(), [](const auto& r) { return r.use_count() == 1; });
  if (free == hidden_rows_.end()) {
    hidden_rows_.push_back(std::make_shared<OwnedTensor>(
        weights_.dtype(), std::initializer_list<int64_t>{1, config_.hidden_size}, weights_.device()));
    free = hidden_rows_.end() - 1;
  }
  convert(stream_, **free, row);
  return *free;
}

// What this step has completed is kept where other sequences begin so; last of all, when every layer's rows are there.
void Engine::keep_states(const Round& round, Tensor hidden) {
  PrefixCache& cache = scheduler_->cache();
  const auto keep = [&](std::span<const int32_t> tokens, SequenceMemory at, int64_t row,
                        std::shared_ptr<const RouteRows> routes, bool evict) {
    at.length = std::ssize(tokens);
    const bool leads = options_.drafts > 0 && is_last_stage();
    cache.keep(tokens, at, leads ? copy_of(hidden.rows(row, row + 1)) : nullptr, std::move(routes), evict);
  };
  int64_t row = 0;
  for (const Piece& piece : round.pieces) {
    row += piece.rows;
    if (!piece.prefix) continue;
    const Job& job = *piece.prefix->job;
    const int64_t end = piece.begin + piece.rows;
    if (end != cache.next_stop(job.chain, piece.begin)) continue;
    keep(std::span(job.request.prompt).first(static_cast<size_t>(end)), piece.prefix->memory, row - 1,
         job.request.routes ? piece.prefix->routes : nullptr, true);
  }
  if (!options_.keep_prefixes) return;
  // A running response's newest complete chunk, in place of the one before it, for the next turn of a conversation.
  // Sequences that start go before it.
  for (size_t i = 0; i < round.decoding.size(); i++) {
    Sample& s = *round.decoding[i];
    const int64_t before = s.memory.length - round.accepted[i], rows = s.memory.length / delta_chunk * delta_chunk;
    if (s.ended || rows <= before) continue;
    std::vector<int32_t> tokens;
    for (int64_t p = 0; p < rows; p++) tokens.push_back(s.token(p));
    if (s.kept > 0) cache.drop(std::span(tokens).first(static_cast<size_t>(s.kept)));
    s.kept = rows;
    keep(tokens, s.memory, round.first_row[i] + rows - 1 - before, nullptr, false);
  }
}

Tensor Engine::forward(Round& round) {
  Exec exec{stream_, arena_, mesh_};
  const auto running = std::ssize(round.decoding);
  if (graphs_ != nullptr) {
    StepKind kind = StepKind::other;
    if (round.pieces.empty()) {
      kind = running == 0                                                ? StepKind::any
             : round.batch.rows() == running * (1 + options_.drafts)     ? StepKind::drafted
             : round.batch.rows() == running && plain_graphs_ != nullptr ? StepKind::plain
                                                                         : StepKind::other;
    }
    const auto [agreed, most] = agree(mesh_.experts(), kind, running);
    if (most > 0 && (agreed == StepKind::drafted || agreed == StepKind::plain)) {
      DecodeGraphs& graphs = agreed == StepKind::drafted ? *graphs_ : *plain_graphs_;
      const Tensor tokens = round.batch.batch().tokens;
      const Tensor hidden =
          graphs.run(arena_, *memory_, round.sequences, {tokens.as<int32_t>(), static_cast<size_t>(tokens.rows())},
                     most, [&](Batch batch) {
                       batch.expert_rows.assign(static_cast<size_t>(mesh_.experts().size()), batch.rows());
                       return model_forward(exec, config_, weights_, batch, nullptr);
                     });
      if (hidden.defined()) return hidden;
    }
  }
  Batch batch = placed(exec, round.batch.batch(&memory_->view(round.sequences, round.speculative)));
  batch.routes = routes_of(batch.rows());
  const Tensor hidden = all_rows(model_forward(exec, config_, weights_, batch, nullptr), batch.rows());
  take_routes(round, batch.routes);
  return hidden;
}

void Engine::build(Round& round) {
  int64_t budget = options_.prefill_budget;
  const auto add = [&](Piece piece, int64_t left) {
    // A piece that is not a sequence's last ends on a multiple of the chunk.
    piece.rows = left <= budget ? left : budget / delta_chunk * delta_chunk;
    if (piece.prefix) {
      const int64_t stop = scheduler_->cache().next_stop(piece.prefix->job->chain, piece.begin);
      if (stop > 0) piece.rows = std::min(piece.rows, stop - piece.begin);
    }
    if (piece.rows == 0) return;
    std::vector<int32_t> tokens;
    for (int64_t p = piece.begin; p < piece.begin + piece.rows; p++) tokens.push_back(piece.token(p));
    round.batch.add(tokens.data(), piece.rows, piece.begin);
    round.sequences.push_back(&piece.memory());
    round.speculative.push_back(0);
    budget -= piece.rows;
    stats_.prefill_rows += piece.rows;
    round.pieces.push_back(std::move(piece));
  };
  for (const auto& sample : scheduler_->running()) {
    const int64_t begin = sample->memory.length;
    if (sample->again) add({.prefix = {}, .sample = sample.get(), .begin = begin}, sample->rows() - begin);
  }
  for (const auto& prefix : scheduler_->prefixes()) {
    add({.prefix = prefix, .sample = nullptr, .begin = prefix->done}, prefix->job->prompt() - prefix->done);
  }
  for (const auto& sample : scheduler_->running()) {
    if (sample->again) continue;
    if (sample->fresh != nullptr) {
      round.fresh.push_back(sample.get());
      continue;
    }
    add_decoding(round, *sample);
  }
}

void Engine::add_decoding(Round& round, Sample& sample) {
  std::vector<int32_t> rows = {sample.root()};
  rows.insert(rows.end(), sample.drafts.begin(), sample.drafts.end());
  round.decoding.push_back(&sample);
  round.first_row.push_back(round.batch.rows());
  round.batch.add(rows.data(), std::ssize(rows), sample.memory.length);
  round.sequences.push_back(&sample.memory);
  round.speculative.push_back(1);
  stats_.decode_rows += std::ssize(rows);
}

}  // namespace furlong
