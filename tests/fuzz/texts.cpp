#include "base/error.h"
#include "base/json.h"
#include "reward/scorer.h"
#include "targets.h"
#include "tokenizer/chat.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace furlong::fuzz {
namespace {

const Tokenizer& tokenizer_of(uint8_t choice) {
  static const Tokenizer tiny = Tokenizer::load(data_folder() + "/tiny");
  static const Tokenizer qwen3 = Tokenizer::load(data_folder() + "/tokenizer/qwen3_reduced.json");
  return choice % 2 == 0 ? tiny : qwen3;
}

bool is_object(const std::string& text) {
  try {
    return parse_json(text, "metadata").is_object();
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

// The first byte picks a tokenizer; the rest is a text and, two bytes each, ids.
void encode_text(Bytes bytes) {
  const Tokenizer& tokenizer = tokenizer_of(bytes.empty() ? 0 : bytes[0]);
  if (bytes.empty()) return;
  const std::string_view text = text_of(bytes.subspan(1));
  try {
    const auto ids = tokenizer.encode(text);
    if (tokenizer.decode(ids) != nfc(repair_utf8(text))) wrong("a text that does not come back");
    const auto some = tokenizer.encode(text, {.ids = 3});
    if (some.size() > ids.size() || (some.size() <= 3 && some != ids) ||
        !std::equal(some.begin(), some.end(), ids.begin()))
      wrong("a limit that changes ids");
  } catch (const Error&) {
  }
  std::vector<int32_t> ids;
  for (size_t i = 1; i + 1 < bytes.size(); i += 2) ids.push_back(bytes[i] << 8 | bytes[i + 1]);
  try {
    const std::string whole = tokenizer.decode(ids);
    IncrementalDecoder decoder(tokenizer);
    std::string parts;
    for (const int32_t id : ids) parts += decoder.push(id);
    if (parts + decoder.finish() != whole) wrong("a decoder that gives other text piece by piece");
  } catch (const Error&) {
  }
}

// Turns end at a byte 1: a byte for the role, then its content.
void render_conversation(Bytes bytes) {
  static const ChatTemplate formats[] = {named_chat_template("qwen3"), named_chat_template("qwen3.5")};
  constexpr const char* roles[] = {"system", "user", "assistant", "tool", "other"};
  const Tokenizer& tokenizer = tokenizer_of(0);
  std::vector<Message> messages;
  for (size_t i = 0; i < bytes.size();) {
    Message message{.role = roles[bytes[i] % 5], .content = {}};
    for (i++; i < bytes.size() && bytes[i] != 1; i++) message.content += static_cast<char>(bytes[i]);
    i++;
    message.content = repair_utf8(message.content);  // as every source of messages gives it
    messages.push_back(std::move(message));
  }
  for (const ChatTemplate& format : formats) {
    try {
      (void)tokenizer.encode(render_chat(format, messages, true));
      const TokenizedChat chat = tokenize_conversation(tokenizer, format, messages);
      if (chat.ids.size() != chat.loss_mask.size()) wrong("a mask of another length");
    } catch (const Error&) {
    }
  }
}

// A label, a byte 0, and a response; a label that is a JSON object is the metadata as well.
void grade(Bytes bytes) {
  static const auto scorers = [] {
    std::vector<std::unique_ptr<Scorer>> all;
    const std::string nltk = data_folder() + "/reward/nltk_data";
    for (const std::string& name : scorer_names()) {
      all.push_back(make_scorer(name, nltk));
      all.push_back(make_scorer("boxed_" + name, nltk));
    }
    return all;
  }();
  const std::string_view text = text_of(bytes);
  const size_t nul = text.find('\0');
  const std::string label(text.substr(0, nul));
  const std::string response(nul == text.npos ? "" : text.substr(nul + 1));
  const Label truth = Label::string(label);
  const std::string metadata = is_object(label) ? label : "{}";
  const std::string boxed = "<think></think>\\boxed{" + response + "}";
  for (const auto& scorer : scorers) {
    for (const std::string& said : {response, boxed}) {
      const Score score = scorer->score({.response = said, .label = truth, .metadata = metadata});
      if (score.reward.has_value() == !score.error.empty()) wrong("neither a reward nor a reason");
      if (score.reward && !(*score.reward >= -1 && *score.reward <= 1)) wrong("a reward beyond 1");
    }
  }
}

void read_json(Bytes bytes) {
  try {
    const Json json = parse_json(text_of(bytes), "fuzz");
    if (parse_json(json.dump(), "fuzz") != json) wrong("a value that reads back as another");
    if (Json(parse_ordered_json(text_of(bytes), "fuzz")) != json) wrong("another value in the file's order");
  } catch (const Error&) {
  }
}

}  // namespace furlong::fuzz
