// Whether weights know language at all, asked before the first rollout. Weights that a conversion put in the wrong
// place load without a complaint, for their names and shapes are right, and then sample noise.
#pragma once
#include <optional>

#include "trainer/session.h"
#include "trainer/train_step.h"

namespace furlong {

// The text that is asked for.
extern const char* const plain_text;

// Mean negative log-likelihood, in nats a token, of the first tokens of plain_text (at most `most`, and the first
// one unscored), under the session's weights at the rollout's temperature. None: without a
// tokenizer, or where fewer than 64 tokens are left. All ranks call, and get the same.
std::optional<double> text_loss(const Session& session, TrainStep& step, int64_t most);

// The largest loss that weights may have: --max-text-loss, else half of what guessing among the vocabulary costs,
// ln(vocab_size) / 2. No limit: --max-text-loss 0, --random-init.
std::optional<double> text_loss_limit(const Session& session, const Settings& settings);

// Holds one against the other and logs the loss. Beyond the limit (or not finite): Error(Exit::input), or without
// --max-text-loss a warning for models of fewer than 32,768 tokens, which are small ones to try things with.
void check_text_loss(const Session& session, const Settings& settings, TrainStep& step, int64_t most);

}  // namespace furlong
