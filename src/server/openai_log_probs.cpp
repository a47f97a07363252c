// OpenAI's two forms of log-probs.
#include "server/fields.h"
#include "server/openai.h"

namespace furlong {
namespace {

size_t shown_tokens(const SampleNews& piece) { return piece.tokens.size() - (piece.stopped_by_token ? 1 : 0); }

OrderedJson bytes_of(const ServedModel& model, int32_t id) {
  OrderedJson bytes = OrderedJson::array();
  if (!model.tokenizer || !model.tokenizer->contains(id)) return bytes;
  for (const char c : model.tokenizer->token_bytes(id)) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

OrderedJson token_entry(const ServedModel& model, int32_t id, float log_prob) {
  return {{"token", token_text(model, id)}, {"logprob", finite_log_prob(log_prob)}, {"bytes", bytes_of(model, id)}};
}

size_t characters(const std::string& text) {
  size_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

}  // namespace

OrderedJson chat_log_probs(const ServedModel& model, const GenerationCall& call, const SampleNews& piece) {
  OrderedJson list = OrderedJson::array();
  for (size_t i = 0; i < shown_tokens(piece); i++) {
    OrderedJson entry = token_entry(model, piece.tokens[i], piece.log_probs[i]);
    entry["top_logprobs"] = OrderedJson::array();
    if (call.alternatives > 0) {
      for (const Alternative& other : piece.alternatives[i]) {
        entry["top_logprobs"].push_back(token_entry(model, other.token, other.log_prob));
      }
    }
    list.push_back(std::move(entry));
  }
  return list;
}

OrderedJson completion_log_probs(const ServedModel& model, const GenerationCall& call, const SampleNews& piece,
                                 size_t& offset) {
  OrderedJson out = {{"tokens", OrderedJson::array()},
                     {"token_logprobs", OrderedJson::array()},
                     {"top_logprobs", call.alternatives > 0 ? OrderedJson::array() : OrderedJson()},
                     {"text_offset", OrderedJson::array()}};
  for (size_t i = 0; i < shown_tokens(piece); i++) {
    const std::string text = token_text(model, piece.tokens[i]);
    out["tokens"].push_back(text);
    out["token_logprobs"].push_back(finite_log_prob(piece.log_probs[i]));
    out["text_offset"].push_back(offset);
    offset += characters(text);
    if (call.alternatives == 0) continue;
    OrderedJson top = OrderedJson::object();
    for (const Alternative& other : piece.alternatives[i]) {
      top[token_text(model, other.token)] = finite_log_prob(other.log_prob);
    }
    out["top_logprobs"].push_back(std::move(top));
  }
  return out;
}

}  // namespace furlong
