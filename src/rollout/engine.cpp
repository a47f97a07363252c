#include "rollout/engine.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "model/model.h"
#include "model/mtp.h"
#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/reduce.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

// Rows whose logits are held at once.
int64_t sample_chunk(Device device) { return device == Device::cpu ? 64 : 512; }

// Scrap, a prompt and one sample of it.
constexpr int64_t least_slots = 3;

int64_t pages_of_longest(const EngineOptions& o) { return (o.max_tokens + o.drafts + o.page - 1) / o.page + 1; }

// As many pages and slots as memory_bytes hold, at most what the requests can use.
MemoryOptions memory_options(const ModelConfig& whole, const Weights& w, const EngineOptions& o) {
  const ModelConfig c = remembered_model(whole, w.rank());
  MemoryOptions m{.page = o.page, .pages = 0, .slots = 0, .draft_rows = 1 + o.drafts, .mtp = o.drafts > 0};
  // Every running sample and the prompts that wait for one.
  const int64_t per_sequence = pages_of_longest(o);
  m.slots = 2 + o.max_running + std::max<int64_t>(1, o.max_running / 4);
  m.pages = 1 + m.slots * per_sequence;
  if (o.memory_bytes > 0) {
    const size_t slot = std::max<size_t>(1, RolloutMemory::slot_bytes(c, w.dtype(), m, w.device()));
    const size_t page = std::max<size_t>(1, RolloutMemory::page_bytes(c, w.dtype(), m));
    // Little memory means fewer sequences at once, not sequences without pages: slots stop at half of it, or where
    // the longest requests of all of them still have their pages.
    const size_t sequences = o.memory_bytes / (slot + static_cast<size_t>(per_sequence) * page);
    auto slots = static_cast<int64_t>(std::max(sequences, o.memory_bytes / 2 / slot));
    // They leave one longest request its pages.
    const size_t longest = static_cast<size_t>(per_sequence + 2) * page;
    const size_t beside = o.memory_bytes > longest ? o.memory_bytes - longest : 0;
    slots = std::min(slots, static_cast<int64_t>(beside / slot));
    m.slots = std::min(m.slots, std::max(least_slots, slots));
    const size_t taken = static_cast<size_t>(m.slots) * slot;
    const size_t left = o.memory_bytes > taken ? o.memory_bytes - taken : 0;
    m.pages = std::min(m.pages, std::max<int64_t>(2, static_cast<int64_t>(left / page)));
  }
  return m;
}

// The working memory of the largest step, found by running it dry.
size_t arena_bytes_of(const ModelConfig& c, const Weights& w, const EngineOptions& o, ThreadPool& threads) {
  Arena measure = Arena::measuring(w.device());
  Stream dry = Stream::dry(threads, w.device());
  const Mesh mesh = Mesh::planned(w.rank());
  Exec exec{dry, measure, mesh};
  BatchBuilder builder;
  const std::vector<int32_t> tokens(static_cast<size_t>(o.prefill_budget + o.max_running * (1 + o.drafts)), 0);
  builder.add(tokens.data(), static_cast<int64_t>(tokens.size()));
  const Batch batch = placed(exec, builder.batch());
  Tensor hidden = model_forward(exec, c, w, batch, nullptr);
  if (o.drafts > 0 && hidden.defined()) mtp_forward(exec, c, w, hidden, batch.tokens, batch, {}, nullptr);
  for (const char* name : {"sample.rows", "mtp.hidden", "mtp.rows"}) {
    measure.make(name, w.dtype(), {static_cast<int64_t>(tokens.size()), c.hidden_size});
  }
  if (w.rank().row_parts() > 1) {
    for (const char* name : {"rollout.hidden", "mtp.all"}) {
      measure.make(name, w.dtype(), {static_cast<int64_t>(tokens.size()), c.hidden_size});
    }
  }
  const int64_t tensor = w.rank().sizes.tensor, chunk = sample_chunk(w.device());
  measure.make("sample.logits", DType::f32, {chunk, (c.vocab_size + tensor - 1) / tensor});
  if (tensor > 1) measure.make("sample.columns", DType::f32, {2 * (chunk / tensor + 1), c.vocab_size});
  measure.make("sample.slack", DType::u8, {1 << 20});
  return measure.high_mark();
}

}  // namespace

EngineNeeds engine_needs(const ModelConfig& c, const Weights& w, const EngineOptions& o, ThreadPool& threads) {
  EngineNeeds needs{.memory = memory_options(c, w, o)};
  const ModelConfig kept = remembered_model(c, w.rank());
  const auto bytes = RolloutMemory::bytes_of(kept, w.dtype(), needs.memory, w.device());
  needs.pages = bytes.pages;
  needs.slots = bytes.slots;
  needs.arena = arena_bytes_of(c, w, o, threads);
  needs.least =
      static_cast<size_t>(least_slots) * RolloutMemory::slot_bytes(kept, w.dtype(), needs.memory, w.device()) +
      static_cast<size_t>(pages_of_longest(o) + 2) * RolloutMemory::page_bytes(kept, w.dtype(), needs.memory);
  needs.block = RolloutMemory::block_bytes(kept, w.dtype(), needs.memory, w.device()) + needs.arena;
  return needs;
}

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

// The most sequences of any rank of the group; -1 where one of them has -1.
int64_t most_running(Group& group, int64_t here) {
  if (group.size() == 1) return here;
  int64_t most = here;
  bool all = true;
  for (const std::string& theirs : group.gather_bytes(std::to_string(here))) {
    const int64_t count = std::stoll(theirs);
    most = std::max(most, count);
    all = all && count >= 0;
  }
  return all ? most : -1;
}

// One row's draw as it travels.
struct Draw {
  int32_t row = 0, token = 0;
  float log_prob = 0;
};

// Fills in the rows that others have drawn: ranks with the same batch, then the other stages of the pipeline.
void share_draws(const Mesh& mesh, const std::vector<Range>& here, std::vector<int32_t>& tokens,
                 std::vector<float>& log_probs) {
  std::string mine;
  const auto append = [&](int64_t row) {
    const auto i = static_cast<size_t>(row);
    const Draw draw{static_cast<int32_t>(row), tokens[i], log_probs.empty() ? 0 : log_probs[i]};
    mine.append(reinterpret_cast<const char*>(&draw), sizeof(draw));
  };
  for (const Range& range : here) {
    for (int64_t row = range.begin; row < range.end; row++) append(row);
  }
  const auto take = [&](const std::string& bytes) {
    for (size_t at = 0; at + sizeof(Draw) <= bytes.size(); at += sizeof(Draw)) {
      Draw draw;
      std::memcpy(&draw, bytes.data() + at, sizeof(draw));
      tokens[static_cast<size_t>(draw.row)] = draw.token;
      if (!log_probs.empty()) log_probs[static_cast<size_t>(draw.row)] = draw.log_prob;
    }
  };
  if (mesh.rows().size() > 1) {
    for (const std::string& bytes : mesh.rows().gather_bytes(mine)) take(bytes);
  }
  if (mesh.pipeline().size() > 1) {
    mine.clear();
    if (mesh.pipeline().rank() + 1 == mesh.pipeline().size()) {
      for (size_t row = 0; row < tokens.size(); row++) append(static_cast<int64_t>(row));
    }
    for (const std::string& bytes : mesh.pipeline().gather_bytes(mine)) take(bytes);
  }
}

}  // namespace

// One segment per working sequence: chunks of prompts first, then running samples.
struct Engine::Round {
  BatchBuilder batch;
  std::vector<std::shared_ptr<Prefix>> prefixes;
  std::vector<int64_t> chunks;     // prompt rows of each prefix in this step
  std::vector<Sample*> decoding;   // samples with a root to run
  std::vector<int64_t> first_row;  // of each decoding sample in the batch
  std::vector<Sample*> fresh;      // samples whose first token is drawn from their prefix's last hidden row
  std::vector<const SequenceMemory*> sequences;
  std::vector<uint8_t> speculative;
  // Accepted rows of each decoding sample, after draw.
  std::vector<int64_t> accepted;
};

Engine::Engine(const ModelConfig& config, const Weights& weights, const EngineOptions& options, ThreadPool& threads,
               Share memory, const Mesh& mesh)
    : config_(config),
      weights_(weights),
      mesh_(mesh),
      options_(options),
      stream_(threads, weights.device()),
      share_(std::move(memory)),
      arena_(0) {
  const ModelConfig kept = remembered_model(config, weights.rank());
  EngineNeeds needs = engine_needs(config, weights, options, threads);
  if (in_lockstep()) {
    for (const std::string& theirs : mesh.world().gather_bytes(bytes_of_pools(needs.memory))) {
      needs.memory = smaller_pools(needs.memory, theirs);
    }
  }
  const size_t pools = RolloutMemory::block_bytes(kept, weights.dtype(), needs.memory, weights.device());
  if (share_.defined()) {
    share_ = share_.part(0, pools + needs.arena);
    memory_ = std::make_unique<RolloutMemory>(kept, weights.dtype(), needs.memory, &stream_, share_.part(0, pools));
    arena_ = Arena(share_.part(pools, needs.arena));
  } else {
    memory_ = std::make_unique<RolloutMemory>(kept, weights.dtype(), needs.memory, &stream_);
    arena_ = Arena(needs.arena, weights.device());
  }
  CHECK(options.prefill_budget % delta_chunk == 0 && options.prefill_budget > 0, "prefill budget {}",
        options.prefill_budget);
  CHECK(options.drafts == 0 || !weights.mtp.empty(), "drafts without an MTP head");
  CHECK(weights.rank().ranks() == mesh.place().ranks(), "weights for {} ranks on {}", weights.rank().ranks(),
        mesh.place().ranks());
  if (weights.device() == Device::cuda && !options.graph_batches.empty() && may_record(mesh)) {
    const int64_t pages = pages_of_longest(options);
    graphs_ = std::make_unique<DecodeGraphs>(stream_, options.graph_batches, 1 + options.drafts, pages);
  }
}

Engine::~Engine() = default;

std::vector<Completion> Engine::generate(std::span<const Request> requests, const Progress& progress) {
  if (share_.defined() && share_.enter()) memory_->reset();
  Scheduler scheduler(requests, *memory_, options_.max_running, options_.drafts);
  std::vector<Completion> done;
  for (scheduler.admit(); any_left(!scheduler.finished()); scheduler.admit()) {
    step(scheduler);
    for (Sample* sample : scheduler.ended) done.push_back(std::move(sample->out));
    scheduler.retire();
    if (progress) progress(done.size(), stats_.emitted);
  }
  stream_.synchronize();  // others may use the memory now
  std::sort(done.begin(), done.end(), [](const Completion& a, const Completion& b) {
    return a.request != b.request ? a.request < b.request : a.sample < b.sample;
  });
  return done;
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

void Engine::step(Scheduler& scheduler) {
  const Arena::Scope scope(arena_);
  Round round;
  build(scheduler, round);
  stats_.steps++;
  const Tensor hidden = round.batch.rows() > 0 || in_lockstep() ? forward(round) : Tensor();
  draw(scheduler, round, hidden);
  if (options_.drafts > 0) extend_drafts(scheduler, round, hidden);
  for (Sample* s : round.fresh) s->fresh = nullptr;
  // Prompt rows are in the memory; a finished prompt keeps its last hidden row for its samples.
  int64_t row = 0;
  for (size_t i = 0; i < round.prefixes.size(); i++) {
    Prefix& prefix = *round.prefixes[i];
    row += round.chunks[i];
    prefix.done += round.chunks[i];
    prefix.memory.length = prefix.done;
    if (prefix.done == static_cast<int64_t>(scheduler.request(prefix.request).prompt.size())) {
      if (!is_last_stage()) continue;
      prefix.hidden = OwnedTensor(weights_.dtype(), {1, config_.hidden_size}, weights_.device());
      convert(stream_, prefix.hidden, hidden.rows(row - 1, row));
    }
  }
}

Tensor Engine::forward(Round& round) {
  Exec exec{stream_, arena_, mesh_};
  const int64_t rows = 1 + options_.drafts;
  const auto running = static_cast<int64_t>(round.decoding.size());
  if (graphs_ != nullptr) {
    const bool decodes = round.prefixes.empty() && round.batch.rows() == running * rows;
    const int64_t most = most_running(mesh_.experts(), decodes ? running : -1);
    if (most > 0) {
      const Tensor tokens = round.batch.batch().tokens;
      const Tensor hidden =
          graphs_->run(arena_, *memory_, round.sequences, {tokens.as<int32_t>(), static_cast<size_t>(tokens.rows())},
                       most, [&](Batch batch) {
                         batch.expert_rows.assign(static_cast<size_t>(mesh_.experts().size()), batch.rows());
                         return model_forward(exec, config_, weights_, batch, nullptr);
                       });
      if (hidden.defined()) return hidden;
    }
  }
  const Batch batch = placed(exec, round.batch.batch(&memory_->view(round.sequences, round.speculative)));
  return all_rows(model_forward(exec, config_, weights_, batch, nullptr), batch.rows());
}

// The MTP head's rows for hidden rows that every rank has.
Tensor Engine::mtp_rows(Tensor hidden, Tensor next_tokens, const Batch& batch, const MemoryView& view) {
  Exec exec{stream_, arena_, mesh_};
  const Range here = rows_here(mesh_, batch.rows());
  const Tensor m =
      mtp_forward(exec, config_, weights_, hidden.rows(here.begin, here.end), next_tokens, batch, view.mtp, nullptr);
  return all_rows(m, batch.rows());
}

void Engine::build(Scheduler& scheduler, Round& round) {
  int64_t budget = options_.prefill_budget;
  for (auto& prefix : scheduler.prefixes()) {
    const auto& prompt = scheduler.request(prefix->request).prompt;
    const int64_t left = static_cast<int64_t>(prompt.size()) - prefix->done;
    // A piece that is not the prompt's last ends on a multiple of the chunk.
    const int64_t rows = left <= budget ? left : budget / delta_chunk * delta_chunk;
    if (rows == 0) continue;
    round.prefixes.push_back(prefix);
    round.chunks.push_back(rows);
    round.batch.add(prompt.data() + prefix->done, rows, prefix->done);
    round.sequences.push_back(&prefix->memory);
    round.speculative.push_back(0);
    budget -= rows;
    stats_.prefill_rows += rows;
  }
  for (auto& sample : scheduler.running()) {
    if (sample->fresh != nullptr) {
      round.fresh.push_back(sample.get());
      continue;
    }
    std::vector<int32_t> rows = {sample->root()};
    rows.insert(rows.end(), sample->drafts.begin(), sample->drafts.end());
    round.decoding.push_back(sample.get());
    round.first_row.push_back(round.batch.rows());
    round.batch.add(rows.data(), static_cast<int64_t>(rows.size()), sample->memory.length);
    round.sequences.push_back(&sample->memory);
    round.speculative.push_back(1);
    stats_.decode_rows += static_cast<int64_t>(rows.size());
  }
}

// Logits over the whole vocabulary of the rows [mine) of `rows`: tensor parallel ranks have columns of them all, and
// trade these for rows.
Tensor Engine::logits_of(Tensor rows, Range& mine) {
  const int64_t n = rows.rows(), ranks = mesh_.place().sizes.tensor;
  const Tensor columns = arena_.make("sample.logits", DType::f32, {n, weights_.lm_head.rows()});
  linear(stream_, columns, rows, weights_.lm_head);
  mine = block_of(n, mesh_.place().tensor, ranks);
  if (ranks == 1) return columns;
  std::vector<Tensor> to, from;
  for (int64_t r = 0; r < ranks; r++) {
    const Range theirs = block_of(n, r, ranks), words = block_of(config_.vocab_size, r, ranks);
    from.push_back(columns.rows(theirs.begin, theirs.end));
    to.push_back(arena_.make("sample.columns", DType::f32, {mine.size(), words.size()}));
  }
  mesh_.tensor().exchange(stream_, to, from);
  const Tensor logits = arena_.make("sample.logits", DType::f32, {mine.size(), config_.vocab_size});
  for (int64_t r = 0; r < ranks; r++) {
    const Range words = block_of(config_.vocab_size, r, ranks);
    convert(stream_, logits.columns(words.begin, words.end), to[static_cast<size_t>(r)]);
  }
  return logits;
}

void Engine::sample_rows(Tensor rows, const std::vector<SampleRow>& keys, std::vector<int32_t>& tokens,
                         std::vector<float>* log_probs) {
  const auto count = static_cast<int64_t>(keys.size());
  tokens.assign(keys.size(), 0);
  std::vector<float> found(log_probs == nullptr ? 0 : keys.size());
  const int64_t chunk = sample_chunk(weights_.device());
  std::vector<Range> drawn_here;
  // Each context parallel rank draws for a part of the rows, with its tensor parallel ones.
  const Range part = block_of(count, mesh_.place().context, mesh_.place().sizes.context);
  for (int64_t begin = part.begin; begin < part.end && is_last_stage(); begin += chunk) {
    const Arena::Scope scope(arena_);
    const int64_t end = std::min(part.end, begin + chunk);
    Range mine;
    const Tensor logits = logits_of(rows.rows(begin, end), mine);
    mine = {begin + mine.begin, begin + mine.end};
    const int64_t n = mine.size();
    if (n == 0) continue;
    // Tokens and log-probs side by side come to the host in one copy.
    const Tensor both = arena_.make("sample.drawn", DType::i32, {log_probs == nullptr ? n : 2 * n});
    const Tensor drawn = both.rows(0, n);
    const Tensor by =
        log_probs == nullptr ? Tensor() : Tensor(both.rows(n, 2 * n).data(), DType::f32, {n}, both.device());
    sample(stream_, drawn, by, logits, {keys.begin() + mine.begin, keys.begin() + mine.end});
    std::vector<int32_t> words(static_cast<size_t>(both.rows()));
    copy(stream_, Tensor(words.data(), DType::i32, {both.rows()}), both);
    std::copy_n(words.begin(), n, tokens.begin() + mine.begin);
    if (by.defined()) std::memcpy(found.data() + mine.begin, words.data() + n, static_cast<size_t>(n) * 4);
    drawn_here.push_back(mine);
  }
  if (in_lockstep()) share_draws(mesh_, drawn_here, tokens, found);
  if (log_probs != nullptr) *log_probs = std::move(found);
}

// to[r] = from[index[r]]; rows whose index is negative hold anything.
void Engine::gather(Tensor to, Tensor from, const std::vector<int32_t>& index) {
  if (from.numel() == 0) return;
  std::vector<int32_t> rows(index);
  for (int32_t& row : rows) row = std::max(row, 0);
  const Arena::Scope scope(arena_);
  const auto n = static_cast<int64_t>(rows.size());
  embed(stream_, to, on_device(stream_, arena_, "gather.index", Tensor(rows.data(), DType::i32, {n})), from);
}

bool Engine::append(const Request& request, Sample& sample, int32_t token, float log_prob) {
  sample.out.tokens.push_back(token);
  sample.out.log_probs.push_back(log_prob);
  stats_.emitted++;
  if (std::find(request.stop_ids.begin(), request.stop_ids.end(), token) != request.stop_ids.end() ||
      (request.stop_when && request.stop_when(sample.out.tokens))) {
    sample.out.reason = FinishReason::stop;
    return true;
  }
  sample.out.reason = FinishReason::length;
  return static_cast<int64_t>(sample.out.tokens.size()) >= request.max_new_tokens;
}

// Draws the target's token at every row that has one, accepts drafts that equal it, and appends what was accepted.
void Engine::draw(Scheduler& scheduler, Round& round, Tensor hidden) {
  std::vector<SampleRow> keys;
  const auto add_key = [&](const Sample& s, int64_t position) {
    RngKey key = s.key;
    key.position = static_cast<uint32_t>(position);
    keys.push_back({key, scheduler.request(s.request).params});
  };
  int64_t count = static_cast<int64_t>(round.fresh.size());
  for (const Sample* s : round.decoding) count += 1 + static_cast<int64_t>(s->drafts.size());
  if (count == 0) return;
  Tensor rows = arena_.make("sample.rows", weights_.dtype(), {count, config_.hidden_size});
  const bool has_hidden = is_last_stage();
  int64_t row = 0;
  for (size_t i = 0; i < round.decoding.size(); i++) {
    const Sample& s = *round.decoding[i];
    const int64_t n = 1 + static_cast<int64_t>(s.drafts.size());
    for (int64_t j = 0; j < n; j++) add_key(s, s.memory.length + 1 + j);
    row += n;
  }
  // The decoding samples' rows stand at the end of the batch, one after another.
  if (row > 0 && has_hidden) {
    convert(stream_, rows.rows(0, row), hidden.rows(round.first_row[0], round.first_row[0] + row));
  }
  for (const Sample* s : round.fresh) {
    if (has_hidden) convert(stream_, rows.rows(row, row + 1), s->fresh->hidden);
    add_key(*s, s->memory.length);
    row++;
  }
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
  sample_rows(rows, keys, tokens, &log_probs);

  size_t at = 0;
  std::vector<SequenceMemory*> committed;
  std::vector<int64_t> lengths;
  for (Sample* s : round.decoding) {
    const size_t drafts = s->drafts.size();
    const Request& request = scheduler.request(s->request);
    size_t accepted = 0;
    while (accepted < drafts && s->drafts[accepted] == tokens[at + accepted]) accepted++;
    if (options_.forced_accept_length > 0) {
      const double rate = options_.forced_accept_length - 1, n = static_cast<double>(s->out.verify_steps);
      accepted = std::min(drafts, static_cast<size_t>(std::floor((n + 1) * rate) - std::floor(n * rate)));
    }
    if (drafts > 0) {
      s->out.verify_steps++;
      s->out.drafted += static_cast<int64_t>(drafts);
      s->out.accepted += static_cast<int64_t>(accepted);
      stats_.verify_steps++;
      stats_.drafted += static_cast<int64_t>(drafts);
      stats_.accepted += static_cast<int64_t>(accepted);
    }
    bool ended = false;
    for (size_t j = 0; j <= accepted && !ended; j++) ended = append(request, *s, tokens[at + j], log_probs[at + j]);
    if (ended) {
      scheduler.ended.push_back(s);
      round.accepted.push_back(0);
    } else {
      committed.push_back(&s->memory);
      lengths.push_back(s->memory.length + static_cast<int64_t>(accepted) + 1);
      round.accepted.push_back(static_cast<int64_t>(accepted) + 1);
    }
    at += drafts + 1;
  }
  memory_->commit(stream_, committed, lengths);
  for (Sample* s : round.fresh) {
    if (append(scheduler.request(s->request), *s, tokens[at], log_probs[at])) scheduler.ended.push_back(s);
    at++;
  }
}

// Runs the MTP head over the rows just accepted (and over prompt rows), with the true hidden states, and lets it
// propose.
void Engine::extend_drafts(Scheduler& scheduler, Round& round, Tensor hidden) {
  BatchBuilder batch;
  std::vector<int32_t> next, source;  // token t+1 of each row; its row of `hidden`, or -1 - i for fresh sample i
  std::vector<const SequenceMemory*> sequences;
  int64_t row = 0;
  const auto add = [&](const SequenceMemory& memory, int64_t position, const std::vector<int32_t>& following) {
    batch.add(following.data(), static_cast<int64_t>(following.size()), position);
    next.insert(next.end(), following.begin(), following.end());
    sequences.push_back(&memory);
  };
  for (size_t i = 0; i < round.prefixes.size(); i++) {
    const Prefix& prefix = *round.prefixes[i];
    const auto& prompt = scheduler.request(prefix.request).prompt;
    // The last prompt row waits for each sample's first token.
    const int64_t end = std::min(prefix.done + round.chunks[i], static_cast<int64_t>(prompt.size()) - 1);
    if (end > prefix.done) {
      add(prefix.memory, prefix.done, {prompt.begin() + prefix.done + 1, prompt.begin() + end + 1});
      for (int64_t t = prefix.done; t < end; t++) source.push_back(static_cast<int32_t>(row + t - prefix.done));
    }
    row += round.chunks[i];
  }
  std::vector<Sample*> proposing;
  std::vector<int32_t> last_row;
  for (size_t i = 0; i < round.decoding.size(); i++) {
    Sample& s = *round.decoding[i];
    const int64_t n = round.accepted[i];
    s.drafts.clear();
    if (n == 0) continue;
    add(s.memory, s.memory.length - n, {s.out.tokens.end() - n, s.out.tokens.end()});
    for (int64_t j = 0; j < n; j++) source.push_back(static_cast<int32_t>(round.first_row[i] + j));
    proposing.push_back(&s);
    last_row.push_back(static_cast<int32_t>(batch.rows() - 1));
  }
  for (size_t i = 0; i < round.fresh.size(); i++) {
    Sample& s = *round.fresh[i];
    if (std::find(scheduler.ended.begin(), scheduler.ended.end(), &s) != scheduler.ended.end()) continue;
    add(s.memory, s.memory.length - 1, {s.root()});
    source.push_back(-1 - static_cast<int32_t>(i));
    proposing.push_back(&s);
    last_row.push_back(static_cast<int32_t>(batch.rows() - 1));
  }
  if (batch.rows() == 0 && !in_lockstep()) return;
  CHECK(!is_last_stage() || hidden.defined() ||
            std::all_of(source.begin(), source.end(), [](int32_t row) { return row < 0; }),
        "rows of a step that ran none");
  Tensor rows =
      arena_.make("mtp.rows", weights_.dtype(), {static_cast<int64_t>(proposing.size()), config_.hidden_size});
  if (is_last_stage()) {
    Tensor inputs = arena_.make("mtp.hidden", weights_.dtype(), {batch.rows(), config_.hidden_size});
    gather(inputs, hidden, source);
    for (int64_t r = 0; r < batch.rows(); r++) {
      const int32_t from = source[static_cast<size_t>(r)];
      if (from < 0) convert(stream_, inputs.rows(r, r + 1), round.fresh[static_cast<size_t>(-1 - from)]->fresh->hidden);
    }
    const Arena::Scope scope(arena_);
    const std::vector<uint8_t> speculative(sequences.size(), 1);
    const MemoryView& view = memory_->view(sequences, speculative);
    Exec exec{stream_, arena_, mesh_};
    const Batch extended = placed(exec, batch.batch(&view));
    const Tensor next_tokens =
        on_device(stream_, arena_, "mtp.next_tokens", Tensor(next.data(), DType::i32, {batch.rows()}));
    gather(rows, mtp_rows(inputs, next_tokens, extended, view), last_row);
  }
  if (!proposing.empty() || in_lockstep()) propose(proposing, rows);
}

// Draws the drafts of each sample: the first from the MTP head's rows (R,H), every further one after running the head
// on the draft before it, with its own output as the hidden state.
void Engine::propose(std::span<Sample* const> samples, Tensor rows) {
  for (int64_t ahead = 1;; ahead++) {
    std::vector<SampleRow> keys;
    for (const Sample* s : samples) {
      // The root stands at memory.length; the target will draw position memory.length + ahead with this very key.
      RngKey key = s->key;
      key.position = static_cast<uint32_t>(s->memory.length + ahead);
      keys.push_back({key, {.temperature = options_.greedy_drafts ? 0.0 : s->temperature, .top_k = 0, .top_p = 1}});
    }
    std::vector<int32_t> tokens;
    sample_rows(rows, keys, tokens, nullptr);
    for (size_t i = 0; i < samples.size(); i++) samples[i]->drafts.push_back(tokens[i]);
    if (ahead == options_.drafts) return;
    if (!is_last_stage()) continue;
    const Arena::Scope scope(arena_);
    BatchBuilder batch;
    std::vector<const SequenceMemory*> sequences;
    for (size_t i = 0; i < samples.size(); i++) {
      batch.add(&tokens[i], 1, samples[i]->memory.length + ahead - 1);
      sequences.push_back(&samples[i]->memory);
    }
    const std::vector<uint8_t> speculative(sequences.size(), 1);
    const MemoryView& view = memory_->view(sequences, speculative);
    Exec exec{stream_, arena_, mesh_};
    const Batch drafted = placed(exec, batch.batch(&view));
    convert(stream_, rows, mtp_rows(rows, drafted.tokens, drafted, view));
  }
}

}  // namespace furlong
