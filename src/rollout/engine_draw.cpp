// Drawing: logits, the target's own tokens, and which drafts they accept.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "ops/linear.h"
#include "ops/reduce.h"
#include "rollout/round.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

// One row's draw as it travels.
struct Draw {
  int32_t row = 0, token = 0;
  float log_prob = 0;
};

// The `count` likeliest tokens of a row of logits, ties to the lower id, beside the drawn token and its log-prob.
std::vector<Alternative> likeliest(const std::vector<float>& logits, int64_t count, double temperature, int32_t token,
                                   float log_prob) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto logit = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  const auto kept = ids.begin() + std::min(count, std::ssize(ids));
  std::partial_sort(ids.begin(), kept, ids.end(),
                    [&](int32_t a, int32_t b) { return logit(a) != logit(b) ? logit(a) > logit(b) : a < b; });
  std::vector<Alternative> out;
  const float t = temperature > 0 ? static_cast<float>(temperature) : 1.0f;
  for (auto id = ids.begin(); id != kept; ++id) out.push_back({*id, log_prob + (logit(*id) - logit(token)) / t});
  return out;
}

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

void Engine::sample_rows(Tensor rows, const std::vector<SampleRow>& keys, Draws& out) {
  const auto count = static_cast<int64_t>(keys.size());
  out.tokens.assign(keys.size(), 0);
  out.log_probs.assign(out.with_log_probs ? keys.size() : 0, 0);
  out.alternatives.assign(out.wanted.size(), {});
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
    const Tensor both = arena_.make("sample.drawn", DType::i32, {out.with_log_probs ? 2 * n : n});
    const Tensor drawn = both.rows(0, n);
    const Tensor by =
        out.with_log_probs ? Tensor(both.rows(n, 2 * n).data(), DType::f32, {n}, both.device()) : Tensor();
    sample(stream_, drawn, by, logits, {keys.begin() + mine.begin, keys.begin() + mine.end});
    std::vector<int32_t> words(static_cast<size_t>(both.rows()));
    copy(stream_, Tensor(words.data(), DType::i32, {both.rows()}), both);
    std::copy_n(words.begin(), n, out.tokens.begin() + mine.begin);
    if (by.defined()) std::memcpy(out.log_probs.data() + mine.begin, words.data() + n, static_cast<size_t>(n) * 4);
    for (int64_t r = 0; r < n && !out.wanted.empty(); r++) {
      const auto i = static_cast<size_t>(mine.begin + r);
      if (out.wanted[i] == 0) continue;
      std::vector<float> row(static_cast<size_t>(logits.dim(1)));
      copy(stream_, Tensor(row.data(), DType::f32, {1, logits.dim(1)}), logits.rows(r, r + 1));
      out.alternatives[i] = likeliest(row, out.wanted[i], keys[i].params.temperature, out.tokens[i], out.log_probs[i]);
    }
    drawn_here.push_back(mine);
  }
  if (in_lockstep()) share_draws(mesh_, drawn_here, out.tokens, out.log_probs);
}

// Appends what was drawn at a row to the sample's response, and sees whether it ends.
void Engine::append(Sample& sample, const Draws& draws, size_t row) {
  const Request& request = sample.job->request;
  Completion& out = sample.out;
  const int32_t token = draws.tokens[row];
  out.tokens.push_back(token);
  out.log_probs.push_back(draws.log_probs[row]);
  if (request.alternatives > 0) out.alternatives.push_back(draws.alternatives[row]);
  stats_.emitted++;
  const bool stops = std::find(request.stop_ids.begin(), request.stop_ids.end(), token) != request.stop_ids.end() ||
                     (request.stop_when && request.stop_when(out.tokens));
  out.reason = stops ? FinishReason::stop : FinishReason::length;
  sample.ended = stops || std::ssize(out.tokens) >= request.max_new_tokens;
}

// Draws the target's token at every row that has one, accepts drafts that equal it, and appends what was accepted.
void Engine::draw(Round& round, Tensor hidden) {
  std::vector<SampleRow> keys;
  Draws draws;
  bool any_wanted = false;
  const auto add_key = [&](const Sample& s, int64_t position) {
    RngKey key = s.key;
    key.position = static_cast<uint32_t>(position);
    keys.push_back({key, s.job->request.params});
    draws.wanted.push_back(s.job->request.alternatives);
    any_wanted = any_wanted || s.job->request.alternatives > 0;
  };
  int64_t count = std::ssize(round.fresh);
  for (const Sample* s : round.decoding) count += 1 + std::ssize(s->drafts);
  if (count == 0) return;
  Tensor rows = arena_.make("sample.rows", weights_.dtype(), {count, config_.hidden_size});
  const bool has_hidden = is_last_stage();
  int64_t row = 0;
  for (const Sample* s : round.decoding) {
    const int64_t n = 1 + std::ssize(s->drafts);
    for (int64_t j = 0; j < n; j++) add_key(*s, s->memory.length + 1 + j);
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
  if (!any_wanted) draws.wanted.clear();
  sample_rows(rows, keys, draws);
  accept(round, draws);
}

void Engine::accept(Round& round, const Draws& draws) {
  size_t at = 0;
  std::vector<SequenceMemory*> committed;
  std::vector<int64_t> lengths;
  for (Sample* s : round.decoding) {
    const size_t drafts = s->drafts.size();
    size_t accepted = 0;
    while (accepted < drafts && s->drafts[accepted] == draws.tokens[at + accepted]) accepted++;
    if (options_.forced_accept_length > 0) {
      const double rate = options_.forced_accept_length - 1, n = static_cast<double>(s->out.verify_steps);
      accepted = std::min(drafts, static_cast<size_t>(std::floor((n + 1) * rate) - std::floor(n * rate)));
    }
    if (drafts > 0) {
      s->out.verify_steps++;
      s->out.drafted += static_cast<int64_t>(drafts);
      s->out.accepted += static_cast<int64_t>(accepted);
      policy_.record(1, static_cast<int64_t>(accepted) + 1);
      stats_.verify_steps++;
      stats_.drafted += static_cast<int64_t>(drafts);
      stats_.accepted += static_cast<int64_t>(accepted);
    }
    for (size_t j = 0; j <= accepted && !s->ended; j++) {
      append(*s, draws, at + j);
      record(round, s->job->request, round.first_row[round.accepted.size()] + static_cast<int64_t>(j),
             s->out.routes.response);
    }
    if (s->ended) {
      round.accepted.push_back(0);
    } else {
      committed.push_back(&s->memory);
      lengths.push_back(s->memory.length + static_cast<int64_t>(accepted) + 1);
      round.accepted.push_back(static_cast<int64_t>(accepted) + 1);
    }
    at += drafts + 1;
  }
  memory_->commit(stream_, committed, lengths);
  for (Sample* s : round.fresh) append(*s, draws, at++);
}

}  // namespace furlong
