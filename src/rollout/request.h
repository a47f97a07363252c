// What the engine is asked for and what it answers.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "data/routes.h"
#include "ops/sample.h"

namespace furlong {

// One prompt and the number of samples wanted of it; the samples share the prompt's prefill.
struct Request {
  std::vector<int32_t> prompt;  // at least one token
  int64_t samples = 1;
  SampleParams params;
  int64_t max_new_tokens = 0;
  std::vector<int32_t> stop_ids;  // a drawn stop id ends the response and belongs to it
  // Also ends it: asked after every token, with the response so far. Empty: never.
  std::function<bool(std::span<const int32_t>)> stop_when;
  uint64_t seed = 0;
  int64_t group_index = 0;    // with the seed and the sample's number, the key of the draws
  int64_t first_sample = 0;   // number of the first sample
  bool routes = false;        // Completion::routes is wanted; the engine must record them
  int64_t alternatives = 0;   // the likeliest tokens to report beside each drawn one, at most 20; on one rank only
  int64_t expected_new = -1;  // tokens of a response, from past ones; of a set of requests the longest start first
};

enum class FinishReason : uint8_t { stop, length, abort };

// A token that might have been drawn, by the log-prob that Completion::log_probs would have given it.
struct Alternative {
  int32_t token = 0;
  float log_prob = 0;
};

struct Completion {
  uint64_t request = 0;  // its number in Engine::submit, its place in Engine::generate
  int64_t sample = 0;    // within the request
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;  // of each token: log_softmax(logits / temperature), before top-k and top-p
  std::vector<std::vector<Alternative>>
      alternatives;  // of each token, the likeliest first; empty where none are wanted
  Routes routes;     // of every token but the last, where they are wanted
  FinishReason reason = FinishReason::length;
  int64_t drafted = 0, accepted = 0, verify_steps = 0;
  // Emitted tokens per forward of the target, 1 without drafts.
  double accept_length() const {
    return verify_steps == 0 ? 1.0 : static_cast<double>(accepted + verify_steps) / static_cast<double>(verify_steps);
  }
};

// What a step has drawn for one sample. The spans are valid during the call.
struct Emitted {
  uint64_t request = 0;
  int64_t sample = 0;
  std::span<const int32_t> tokens;                         // none where the sample was aborted
  std::span<const float> log_probs;                        // of each
  std::span<const std::vector<Alternative>> alternatives;  // of each, where the request wants them
  const Completion* finished = nullptr;                    // the whole of it, with the sample's last call
};
using Sink = std::function<void(const Emitted&)>;

}  // namespace furlong
