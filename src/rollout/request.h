// What the engine is asked for and what it answers.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

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
  int64_t group_index = 0;  // with the seed, the key of the draws
};

enum class FinishReason : uint8_t { stop, length };

struct Completion {
  size_t request = 0;
  int64_t sample = 0;  // within the request
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;  // of each token: log_softmax(logits / temperature), before top-k and top-p
  FinishReason reason = FinishReason::length;
  int64_t drafted = 0, accepted = 0, verify_steps = 0;
  // Emitted tokens per forward of the target, 1 without drafts.
  double accept_length() const {
    return verify_steps == 0 ? 1.0 : static_cast<double>(accepted + verify_steps) / static_cast<double>(verify_steps);
  }
};

}  // namespace furlong
