#include <sys/eventfd.h>

#include "base/error.h"
#include "furlong/cli.h"
#include "furlong/toml.h"
#include "server/api_error.h"
#include "server/openai.h"
#include "targets.h"

namespace furlong::fuzz {
namespace {

const ServedModel& served_model() {
  static const ServedModel model = [] {
    ServedModel m;
    m.name = "tiny";
    m.tokenizer = Tokenizer::load(data_folder() + "/tiny");
    m.render_chat = [format = named_chat_template("qwen3")](const ChatPrompt& prompt) {
      return render_chat(format, prompt.messages, true, prompt.values);
    };
    m.longest_token = 16;
    m.vocab_size = 512;
    m.context = 4096;
    return m;
  }();
  return model;
}

}  // namespace

// The first byte says how many bytes come at a time.
void read_http(Bytes bytes) {
  if (bytes.empty()) return;
  const size_t piece = bytes[0] + size_t{1};
  const std::string_view text = text_of(bytes.subspan(1));
  HttpLimits limits;
  limits.body_bytes = 4096;
  limits.header_bytes = 1024;
  try {
    HttpParser parser(limits);
    std::string waiting;
    for (size_t at = 0; at < text.size() && !parser.done(); at += piece) {
      waiting += text.substr(at, piece);
      const size_t used = parser.read(waiting);
      if (used > waiting.size()) wrong("more bytes than there were");
      waiting.erase(0, used);
      if (waiting.size() > limits.header_bytes + 2 * piece + 64) wrong("a request that is kept without an end");
    }
    const HttpRequest& request = parser.request();
    if (request.body.size() > limits.body_bytes || request.headers.size() > limits.headers) wrong("beyond the limits");
    (void)percent_decoded(request.target);
  } catch (const ApiError&) {
  } catch (const Error&) {
  }
}

void read_openai(Bytes bytes) {
  static std::atomic<size_t> bodies{0};
  static const Wake stopping;
  static ClientConnection connection(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), HttpLimits(), bodies, stopping);
  using Read = OpenAiCall (*)(const ServedModel&, const HttpRequest&, HttpReply&);
  for (const Read read : {Read{read_chat_call}, Read{read_completions_call}}) {
    HttpRequest request;
    request.body = std::string(text_of(bytes));
    HttpReply reply(connection, request);
    try {
      const OpenAiCall asked = read(served_model(), request, reply);
      if (asked.call.prompts.empty()) wrong("a call without a prompt");
    } catch (const ApiError& error) {
      if (error.status() < 400 || error.status() >= 500) wrong("a status that is not the client's");
    }
  }
}

void read_toml(Bytes bytes) {
  try {
    (void)parse_toml(text_of(bytes), "fuzz");
  } catch (const Error&) {
  }
}

// A word a line.
void read_words(Bytes bytes) {
  Texts words;
  std::string word;
  for (const uint8_t byte : bytes) {
    if (byte != '\n') {
      word += static_cast<char>(byte);
      continue;
    }
    words.push_back(std::move(word));
    word.clear();
  }
  words.push_back(std::move(word));
  try {
    (void)parse_command_line(words);
  } catch (const Error&) {
  }
}

}  // namespace furlong::fuzz
