#include "tokenizer/chat.h"

#include <filesystem>

#include "fixtures.h"
#include "tokenizer/unicode.h"

namespace furlong {
namespace {

const ChatTemplate qwen3 = named_chat_template("qwen3"), qwen3_5 = named_chat_template("qwen3.5");

std::vector<Message> messages_of(const Json& row) {
  std::vector<Message> out;
  for (const Json& m : row.at("messages")) {
    out.push_back({m.at("role").get<std::string>(), m.at("content").get<std::string>(), std::nullopt});
    if (m.contains("reasoning_content")) out.back().reasoning_content = m.at("reasoning_content").get<std::string>();
  }
  return out;
}

std::optional<bool> thinking_of(const Json& row) {
  const Json& value = row.at("enable_thinking");
  return value.is_null() ? std::nullopt : std::optional<bool>(value.get<bool>());
}

ChatTemplate template_of(const Json& row) { return row.at("template") == "qwen3" ? qwen3 : qwen3_5; }

ChatValues thinking(std::optional<bool> value) { return {.enable_thinking = value}; }

TEST(Chat, RendersGoldens) {
  size_t rendered = 0, refused = 0;
  for (const Json& row : data_json("golden_chat.json")) {
    const auto render = [&] {
      return render_chat(template_of(row), messages_of(row), row.at("add_generation_prompt").get<bool>(),
                         thinking(thinking_of(row)));
    };
    if (row.at("text").is_null()) {  // the template itself raises an exception
      expect_error(Exit::input, {"system"}, [&] { (void)render(); });
      refused++;
    } else {
      EXPECT_EQ(render(), row.at("text")) << row.dump(1);
      rendered++;
    }
  }
  EXPECT_GT(rendered, 100u);
  EXPECT_GT(refused, 0u);
}

TEST(Chat, RefusesBadConversations) {
  for (const ChatTemplate& kind : {qwen3, qwen3_5}) {
    expect_error(Exit::input, {"empty"}, [&] { (void)render_chat(kind, {}, true); });
    const std::vector<Message> odd = {{"user", "a", {}}, {"oracle\n", "b", {}}};
    expect_error(Exit::input, {"message 1", "oracle"}, [&] { (void)render_chat(kind, odd, true); });
  }
  expect_error(Exit::usage, {"--chat-template", "llama"}, [] { (void)named_chat_template("llama"); });
}

TEST(ChatTemplateText, OfACheckpoint) {
  const std::string folder = testing::TempDir() + "chat_template_of";
  std::filesystem::remove_all(folder);
  make_directories(folder);
  const auto config = [&](const Json& json) { write_file_atomic(folder + "/tokenizer_config.json", json.dump()); };
  const std::vector<Message> messages = {{"user", "hi"}};
  const auto text = [&](const ChatValues& values = {}) {
    return render_chat(chat_template_of(folder), messages, true, values);
  };
  config({{"add_bos_token", false}});
  expect_error(Exit::usage, {folder, "--chat-template qwen3"}, [&] { (void)text(); });
  config({{"chat_template", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"},
          {"bos_token", "<s>"},
          {"eos_token", {{"content", "</s>"}}}});
  EXPECT_EQ(text(), "<s>hi</s>");
  config({{"chat_template",
           {{{"name", "rag"}, {"template", "r"}}, {{"name", "tool_use"}, {"template", "t{{ tools|length }}"}}}}});
  expect_error(Exit::usage, {"no chat template"}, [&] { (void)text(); });
  config({{"chat_template",
           {{{"name", "tool_use"}, {"template", "t{{ tools|length }}"}}, {{"name", "default"}, {"template", "d"}}}}});
  EXPECT_EQ(text(), "d");
  EXPECT_EQ(text({.tools = "[{}, {}]"}), "t2");
  config({{"chat_template", "a\n{% if %}"}});
  expect_error(Exit::input, {"tokenizer_config.json chat_template:2"}, [&] { (void)text(); });
  config({{"bos_token", nullptr}});
  write_file_atomic(folder + "/chat_template.json", R"({"chat_template": "j{{ bos_token }}"})");
  EXPECT_EQ(text(), "j");
  write_file_atomic(folder + "/chat_template.jinja", "{{ messages[0].role }}{{ mood }}{{ enable_thinking }}");
  EXPECT_EQ(text({.enable_thinking = false, .values = R"({"mood": "!", "enable_thinking": true})"}), "user!False");
  EXPECT_EQ(render_chat(named_chat_template(folder + "/chat_template.jinja", folder), messages, false), "user");
  expect_error(Exit::usage, {"/no_such_folder"}, [] { (void)chat_template_of("/no_such_folder"); });
}

TEST(ChatTemplateText, SeesMessagesAsTransformersHandsThemOver) {
  const auto text = [](const Message& message) {
    return render_chat(ChatTemplate::parse("{{ messages[0]|tojson }}", "t"), std::vector<Message>{message}, false);
  };
  EXPECT_EQ(text({"user", "a"}), R"({"role": "user", "content": "a"})");
  EXPECT_EQ(
      text({"assistant", "", std::nullopt, R"({"content": null, "tool_calls": [{"z": 1, "a": 2}], "name": null})"}),
      R"({"role": "assistant", "tool_calls": [{"z": 1, "a": 2}]})");
  EXPECT_EQ(text({"assistant", "a", "why"}),
            R"({"thinking": "why", "role": "assistant", "content": "a", "reasoning_content": "why"})");
  EXPECT_EQ(text({"assistant", "a", std::nullopt, R"({"reasoning": "r"})"}),
            R"({"thinking": "r", "role": "assistant", "content": "a", "reasoning": "r", "reasoning_content": "r"})");
  EXPECT_EQ(text({"user", "", std::nullopt, R"({"content": [{"type": "text", "text": "x"}]})"}),
            R"({"role": "user", "content": [{"type": "text", "text": "x"}]})");
}

// What the mask selects, as text, with a bar after every stretch.
std::string trained_text(const Tokenizer& tokenizer, const TokenizedChat& chat) {
  std::string out;
  for (size_t i = 0; i < chat.ids.size(); i++) {
    if (chat.loss_mask[i]) out += tokenizer.token_text(chat.ids[i]);
    if (chat.loss_mask[i] && (i + 1 == chat.ids.size() || !chat.loss_mask[i + 1])) out += "|";
  }
  return out;
}

TEST(TokenizeConversation, MasksWhatTheModelSays) {
  const Tokenizer tokenizer = Tokenizer::load(data_path("qwen3_reduced.json"));
  const auto trained = [&](const ChatTemplate& kind, const std::vector<Message>& messages, std::optional<bool> thinks) {
    return trained_text(tokenizer, tokenize_conversation(tokenizer, kind, messages, thinking(thinks)));
  };
  const std::vector<Message> one = {{"user", "a", {}}, {"assistant", "<think>\nhmm\n</think>\n\nb", {}}};
  EXPECT_EQ(trained(qwen3, one, std::nullopt), "<think>\nhmm\n</think>\n\nb<|im_end|>|");
  EXPECT_EQ(trained(qwen3_5, one, std::nullopt), "hmm\n</think>\n\nb<|im_end|>|");
  EXPECT_EQ(trained(qwen3_5, one, false), "<think>\nhmm\n</think>\n\nb<|im_end|>|");  // not what that prompt opens
  const std::vector<Message> plain = {{"user", "a", {}}, {"assistant", "b", {}}};
  EXPECT_EQ(trained(qwen3, plain, true), "<think>\n\n</think>\n\nb<|im_end|>|");
  EXPECT_EQ(trained(qwen3, plain, false), "b<|im_end|>|");
  EXPECT_EQ(trained(qwen3_5, plain, true), "\n</think>\n\nb<|im_end|>|");
  EXPECT_EQ(trained(qwen3_5, plain, false), "b<|im_end|>|");
  const std::vector<Message> two = {{"system", "s", {}},           {"user", "a", {}},
                                    {"assistant", "b", "why"},     {"user", "c", {}},
                                    {"assistant", "d", "because"}, {"user", "e", {}}};
  EXPECT_EQ(trained(qwen3_5, two, std::nullopt), "b<|im_end|>|d<|im_end|>|");
  const std::vector<Message> tools = {{"user", "a", {}},
                                      {"assistant", "b", "why"},
                                      {"tool", "t", {}},
                                      {"tool", "u<|im_end|>", {}},
                                      {"assistant", "c", "so"}};
  EXPECT_EQ(trained(qwen3_5, tools, true), "why\n</think>\n\nb<|im_end|>|so\n</think>\n\nc<|im_end|>|");
  const std::vector<Message> none = {{"user", "a", {}}};
  EXPECT_EQ(trained(qwen3, none, true), "");
  // "assistant\n" and a leading newline make one token in a prompt; it is not the answer's alone.
  const std::vector<Message> newline = {{"user", "a", {}}, {"assistant", "\nb", {}}, {"user", "c", {}}};
  EXPECT_EQ(trained(qwen3, newline, true), "\nb<|im_end|>|");
  const std::vector<Message> earlier = {
      {"user", "a", {}}, {"assistant", "\nb", {}}, {"user", "c", {}}, {"assistant", "d", {}}};
  EXPECT_EQ(trained(qwen3, earlier, false), "b<|im_end|>|d<|im_end|>|");
}

TEST(TokenizeConversation, BeginsWithTheRolloutsPrompt) {
  const Tokenizer tokenizer = Tokenizer::load(data_path("qwen3_reduced.json"));
  int prefixes = 0;
  for (const Json& row : data_json("golden_chat.json")) {
    if (row.at("text").is_null()) continue;
    const std::vector<Message> messages = messages_of(row);
    const ChatTemplate kind = template_of(row);
    const ChatValues values = thinking(thinking_of(row));
    const TokenizedChat chat = tokenize_conversation(tokenizer, kind, messages, values);
    const std::string text = render_chat(kind, messages, false, values);
    ASSERT_EQ(chat.ids.size(), chat.loss_mask.size());
    EXPECT_EQ(nfc(tokenizer.decode(chat.ids)), nfc(text));
    size_t last = messages.size();
    while (last > 0 && messages[last - 1].role != "assistant") last--;
    if (last < 2) continue;
    const std::string prompt = render_chat(kind, std::span(messages).first(last - 1), true, values);
    if (!text.starts_with(prompt)) continue;
    prefixes++;
    const std::vector<int32_t> ids = tokenizer.encode(prompt);
    ASSERT_LT(ids.size(), chat.ids.size());
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), chat.ids.begin())) << row.dump(1);
    EXPECT_EQ(chat.loss_mask[ids.size()], 1);
    EXPECT_EQ(chat.loss_mask[ids.size() - 1], 0);
  }
  EXPECT_GT(prefixes, 40);
}

TEST(TokenizeConversation, NeedsTheTurnTokens) {
  const Tokenizer tokenizer = edited_tiny([](Json& json) { json["added_tokens"].erase(2); });
  const std::vector<Message> messages = {{"user", "a", {}}};
  expect_error(Exit::input, {"<|im_end|>"}, [&] { (void)tokenize_conversation(tokenizer, qwen3, messages); });
}

}  // namespace
}  // namespace furlong
