// What one step of the engine works on.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "rollout/engine.h"

namespace furlong {

// Rows of a prompt, or of a preempted sample that runs again, which are no drafts.
struct Piece {
  std::shared_ptr<Prefix> prefix;  // or
  Sample* sample = nullptr;
  int64_t begin = 0, rows = 0;  // positions
  SequenceMemory& memory() const { return prefix ? prefix->memory : sample->memory; }
  // Tokens there are of the sequence: prompt, and response where it has begun.
  int64_t known() const { return prefix ? prefix->job->prompt() : sample->rows() + 1; }
  int32_t token(int64_t position) const {
    return prefix ? prefix->job->request.prompt[static_cast<size_t>(position)] : sample->token(position);
  }
};

// One segment per working sequence: pieces first, then decoding samples.
struct Engine::Round {
  BatchBuilder batch;
  std::vector<Piece> pieces;
  std::vector<Sample*> decoding;   // samples with a root to run
  std::vector<int64_t> first_row;  // of each decoding sample in the batch
  std::vector<Sample*> fresh;      // samples whose first token is drawn from their prefix's last hidden row
  std::vector<const SequenceMemory*> sequences;
  std::vector<uint8_t> speculative;
  RouteRows routes;  // of all rows, if recorded
  // Accepted rows of each decoding sample, after draw.
  std::vector<int64_t> accepted;
  std::optional<bool> drafting;  // whether drafts are made for the next step; else the policy decides
};

struct Engine::Draws {
  bool with_log_probs = true;
  std::vector<int64_t> wanted;  // alternatives of each row; none where it is empty
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
  std::vector<std::vector<Alternative>> alternatives;
};

// Rows whose logits are held at once.
inline int64_t sample_chunk(Device device) { return device == Device::cpu ? 64 : 512; }

// Whether steps may run without drafts, by what they cost.
inline bool may_leave_drafts_out(const EngineOptions& o) {
  return o.drafts > 0 && (o.measure_speculation || o.step_costs.defined());
}
// Hidden rows that may wait for the MTP head: those of several steps, and no more than its working memory is for.
inline int64_t most_unread(const EngineOptions& o) {
  return std::max(o.prefill_budget, o.max_running * (1 + o.drafts));
}

// What packs may be made of: the weights that an engine of these options multiplies by.
std::vector<Tensor> weights_of_products(const Weights& w, const EngineOptions& o);

// Pages of the longest sequence that an engine of these options is made for.
inline int64_t pages_of_longest(const EngineOptions& o) { return (o.max_tokens + o.drafts + o.page - 1) / o.page + 1; }

}  // namespace furlong
