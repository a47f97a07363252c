// OpenAI's routes: answers whole, or as events while the tokens are drawn.
#include <chrono>

#include "base/text.h"
#include "server/api_error.h"
#include "server/fields.h"
#include "server/openai.h"
#include "server/routes.h"

namespace furlong {
namespace {

int64_t unix_time() {
  using namespace std::chrono;
  return duration_cast<seconds>(system_clock::now().time_since_epoch()).count();
}

const char* word_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::stop: return "stop";
    case FinishReason::length: return "length";
    case FinishReason::abort: break;
  }
  return "abort";
}

// What chat and completions have apart.
struct Form {
  bool chat;
  const char* id() const { return chat ? "chatcmpl-" : "cmpl-"; }
  const char* whole() const { return chat ? "chat.completion" : "text_completion"; }
  const char* chunk() const { return chat ? "chat.completion.chunk" : "text_completion"; }
};

class Answer {
 public:
  Answer(RouteContext& context, Form form, const OpenAiCall& asked, HttpReply& reply)
      : context_(context),
        form_(form),
        asked_(asked),
        reply_(reply),
        sequence_(context.sequence++),
        created_(unix_time()),
        timer_(context.metrics),
        generation_(context.loop, context.model, asked.call, reply, sequence_, context.stuck_seconds),
        offsets_(generation_.choices()) {}

  void send_whole();
  void stream();

 private:
  OrderedJson head(const char* object) const {
    return {{"id", fmt::format("{}{:x}-{}", form_.id(), context_.model.created, sequence_)},
            {"object", object},
            {"created", created_},
            {"model", context_.model.name}};
  }
  OrderedJson usage() const {
    return {{"prompt_tokens", generation_.prompt_tokens()},
            {"completion_tokens", generation_.completion_tokens()},
            {"total_tokens", generation_.prompt_tokens() + generation_.completion_tokens()}};
  }
  std::vector<SampleNews> next() {
    auto pieces = generation_.next();
    for (const SampleNews& piece : pieces) timer_.drawn(piece.tokens.size());
    return pieces;
  }
  OrderedJson log_probs(const SampleNews& piece);
  void event(const OrderedJson& json) { reply_.write(fmt::format("data: {}\n\n", dumped(json))); }
  OrderedJson chunk(OrderedJson choices) const;
  void begin_stream();
  void send_piece(const SampleNews& piece);

  RouteContext& context_;
  Form form_;
  const OpenAiCall& asked_;
  HttpReply& reply_;
  int64_t sequence_, created_;
  GenerationTimer timer_;
  Generation generation_;
  std::vector<size_t> offsets_;
};

OrderedJson Answer::log_probs(const SampleNews& piece) {
  if (!asked_.call.log_probs) return nullptr;
  if (!form_.chat) return completion_log_probs(context_.model, asked_.call, piece, offsets_[piece.choice]);
  return {{"content", chat_log_probs(context_.model, asked_.call, piece)}, {"refusal", nullptr}};
}

// Adds the lists of `more` to those of `whole`.
void append_lists(OrderedJson& whole, const OrderedJson& more) {
  if (whole.is_null()) {
    whole = more;
    return;
  }
  for (const auto& [key, list] : more.items()) {
    if (list.is_array()) whole[key].insert(whole[key].end(), list.begin(), list.end());
  }
}

void Answer::send_whole() {
  struct Whole {
    std::string text;
    OrderedJson log_probs;
    FinishReason reason = FinishReason::length;
  };
  std::vector<Whole> choices(generation_.choices());
  for (auto pieces = next(); !pieces.empty(); pieces = next()) {
    for (const SampleNews& piece : pieces) {
      Whole& whole = choices[piece.choice];
      whole.text += piece.text;
      append_lists(whole.log_probs, log_probs(piece));
      if (piece.finished) whole.reason = *piece.finished;
    }
  }
  OrderedJson list = OrderedJson::array();
  for (size_t i = 0; i < choices.size(); i++) {
    OrderedJson choice = {{"index", i}};
    if (form_.chat) {
      choice["message"] = {{"role", "assistant"}, {"content", choices[i].text}, {"refusal", nullptr}};
    } else {
      choice["text"] = choices[i].text;
    }
    choice["logprobs"] = std::move(choices[i].log_probs);
    choice["finish_reason"] = word_of(choices[i].reason);
    list.push_back(std::move(choice));
  }
  OrderedJson body = head(form_.whole());
  body["choices"] = std::move(list);
  body["usage"] = usage();
  timer_.finished();
  reply_.send(200, "application/json", dumped(body));
}

OrderedJson Answer::chunk(OrderedJson choices) const {
  OrderedJson out = head(form_.chunk());
  out["choices"] = std::move(choices);
  if (asked_.include_usage) out["usage"] = nullptr;
  return out;
}

// The head goes out with the first tokens, so that what goes wrong before has a status of its own.
void Answer::begin_stream() {
  reply_.begin(200, "text/event-stream; charset=utf-8");
  if (!form_.chat) return;
  for (size_t i = 0; i < generation_.choices(); i++) {
    const OrderedJson choice = {{"index", i},
                                {"delta", {{"role", "assistant"}, {"content", ""}}},
                                {"logprobs", nullptr},
                                {"finish_reason", nullptr}};
    event(chunk(OrderedJson::array({choice})));
  }
}

void Answer::send_piece(const SampleNews& piece) {
  if (piece.text.empty() && !piece.finished && !asked_.call.log_probs) return;
  OrderedJson choice = {{"index", piece.choice}};
  if (form_.chat) {
    choice["delta"] = piece.text.empty() ? OrderedJson::object() : OrderedJson{{"content", piece.text}};
  } else {
    choice["text"] = piece.text;
  }
  choice["logprobs"] = log_probs(piece);
  choice["finish_reason"] = piece.finished ? OrderedJson(word_of(*piece.finished)) : OrderedJson();
  event(chunk(OrderedJson::array({std::move(choice)})));
}

void Answer::stream() {
  auto pieces = next();
  begin_stream();
  try {
    for (; !pieces.empty(); pieces = next()) {
      for (const SampleNews& piece : pieces) send_piece(piece);
    }
    if (asked_.include_usage) {
      OrderedJson last = head(form_.chunk());
      last["choices"] = OrderedJson::array();
      last["usage"] = usage();
      event(last);
    }
    timer_.finished();
  } catch (const ApiError& error) {
    reply_.close_after();
    reply_.write(fmt::format("data: {}\n\n", error.json()));
  }
  reply_.write("data: [DONE]\n\n");
  reply_.end();
}

void answer(RouteContext& context, Form form, const OpenAiCall& asked, HttpReply& reply) {
  Answer answer(context, form, asked, reply);
  asked.call.stream ? answer.stream() : answer.send_whole();
}

}  // namespace

void answer_chat(RouteContext& context, const HttpRequest& request, HttpReply& reply) {
  const OpenAiCall asked = context.in_turn(request, [&] { return read_chat_call(context.model, request, reply); });
  answer(context, {.chat = true}, asked, reply);
}

void answer_completions(RouteContext& context, const HttpRequest& request, HttpReply& reply) {
  const OpenAiCall asked =
      context.in_turn(request, [&] { return read_completions_call(context.model, request, reply); });
  answer(context, {.chat = false}, asked, reply);
}

void answer_models(RouteContext& context, const HttpRequest& request, HttpReply& reply) {
  const ServedModel& model = context.model;
  const OrderedJson entry = {{"id", model.name},
                             {"object", "model"},
                             {"created", model.created},
                             {"owned_by", "furlong"},
                             {"max_model_len", model.context}};
  constexpr std::string_view list = "/v1/models";
  if (request.path() == list) {
    reply.send(200, "application/json", dumped({{"object", "list"}, {"data", OrderedJson::array({entry})}}));
    return;
  }
  const std::string name = percent_decoded(request.path().substr(list.size() + 1));
  if (name != model.name) {
    throw ApiError(404, "model_not_found", "model", fmt::format("there is no model {} here", printable(name)));
  }
  reply.send(200, "application/json", dumped(entry));
}

}  // namespace furlong
