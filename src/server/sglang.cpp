// SGLang's /generate: text or token ids in; text, token ids and log-probs out. What RL loops written for SGLang's
// engine speak.
#include "base/text.h"
#include "server/api_error.h"
#include "server/fields.h"
#include "server/routes.h"

namespace furlong {
namespace {

constexpr int64_t default_new_tokens = 128;

struct GenerateCall {
  GenerationCall call;
  bool batch = false;  // the answer is a list
  std::string id;
  bool text_in_log_probs = false;
};

void read_prompts(const ServedModel& model, Fields& fields, GenerateCall& out) {
  const Json* text = fields.find("text");
  const Json* ids = fields.find("input_ids");
  if ((text == nullptr) == (ids == nullptr)) refuse("text", "one of text and input_ids is needed");
  const Json& given = text != nullptr ? *text : *ids;
  const char* name = text != nullptr ? "text" : "input_ids";
  const auto read = [&](const Json& item) {
    if (text == nullptr) return token_ids(item, name);
    if (!item.is_string()) refuse(name, "text must be a text or a list of texts");
    return encode_prompt(model, item.get_ref<const std::string&>());
  };
  out.batch = given.is_array() && (text != nullptr || (!given.empty() && given[0].is_array()));
  if (!out.batch) {
    out.call.prompts.push_back(read(given));
    return;
  }
  if (given.size() > static_cast<size_t>(most_choices)) refuse(name, "at most {} prompts a request", most_choices);
  for (const Json& item : given) out.call.prompts.push_back(read(item));
}

void read_params(Fields& fields, GenerationCall& call) {
  const Json none = Json::object();
  const Json* value = fields.find("sampling_params");
  if (value != nullptr && !value->is_object()) {
    refuse("sampling_params", "sampling_params must be one object, also for several prompts");
  }
  Fields params(value == nullptr ? none : *value, "sampling_params.");
  read_sampling(params, call);
  call.max_new_tokens = params.integer("max_new_tokens", 1, INT32_MAX).value_or(default_new_tokens);
  call.min_new_tokens = params.integer("min_new_tokens", 0, INT32_MAX).value_or(0);
  call.text.include_stop = params.flag("no_stop_trim").value_or(false);
  if (const auto seed = params.integer("sampling_seed", INT64_MIN, INT64_MAX)) call.seed = static_cast<uint64_t>(*seed);
  for (const char* name : {"json_schema", "regex", "ebnf", "structural_tag", "stop_regex"}) params.only(name, {});
  params.only("logit_bias", {Json::object()});
  params.only("custom_params", {Json::object()});
  params.close();
}

GenerateCall read_generate_call(const ServedModel& model, const HttpRequest& request, HttpReply& reply) {
  const Json json = parse_body(request.body);
  reply.drop_body();
  Fields fields(json);
  GenerateCall out;
  GenerationCall& call = out.call;
  read_params(fields, call);
  call.stream = fields.flag("stream").value_or(false);
  call.log_probs = fields.flag("return_logprob").value_or(false);
  call.alternatives = fields.integer("top_logprobs_num", 0, most_alternatives).value_or(0);
  out.text_in_log_probs = fields.flag("return_text_in_logprobs").value_or(false);
  out.id = fields.text("rid", 256).value_or("");
  fields.only("logprob_start_len", {-1});
  fields.only("token_ids_logprob", {});
  fields.only("return_hidden_states", {false});
  fields.only("return_routed_experts", {false});
  fields.only("lora_path", {});
  fields.only("image_data", {});
  fields.only("input_embeds", {});
  fields.ignore({"text", "input_ids", "model", "log_metrics"});
  fields.close();
  read_prompts(model, fields, out);
  check_call(model, call);
  return out;
}

class GenerateAnswer {
 public:
  GenerateAnswer(RouteContext& context, const GenerateCall& asked, HttpReply& reply)
      : context_(context),
        asked_(asked),
        reply_(reply),
        sequence_(context.sequence++),
        timer_(context.metrics),
        generation_(context.loop, context.model, asked.call, reply, sequence_, context.stuck_seconds),
        samples_(generation_.choices()) {}

  void send_whole();
  void stream();

 private:
  struct Sample {
    std::string text;
    std::vector<int32_t> ids;
    OrderedJson log_probs = OrderedJson::array(), top = OrderedJson::array();
    OrderedJson finish;  // null until the end
    int64_t drafted = 0, accepted = 0;
  };
  std::vector<SampleNews> next();
  void add(const SampleNews& piece);
  OrderedJson entry(float log_prob, int32_t id) const;
  OrderedJson answer_of(size_t index) const;

  RouteContext& context_;
  const GenerateCall& asked_;
  HttpReply& reply_;
  int64_t sequence_;
  GenerationTimer timer_;
  Generation generation_;
  std::vector<Sample> samples_;
};

std::vector<SampleNews> GenerateAnswer::next() {
  auto pieces = generation_.next();
  for (const SampleNews& piece : pieces) {
    timer_.drawn(piece.tokens.size());
    add(piece);
  }
  return pieces;
}

OrderedJson GenerateAnswer::entry(float log_prob, int32_t id) const {
  const OrderedJson text = asked_.text_in_log_probs ? OrderedJson(token_text(context_.model, id)) : OrderedJson();
  return OrderedJson::array({finite_log_prob(log_prob), id, text});
}

OrderedJson finish_of(const SampleNews& piece, size_t tokens) {
  switch (*piece.finished) {
    case FinishReason::length: return {{"type", "length"}, {"length", tokens}};
    case FinishReason::abort: return {{"type", "abort"}, {"message", "aborted"}};
    case FinishReason::stop: break;
  }
  if (piece.stopped_by_token) return {{"type", "stop"}, {"matched", piece.tokens.back()}};
  return {{"type", "stop"}, {"matched", piece.stop_text == nullptr ? OrderedJson() : OrderedJson(*piece.stop_text)}};
}

void GenerateAnswer::add(const SampleNews& piece) {
  Sample& sample = samples_[piece.choice];
  sample.text += piece.text;
  sample.ids.insert(sample.ids.end(), piece.tokens.begin(), piece.tokens.end());
  for (size_t i = 0; i < piece.tokens.size() && asked_.call.log_probs; i++) {
    sample.log_probs.push_back(entry(piece.log_probs[i], piece.tokens[i]));
    if (asked_.call.alternatives == 0) continue;
    OrderedJson top = OrderedJson::array();
    for (const Alternative& other : piece.alternatives[i]) top.push_back(entry(other.log_prob, other.token));
    sample.top.push_back(std::move(top));
  }
  if (!piece.finished) return;
  sample.finish = finish_of(piece, sample.ids.size());
  sample.drafted = piece.drafted;
  sample.accepted = piece.accepted;
}

OrderedJson GenerateAnswer::answer_of(size_t index) const {
  const Sample& sample = samples_[index];
  const std::string id = asked_.id.empty() ? fmt::format("{:x}-{}", context_.model.created, sequence_) : asked_.id;
  OrderedJson meta = {{"id", samples_.size() == 1 ? id : fmt::format("{}_{}", id, index)},
                      {"finish_reason", sample.finish},
                      {"prompt_tokens", generation_.prompt_tokens(index)},
                      {"completion_tokens", sample.ids.size()},
                      {"e2e_latency", timer_.seconds()}};
  if (asked_.call.log_probs) {
    meta["output_token_logprobs"] = sample.log_probs;
    if (asked_.call.alternatives > 0) meta["output_top_logprobs"] = sample.top;
  }
  if (sample.drafted > 0) {
    meta["spec_draft_token_num"] = sample.drafted;
    meta["spec_accept_token_num"] = sample.accepted;
  }
  return {{"text", sample.text}, {"output_ids", sample.ids}, {"meta_info", std::move(meta)}};
}

void GenerateAnswer::send_whole() {
  while (!next().empty()) {
  }
  timer_.finished();
  OrderedJson list = OrderedJson::array();
  for (size_t i = 0; i < samples_.size(); i++) list.push_back(answer_of(i));
  reply_.send(200, "application/json", dumped(asked_.batch || samples_.size() > 1 ? list : list[0]));
}

// As SGLang does it: every event brings all there is of its sample.
void GenerateAnswer::stream() {
  auto pieces = next();
  reply_.begin(200, "text/event-stream; charset=utf-8");
  try {
    for (; !pieces.empty(); pieces = next()) {
      std::set<size_t> news;
      for (const SampleNews& piece : pieces) news.insert(piece.choice);
      for (const size_t choice : news) {
        OrderedJson event = answer_of(choice);
        if (asked_.batch || samples_.size() > 1) event["index"] = choice;
        reply_.write(fmt::format("data: {}\n\n", dumped(event)));
      }
    }
    timer_.finished();
  } catch (const ApiError& error) {
    reply_.close_after();
    reply_.write(fmt::format("data: {}\n\n", error.json()));
  }
  reply_.write("data: [DONE]\n\n");
  reply_.end();
}

}  // namespace

void answer_generate(RouteContext& context, const HttpRequest& request, HttpReply& reply) {
  const GenerateCall asked =
      context.in_turn(request, [&] { return read_generate_call(context.model, request, reply); });
  GenerateAnswer answer(context, asked, reply);
  asked.call.stream ? answer.stream() : answer.send_whole();
}

}  // namespace furlong
