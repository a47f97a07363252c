// Drafts from the MTP head.
#include <algorithm>
#include <utility>

#include "base/log.h"
#include "model/mtp.h"
#include "ops/embed.h"
#include "ops/reduce.h"
#include "rollout/round.h"
#include "tensor/copy.h"

namespace furlong {

// The MTP head's rows for hidden rows that every rank has.
Tensor Engine::mtp_rows(Tensor hidden, Tensor next_tokens, const Batch& batch, const MemoryView& view) {
  Exec exec{stream_, arena_, mesh_};
  const Range here = rows_here(mesh_, batch.rows());
  const Tensor m =
      mtp_forward(exec, config_, weights_, hidden.rows(here.begin, here.end), next_tokens, batch, view.mtp, nullptr);
  return all_rows(m, batch.rows());
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

// What a step does about drafts; all but `mine` is the same on all ranks.
struct Engine::DraftStep {
  bool mine = false;   // this rank drafts
  bool any = false;    // some rank does
  bool read = false;   // the MTP head reads the step's rows now
  bool flush = false;  // and before that the rows that were set aside
};

// Without drafts the MTP head need not read a step's few rows at once, only before it drafts again: its layer costs as
// much for one of them as for many.
Engine::DraftStep Engine::next_drafts(const Round& round) {
  const bool decides = !round.drafting && policy_.costs().defined();
  int64_t count = 0, rows = 0;
  bool keeps = false;
  for (const Piece& piece : round.pieces) count += piece.sample != nullptr && !piece.sample->again ? 1 : 0;
  for (size_t i = 0; i < round.decoding.size(); i++) {
    const Sample& s = *round.decoding[i];
    const int64_t n = round.accepted[i];
    count += n > 0 ? 1 : 0;
    rows += n;
    // keep_states shares what the head has of the sequence, too.
    keeps = keeps || (options_.keep_prefixes && s.memory.length / delta_chunk > (s.memory.length - n) / delta_chunk);
  }
  for (const Sample* s : round.fresh) count += s->ended ? 0 : 1;
  DraftStep step;
  step.mine = round.drafting ? *round.drafting : count == 0 && decides ? false : policy_.pays(count);
  if (!step.mine && count > 0 && measured_ && !std::exchange(said_left_out_, true) && mesh_.world().rank() == 0) {
    log::info("drafts are left out with {} sequences: {:.2f} tokens a verification, {:.2f} needed", count,
              policy_.accept_length(), policy_.costs().ratio(count));
  }
  step.any = step.mine;
  step.read = step.mine || keeps || !round.pieces.empty() || !round.fresh.empty();
  bool full = unread_rows_ + rows > most_unread(options_), waits = unread_rows_ > 0;
  if (decides && in_lockstep()) {
    std::string here(4, '0');
    const bool said[] = {step.any, step.read, full, waits};
    for (size_t i = 0; i < here.size(); i++) here[i] = said[i] ? '1' : '0';
    for (const std::string& theirs : mesh_.world().gather_bytes(here)) {
      step.any = step.any || theirs[0] == '1';
      step.read = step.read || theirs[1] == '1';
      full = full || theirs[2] == '1';
      waits = waits || theirs[3] == '1';
    }
  }
  step.flush = waits && (step.read || full);
  return step;
}

// Keeps the hidden states of the rows just accepted for later.
void Engine::set_aside(Round& round, Tensor hidden) {
  std::vector<int32_t> source;
  for (size_t i = 0; i < round.decoding.size(); i++) {
    Sample& s = *round.decoding[i];
    const int64_t n = round.accepted[i];
    s.drafts.clear();
    if (n == 0 || s.ended) continue;
    if (s.unread.at.empty()) s.unread.position = s.memory.length - n;
    for (int64_t j = 0; j < n; j++) {
      s.unread.at.push_back(static_cast<int32_t>(unread_rows_ + std::ssize(source)));
      source.push_back(static_cast<int32_t>(round.first_row[i] + j));
    }
  }
  const int64_t begin = std::exchange(unread_rows_, unread_rows_ + std::ssize(source));
  if (source.empty() || !is_last_stage()) return;
  const Tensor to = unread_.rows(begin, unread_rows_);
  if (source.back() - source.front() + 1 == std::ssize(source)) {
    convert(stream_, to, hidden.rows(source.front(), source.back() + 1));
  } else {
    gather(to, hidden, source);
  }
}

// Runs the MTP head over the rows that were set aside, of the sequences that still run.
void Engine::read_unread() {
  BatchBuilder batch;
  std::vector<int32_t> next, source;
  std::vector<const SequenceMemory*> sequences;
  for (const auto& s : scheduler_->running()) {
    const UnreadRows unread = std::exchange(s->unread, {});
    if (unread.at.empty()) continue;
    const size_t begin = next.size();
    for (int64_t p = 0; p < std::ssize(unread.at); p++) next.push_back(s->token(unread.position + p + 1));
    batch.add(next.data() + begin, std::ssize(unread.at), unread.position);
    source.insert(source.end(), unread.at.begin(), unread.at.end());
    sequences.push_back(&s->memory);
  }
  unread_rows_ = 0;
  if (!is_last_stage() || (source.empty() && !in_lockstep())) return;
  const Arena::Scope scope(arena_);
  const Tensor inputs = arena_.make("mtp.hidden", weights_.dtype(), {batch.rows(), config_.hidden_size});
  gather(inputs, unread_, source);
  const std::vector<uint8_t> speculative(sequences.size(), 1);
  const MemoryView& view = memory_->view(sequences, speculative);
  Exec exec{stream_, arena_, mesh_};
  const Batch read = placed(exec, batch.batch(&view));
  mtp_rows(inputs, on_device(stream_, arena_, "mtp.next_tokens", Tensor(next.data(), DType::i32, {batch.rows()})), read,
           view);
}

// Runs the MTP head over the rows just accepted (and over pieces), with the true hidden states, and lets it propose.
void Engine::extend_drafts(Round& round, Tensor hidden) {
  const DraftStep step = next_drafts(round);
  if (step.flush) read_unread();
  if (!step.read) {
    set_aside(round, hidden);
    return;
  }
  BatchBuilder batch;
  std::vector<int32_t> next, source;  // token t+1 of each row; its row of `hidden`, or -1 - i for the i-th kept one
  std::vector<Tensor> kept;           // hidden rows of earlier steps
  std::vector<std::shared_ptr<OwnedTensor>> leads;
  std::vector<const SequenceMemory*> sequences;
  std::vector<Sample*> proposing;
  std::vector<int32_t> last_row;
  const auto add = [&](const SequenceMemory& memory, int64_t position, const std::vector<int32_t>& following) {
    batch.add(following.data(), std::ssize(following), position);
    next.insert(next.end(), following.begin(), following.end());
    sequences.push_back(&memory);
  };
  const auto propose_for = [&](Sample* s) {
    proposing.push_back(s);
    last_row.push_back(static_cast<int32_t>(batch.rows() - 1));
  };
  const auto from_kept = [&](const Tensor& row) {
    kept.push_back(row);
    source.push_back(-static_cast<int32_t>(kept.size()));
  };
  int64_t row = 0;
  for (const Piece& piece : round.pieces) {
    // The last prompt row waits for each sample's first token.
    const int64_t end = std::min(piece.begin + piece.rows, piece.known() - 1);
    std::vector<int32_t> following;
    // Where the rows before it are another sequence's, the last of them has its own next token here.
    auto& lead = piece.prefix ? piece.prefix->lead : piece.sample->lead;
    const std::shared_ptr<OwnedTensor> before = std::exchange(lead, nullptr);
    if (before && end >= piece.begin) {
      following.push_back(piece.token(piece.begin));
      from_kept(*before);
      leads.push_back(before);
    }
    for (int64_t t = piece.begin; t < end; t++) {
      following.push_back(piece.token(t + 1));
      source.push_back(static_cast<int32_t>(row + t - piece.begin));
    }
    if (!following.empty()) add(piece.memory(), before ? piece.begin - 1 : piece.begin, following);
    if (piece.sample != nullptr && !piece.sample->again) propose_for(piece.sample);
    row += piece.rows;
  }
  for (size_t i = 0; i < round.decoding.size(); i++) {
    Sample& s = *round.decoding[i];
    const int64_t n = round.accepted[i];
    s.drafts.clear();
    if (n == 0) continue;
    add(s.memory, s.memory.length - n, {s.out.tokens.end() - n, s.out.tokens.end()});
    for (int64_t j = 0; j < n; j++) source.push_back(static_cast<int32_t>(round.first_row[i] + j));
    propose_for(&s);
  }
  for (Sample* s : round.fresh) {
    if (s->ended) continue;
    add(s->memory, s->memory.length - 1, {s->root()});
    from_kept(is_last_stage() ? Tensor(*s->fresh->hidden) : Tensor());
    propose_for(s);
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
      if (from < 0) convert(stream_, inputs.rows(r, r + 1), kept[static_cast<size_t>(-1 - from)]);
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
  if (!step.mine) {
    proposing.clear();
    rows = rows.rows(0, 0);
  }
  if (!proposing.empty() || (in_lockstep() && step.any)) propose(proposing, rows);
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
      keys.push_back(
          {key,
           {.temperature = options_.greedy_drafts ? 0.0 : s->job->request.params.temperature, .top_k = 0, .top_p = 1}});
    }
    Draws draws{.with_log_probs = false};
    sample_rows(rows, keys, draws);
    const std::vector<int32_t>& tokens = draws.tokens;
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
