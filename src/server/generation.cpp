#include "server/generation.h"

#include <algorithm>

#include "base/error.h"
#include "server/api_error.h"

namespace furlong {
namespace {

constexpr double look_seconds = 1;

bool holds(const std::vector<int32_t>& ids, int32_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

[[noreturn]] void too_long(const ServedModel& model, int64_t prompt, int64_t wanted) {
  throw ApiError(
      400, "context_length_exceeded", "",
      fmt::format("the model's context is {} tokens; the prompt has {} and {} more are wanted. Shorten the prompt "
                  "or ask for fewer.",
                  model.context, prompt, wanted));
}

// Ends a response at a stop id or text that comes no earlier than allowed.
std::function<bool(std::span<const int32_t>)> stop_rule_of(const ServedModel& model, const GenerationCall& call,
                                                           const std::vector<int32_t>& late_ids) {
  std::function<bool(std::span<const int32_t>)> texts;
  if (model.tokenizer) texts = stop_text_rule(*model.tokenizer, call.text);
  if (call.min_new_tokens == 0) return texts;
  return [texts, late_ids, least = static_cast<size_t>(call.min_new_tokens)](std::span<const int32_t> tokens) {
    return tokens.size() >= least && (holds(late_ids, tokens.back()) || (texts && texts(tokens)));
  };
}

}  // namespace

std::vector<int32_t> encode_prompt(const ServedModel& model, const std::string& text) {
  if (!model.tokenizer) refuse("", "this model has no tokenizer: give token ids");
  if (static_cast<int64_t>(text.size()) / model.longest_token > model.context) {
    throw ApiError(
        400, "context_length_exceeded", "",
        fmt::format("a text of {} bytes is longer than the model's context of {} tokens", text.size(), model.context));
  }
  std::vector<int32_t> ids;
  try {
    ids = model.tokenizer->encode(text, {.ids = static_cast<size_t>(model.context), .piece_bytes = most_piece_bytes});
  } catch (const Error& error) {
    throw ApiError(400, "", "", error.what());
  }
  if (std::ssize(ids) > model.context) {
    throw ApiError(400, "context_length_exceeded", "",
                   fmt::format("the prompt has more than the {} tokens of the model's context", model.context));
  }
  return ids;
}

void check_call(const ServedModel& model, GenerationCall& call) {
  if (call.prompts.empty()) refuse("prompt", "there is no prompt");
  const auto prompts = static_cast<int64_t>(call.prompts.size());
  if (prompts * call.samples > most_choices) {
    refuse("n", "{} prompts with {} samples each: at most {} choices a request", prompts, call.samples, most_choices);
  }
  for (const auto& prompt : call.prompts) {
    const auto tokens = static_cast<int64_t>(prompt.size());
    if (tokens == 0) refuse("prompt", "the prompt has no tokens");
    for (const int32_t id : prompt) {
      if (id < 0 || id >= model.vocab_size) {
        refuse("prompt", "token id {}: the model has ids from 0 to {}", id, model.vocab_size - 1);
      }
    }
    const int64_t wanted = call.max_new_tokens.value_or(1);
    if (tokens >= model.context || wanted > model.context - tokens) too_long(model, tokens, wanted);
  }
  for (const int32_t id : call.stop_ids) {
    if (id < 0 || id >= model.vocab_size) {
      refuse("stop_token_ids", "token id {}: the model has ids from 0 to {}", id, model.vocab_size - 1);
    }
  }
  if (!call.text.stops.empty() && !model.tokenizer)
    refuse("stop", "this model has no tokenizer to look for stop texts with");
}

Generation::Generation(EngineLoop& loop, const ServedModel& model, const GenerationCall& call, HttpReply& reply,
                       int64_t sequence, double stuck_seconds)
    : loop_(loop),
      call_(call),
      reply_(reply),
      stuck_seconds_(stuck_seconds),
      stop_ids_(call.ignore_eos ? std::vector<int32_t>{} : model.stop_ids),
      choices_(call.prompts.size() * static_cast<size_t>(call.samples)),
      left_(choices_.size()),
      inbox_(std::make_shared<Inbox>(reply.waker())) {
  stop_ids_.insert(stop_ids_.end(), call.stop_ids.begin(), call.stop_ids.end());
  for (Choice& choice : choices_) {
    if (model.tokenizer) choice.text.emplace(*model.tokenizer, call.text);
  }
  const auto stop_when = stop_rule_of(model, call, stop_ids_);
  std::vector<Request> requests;
  for (const auto& prompt : call.prompts) {
    const auto tokens = static_cast<int64_t>(prompt.size());
    prompt_tokens_ += tokens;
    requests.push_back({.prompt = prompt,
                        .samples = call.samples,
                        .params = call.params,
                        .max_new_tokens = call.max_new_tokens.value_or(model.context - tokens),
                        .stop_ids = call.min_new_tokens == 0 ? stop_ids_ : std::vector<int32_t>{},
                        .stop_when = stop_when,
                        // Prompts of one request draw apart, and so do requests without a seed of their own.
                        .seed = call.seed.value_or(model.seed + static_cast<uint64_t>(sequence) * 0x9E3779B97F4A7C15u),
                        .group_index = static_cast<int64_t>(requests.size()),
                        .alternatives = call.alternatives});
  }
  ticket_ = loop_.submit(std::move(requests), inbox_);
}

int64_t Generation::prompt_tokens(size_t choice) const {
  return static_cast<int64_t>(call_.prompts[choice / static_cast<size_t>(call_.samples)].size());
}

std::vector<SampleNews> Generation::next() {
  std::vector<SampleNews> pieces;
  if (left_ == 0) return pieces;
  for (Drawn& drawn : wait()) pieces.push_back(piece_of(std::move(drawn)));
  return pieces;
}

std::vector<Drawn> Generation::wait() {
  for (;;) {
    auto drawn = inbox_->take();
    if (!drawn.empty()) return drawn;
    switch (reply_.wait(look_seconds)) {
      case ClientConnection::Event::gone: throw ClientGone();
      case ClientConnection::Event::woken: break;
      case ClientConnection::Event::timeout: {
        const LoopState state = loop_.state();
        if (state.busy && state.seconds > stuck_seconds_) {
          throw ApiError(503, "", "", fmt::format("the engine has made no step for {:.0f} s", state.seconds));
        }
      }
    }
  }
}

SampleNews Generation::piece_of(Drawn drawn) {
  SampleNews piece{.choice = drawn.part * static_cast<size_t>(call_.samples) + static_cast<size_t>(drawn.sample),
                   .tokens = std::move(drawn.tokens),
                   .log_probs = std::move(drawn.log_probs),
                   .alternatives = std::move(drawn.alternatives),
                   .finished = drawn.finished,
                   .drafted = drawn.drafted,
                   .accepted = drawn.accepted};
  completion_tokens_ += static_cast<int64_t>(piece.tokens.size());
  Choice& choice = choices_[piece.choice];
  piece.stopped_by_token =
      piece.finished == FinishReason::stop && !piece.tokens.empty() && holds(stop_ids_, piece.tokens.back());
  if (choice.text) {
    const size_t shown = piece.tokens.size() - (piece.stopped_by_token ? 1 : 0);
    for (size_t i = 0; i < shown; i++) piece.text += choice.text->push(piece.tokens[i]);
    if (piece.finished) piece.text += choice.text->finish();
    piece.stop_text = choice.text->matched();
  }
  if (piece.finished) left_--;
  return piece;
}

}  // namespace furlong
