// What the routes share: the model that is served, a client's wish in our terms, and its samples as they come.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/connection.h"
#include "server/engine_loop.h"
#include "server/text_stream.h"
#include "tokenizer/chat.h"

namespace furlong {

struct ChatPrompt {
  std::vector<Message> messages;
  ChatValues values;
};

// Used by many threads at once; nothing of it changes.
struct ServedModel {
  std::string name;
  int64_t created = 0;                 // Unix time
  std::optional<Tokenizer> tokenizer;  // absent: token ids in, token ids out
  // The text of a chat, with the generation prompt. Throws Error for a chat that the template refuses.
  std::function<std::string(const ChatPrompt&)> render_chat;
  int64_t longest_token = 1;  // bytes of the tokenizer's longest
  std::vector<int32_t> stop_ids;
  int64_t vocab_size = 0;
  int64_t context = 0;  // tokens of prompt and response
  uint64_t seed = 0;    // of requests that bring none
};

constexpr int64_t most_samples = 128;   // n
constexpr int64_t most_choices = 1024;  // n x prompts

struct GenerationCall {
  std::vector<std::vector<int32_t>> prompts;
  int64_t samples = 1;  // of each prompt
  SampleParams params;
  std::optional<int64_t> max_new_tokens;  // absent: as many as fit the context
  int64_t min_new_tokens = 0;             // no stop counts before
  bool ignore_eos = false;
  std::vector<int32_t> stop_ids;  // besides the model's
  TextRules text;
  std::optional<uint64_t> seed;
  bool log_probs = false;
  int64_t alternatives = 0;
  bool stream = false;
};

// Throws ApiError (400) for a prompt without tokens, with ids that the model lacks, or too long with what is to follow.
void check_call(const ServedModel&, GenerationCall&);

// Of text without a break, which takes many times its bytes while it becomes tokens.
constexpr size_t most_piece_bytes = 512 << 10;

// The ids of a text. Throws ApiError (400): without a tokenizer, for a text that is longer than the context (of which
// no more is encoded), or with a stretch that is too long.
std::vector<int32_t> encode_prompt(const ServedModel&, const std::string& text);

// News of one sample.
struct SampleNews {
  size_t choice = 0;  // prompt x samples + sample
  std::string text;   // that has become certain
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
  std::vector<std::vector<Alternative>> alternatives;
  bool stopped_by_token = false;           // the last of tokens is a stop id, which has no place in the text
  std::optional<FinishReason> finished;    // with the last piece
  const std::string* stop_text = nullptr;  // the stop text that ended it
  int64_t drafted = 0, accepted = 0;       // with the last piece
};

// The samples of one call. Destroyed before they have all ended, it cancels the rest.
class Generation {
 public:
  // sequence: which of the server's requests this is, for those that bring no seed. stuck_seconds: how long the engine
  // may take for a step.
  Generation(EngineLoop&, const ServedModel&, const GenerationCall&, HttpReply&, int64_t sequence,
             double stuck_seconds);

  // Waits for news; empty once all samples have ended. Throws ClientGone, or ApiError.
  std::vector<SampleNews> next();
  size_t choices() const { return choices_.size(); }
  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t prompt_tokens(size_t choice) const;
  int64_t completion_tokens() const { return completion_tokens_; }

 private:
  struct Choice {
    std::optional<TextStream> text;
  };
  std::vector<Drawn> wait();
  SampleNews piece_of(Drawn drawn);

  EngineLoop& loop_;
  const GenerationCall& call_;
  HttpReply& reply_;
  double stuck_seconds_;
  std::vector<int32_t> stop_ids_;
  std::vector<Choice> choices_;
  size_t left_;
  int64_t prompt_tokens_ = 0, completion_tokens_ = 0;
  std::shared_ptr<Inbox> inbox_;
  std::unique_ptr<EngineLoop::Ticket> ticket_;
};

}  // namespace furlong
