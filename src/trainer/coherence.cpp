#include "trainer/coherence.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/log.h"

namespace furlong {
namespace {

constexpr int64_t fewest_tokens = 64, most_tokens = 256;
constexpr int64_t small_vocabulary = 32'768;

}  // namespace

const char* const plain_text =
    "The village lies at the foot of a long hill, where the road from the coast turns inland and begins to climb. In "
    "the morning the baker opens his shop at six, and by seven the first children are on their way to school with a "
    "roll in one hand and their books in the other. It has rained for most of the week, so the river is high, and the "
    "old people who sit on the bench in front of the church say that they have not seen so much water since the year "
    "in which the bridge was built. Nobody is worried. The houses near the water stand on stone walls, and every "
    "family has kept a small boat in the yard for as long as anyone can remember.\n\n"
    "A farmer sells apples at the market. He brings 120 apples in 4 boxes, so there are 120 / 4 = 30 apples in each "
    "box. If he sells 3 boxes before noon and half of the last one after lunch, he has sold 3 * 30 + 15 = 105 apples "
    "and takes 15 apples home. On the next day it rains again, the market is empty, and he stays at home to read a "
    "book about the history of the town.";

std::optional<double> text_loss(const Session& session, TrainStep& step, int64_t most) {
  if (!session.tokenizer) return std::nullopt;
  Trajectory text;
  text.tokens = session.tokenizer->encode(plain_text);
  text.tokens.resize(std::min(text.tokens.size(), static_cast<size_t>(std::min(most, most_tokens))));
  if (std::ssize(text.tokens) < fewest_tokens) return std::nullopt;
  text.response_length = static_cast<int32_t>(text.tokens.size()) - 1;
  text.loss_mask.assign(text.tokens.size() - 1, 1);
  // One for each data parallel rank, so that none is without work.
  const std::vector<const Trajectory*> copies(static_cast<size_t>(session.mesh->place().data_size), &text);
  const std::vector<float> log_probs = step.score(session.weights, copies).front();
  double sum = 0;
  for (const float x : log_probs) sum -= x;
  return sum / static_cast<double>(log_probs.size());
}

std::optional<double> text_loss_limit(const Session& session, const Settings& settings) {
  if (settings.random_init || settings.max_text_loss == 0.0) return std::nullopt;
  if (settings.max_text_loss) return settings.max_text_loss;
  return std::log(static_cast<double>(session.config.vocab_size)) / 2;
}

void check_text_loss(const Session& session, const Settings& settings, TrainStep& step, int64_t most) {
  const auto limit = text_loss_limit(session, settings);
  if (!limit) return;
  const auto loss = text_loss(session, step, most);
  if (!loss) return;
  const bool writes = session.mesh->world().rank() == 0;
  if (*loss <= *limit) {
    if (writes)
      log::info("a plain text costs these weights {:.2f} nats a token (at most {:.2f} wanted)", *loss, *limit);
    return;
  }
  const std::string& from = settings.load.empty() ? session.directory : settings.load;
  const std::string found = fmt::format(
      "{}: a plain English text costs these weights {:.2f} nats a token, more than {:.2f}{}; guessing costs {:.2f}",
      from, *loss, *limit, settings.max_text_loss ? " (--max-text-loss)" : "",
      std::log(static_cast<double>(session.config.vocab_size)));
  if (!settings.max_text_loss && session.config.vocab_size < small_vocabulary) {
    if (writes) log::warn("{}. A small model may know as little; the run goes on", found);
    return;
  }
  fail(Exit::input,
       "{}. They were converted wrongly, or config.json or tokenizer.json are another model's: see what `furlong "
       "generate` says with them. --max-text-loss X allows more, 0 anything; --random-init starts from random weights",
       found);
}

}  // namespace furlong
