// OpenAI's request and answer objects. For .cpp files alone.
#pragma once
#include <string>
#include <vector>

#include "base/json.h"
#include "server/generation.h"

namespace furlong {

// A call and how its answer looks.
struct OpenAiCall {
  GenerationCall call;
  bool include_usage = false;  // stream: a last chunk with the usage
};

// They give the request's body back as soon as it has been parsed.
OpenAiCall read_chat_call(const ServedModel&, const HttpRequest&, HttpReply&);
OpenAiCall read_completions_call(const ServedModel&, const HttpRequest&, HttpReply&);

// A list of {"token", "logprob", "bytes", "top_logprobs"}, of the tokens that have text.
OrderedJson chat_log_probs(const ServedModel&, const GenerationCall&, const SampleNews&);
// {"tokens", "token_logprobs", "top_logprobs", "text_offset"}; offset: characters before, moved on.
OrderedJson completion_log_probs(const ServedModel&, const GenerationCall&, const SampleNews&, size_t& offset);

}  // namespace furlong
