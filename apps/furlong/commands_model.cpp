// generate and score: rows in, rows out, through the model.
#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/log.h"
#include "furlong/commands.h"
#include "furlong/rows.h"
#include "model/model.h"
#include "model/mtp.h"
#include "rl/loss_head.h"
#include "tensor/copy.h"
#include "trainer/memory_plan.h"
#include "trainer/session.h"

namespace furlong {
namespace {

// The tokens of a row: given, or of its text, or of its messages with the generation prompt.
std::vector<int32_t> row_tokens(const Session& session, const OrderedJson& row, const std::string& where) {
  if (row.contains("tokens")) return tokens_of(row, session.config.vocab_size, where);
  std::vector<int32_t> tokens;
  if (row.contains("messages")) {
    tokens = encode_chat(session, messages_of(row, where), tools_of(row, where));
  } else if (row.contains("text") && row["text"].is_string()) {
    tokens = encode_text(session, row["text"]);
  } else {
    fail(Exit::input, "{}: a row needs tokens (ids), text or messages", where);
  }
  if (tokens.empty()) fail(Exit::input, "{}: the text has no tokens", where);
  return tokens;
}

constexpr int64_t score_batch_tokens = 4096;

struct Scored {
  std::vector<double> log_probs, mtp_log_probs, entropy;
};

// Scores whole sequences in packed batches.
std::vector<Scored> score_all(const Session& session, const std::vector<std::vector<int32_t>>& sequences) {
  std::vector<Scored> results(sequences.size());
  Stream stream(*session.threads, session.device), dry = Stream::dry(*session.threads, session.device);
  Arena arena(0, session.device);
  for (size_t begin = 0; begin < sequences.size();) {
    BatchBuilder builder;
    std::vector<HeadRow> rows, mtp_rows;
    std::vector<int32_t> next;
    size_t end = begin;
    for (; end < sequences.size() &&
           (end == begin || builder.rows() + static_cast<int64_t>(sequences[end].size()) <= score_batch_tokens);
         end++) {
      const auto& ids = sequences[end];
      const auto base = static_cast<int32_t>(builder.rows());
      for (size_t t = 0; t < ids.size(); t++) {
        if (t + 1 < ids.size()) rows.push_back({base + static_cast<int32_t>(t), ids[t + 1]});
        if (t + 2 < ids.size()) mtp_rows.push_back({base + static_cast<int32_t>(t), ids[t + 2]});
        next.push_back(t + 1 < ids.size() ? ids[t + 1] : 0);
      }
      builder.add(ids.data(), static_cast<int64_t>(ids.size()));
    }
    std::vector<double> log_probs(rows.size()), entropy(rows.size()), mtp(mtp_rows.size());
    const auto body = [&](Exec exec) {
      const Batch batch = placed(exec, builder.batch());
      const Tensor hidden = model_forward(exec, session.config, session.weights, batch, nullptr);
      score_rows(exec, session.weights, hidden, rows, {.entropy = true}, log_probs, entropy);
      if (session.weights.mtp.empty()) return;
      const Tensor next_tokens =
          on_device(exec.stream, exec.arena, "mtp.next_tokens", Tensor(next.data(), DType::i32, {batch.rows()}));
      const Tensor m = mtp_forward(exec, session.config, session.weights, hidden, next_tokens, batch, {}, nullptr);
      score_rows(exec, session.weights, m, mtp_rows, {}, mtp, {});
    };
    Arena measure = Arena::measuring(session.device);
    body({dry, measure});
    if (measure.high_mark() > arena.capacity()) arena = Arena(measure.high_mark(), session.device);
    const Arena::Scope scope(arena);
    body({stream, arena});
    auto lp = log_probs.begin();
    auto en = entropy.begin();
    auto mt = mtp.begin();
    for (size_t i = begin; i < end; i++) {
      const auto n = static_cast<int64_t>(sequences[i].size());
      results[i].log_probs.assign(lp, lp + (n - 1));
      results[i].entropy.assign(en, en + (n - 1));
      lp += n - 1;
      en += n - 1;
      if (session.weights.mtp.empty() || n < 3) continue;
      results[i].mtp_log_probs.assign(mt, mt + (n - 2));
      mt += n - 2;
    }
    begin = end;
  }
  return results;
}

}  // namespace

int run_score(const Settings& settings, World& world) {
  Session session = open_session(settings, world);
  std::vector<std::vector<int32_t>> sequences;
  read_rows(settings.input, [&](const OrderedJson& row, const std::string& where) {
    sequences.push_back(row_tokens(session, row, where));
    const auto n = static_cast<int64_t>(sequences.back().size());
    if (session.config.max_position_embeddings > 0 && n > session.config.max_position_embeddings) {
      fail(Exit::input, "{}: {} tokens, but the model's context is {}", where, n,
           session.config.max_position_embeddings);
    }
  });
  Workload work;
  int64_t longest = 0;
  for (const auto& ids : sequences) longest = std::max(longest, std::ssize(ids));
  work.pack_size = std::max(longest, score_batch_tokens);
  require_memory(session, settings, work);
  load_weights(session, settings);
  RowWriter out(settings.output);
  for (const auto& s : score_all(session, sequences)) {
    out.write({{"log_probs", s.log_probs}, {"mtp_log_probs", s.mtp_log_probs}, {"entropy", s.entropy}});
  }
  out.close();
  return 0;
}

int run_generate(const Settings& settings, World& world) {
  Session session = open_session(settings, world);
  std::vector<Request> requests;
  int64_t longest = 0;
  const int64_t context =
      session.config.max_position_embeddings > 0 ? session.config.max_position_embeddings : INT32_MAX;
  read_rows(settings.input, [&](const OrderedJson& row, const std::string& where) {
    Request r{.prompt = row_tokens(session, row, where),
              .params = {settings.temperature, settings.top_k, settings.top_p},
              .max_new_tokens = settings.max_new_tokens,
              .stop_ids = settings.ignore_eos ? std::vector<int32_t>{} : session.stop_ids,
              .stop_when = stop_rule(session, settings.rollout_stop),
              .seed = static_cast<uint64_t>(settings.seed),
              .group_index = static_cast<int64_t>(requests.size())};
    for (const int64_t id : settings.rollout_stop_token_ids) r.stop_ids.push_back(static_cast<int32_t>(id));
    const auto prompt = static_cast<int64_t>(r.prompt.size());
    if (prompt >= context)
      fail(Exit::input, "{}: the prompt has {} tokens, the model's context is {}", where, prompt, context);
    r.max_new_tokens = std::min(r.max_new_tokens, context - prompt);
    longest = std::max(longest, prompt + r.max_new_tokens);
    requests.push_back(std::move(r));
  });
  RowWriter out(settings.output);
  if (!requests.empty()) {
    const auto count = static_cast<int64_t>(requests.size());
    const CheckedPlan memory =
        require_memory(session, settings, {.rolls = true, .longest = longest, .requests = count});
    load_weights(session, settings);
    EngineOptions options = engine_options(session.config, session.directory, settings, longest, count);
    options.memory_bytes = memory.plan.pool;
    Engine engine(session.config, session.weights, options, *session.threads);
    for (const auto& c : engine.generate(requests)) {
      OrderedJson row = {{"tokens", c.tokens}, {"log_probs", c.log_probs}};
      if (session.tokenizer) row["text"] = decode_ids(session, c.tokens);
      row["finish_reason"] = c.reason == FinishReason::stop ? "stop" : "length";
      row["accept_length"] = c.accept_length();
      out.write(row);
    }
  }
  out.close();
  return 0;
}

}  // namespace furlong
