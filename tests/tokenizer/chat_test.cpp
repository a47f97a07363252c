#include "tokenizer/chat.h"

#include <filesystem>

#include "fixtures.h"
#include "tokenizer/unicode.h"

namespace furlong {
namespace {

using enum ChatTemplate;

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

ChatTemplate template_of(const Json& row) { return parse_chat_template(row.at("template").get<std::string>()); }

TEST(Chat, RendersGoldens) {
  size_t rendered = 0, refused = 0;
  for (const Json& row : data_json("golden_chat.json")) {
    const auto render = [&] {
      return render_chat(template_of(row), messages_of(row), row.at("add_generation_prompt").get<bool>(),
                         thinking_of(row));
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
  for (const ChatTemplate kind : {qwen3, qwen3_5}) {
    expect_error(Exit::input, {"empty"}, [&] { (void)render_chat(kind, {}, true, std::nullopt); });
    const std::vector<Message> odd = {{"user", "a", {}}, {"oracle\n", "b", {}}};
    expect_error(Exit::input, {"message 1", "oracle"}, [&] { (void)render_chat(kind, odd, true, std::nullopt); });
  }
  expect_error(Exit::usage, {"--chat-template", "llama"}, [] { (void)parse_chat_template("llama"); });
}

// The pieces the recogniser documents, in a shortened template.
std::string jinja(const std::string& inner, const std::string& tail) {
  return "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n"
         "{%- if loop.index0 > ns.last_query_index %}" +
         inner +
         "{%- endif %}\n"
         "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n" +
         tail + "{%- endif %}";
}
const char* const close_if_told =
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n";
const char* const close_by_default =
    "    {%- if enable_thinking is defined and enable_thinking is true %}\n        {{- '<think>\\n' }}\n"
    "    {%- else %}\n        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n";
const char* const inner_3 = "{%- if loop.last or (not loop.last and reasoning_content) %}";
const char* const inner_35 =
    "{%- macro render_content(c) %}{%- set content = render_content(message.content, true)|trim %}"
    "{%- set reasoning_content = reasoning_content|trim %}";

std::string jinja_3() { return jinja(inner_3, std::string(close_if_told) + "    {%- endif %}\n"); }
std::string jinja_35() {
  return jinja(inner_35,
               std::string(close_if_told) + "    {%- else %}\n        {{- '<think>\\n' }}\n    {%- endif %}\n");
}

TEST(ChatTemplateText, Recognised) {
  EXPECT_EQ(recognise_chat_template(jinja_3()), qwen3);
  EXPECT_EQ(recognise_chat_template(jinja_35()), qwen3_5);
  EXPECT_EQ(recognise_chat_template(""), std::nullopt);
  EXPECT_EQ(recognise_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}"), std::nullopt);
  EXPECT_EQ(recognise_chat_template(jinja(inner_35, close_by_default)), std::nullopt);
  EXPECT_EQ(recognise_chat_template(jinja(inner_35, std::string(close_if_told) + "{%- endif %}")), std::nullopt);
  EXPECT_EQ(recognise_chat_template(jinja("", std::string(close_if_told) + "{%- endif %}")), std::nullopt);
  EXPECT_EQ(recognise_chat_template(jinja(inner_3, "{{- '<think>\\n' }}")), std::nullopt);
}

TEST(ChatTemplateText, OfACheckpoint) {
  const std::string folder = testing::TempDir() + "chat_template_of";
  std::filesystem::remove_all(folder);
  make_directories(folder);
  const auto config = [&](const Json& json) { write_file_atomic(folder + "/tokenizer_config.json", json.dump()); };
  config({{"add_bos_token", false}});
  expect_error(Exit::usage, {folder, "--chat-template qwen3"}, [&] { (void)chat_template_of(folder); });
  config({{"chat_template", jinja_3()}});
  EXPECT_EQ(chat_template_of(folder), qwen3);
  config({{"chat_template",
           {{{"name", "rag"}, {"template", jinja_3()}}, {{"name", "default"}, {"template", jinja_35()}}}}});
  EXPECT_EQ(chat_template_of(folder), qwen3_5);
  config({{"chat_template", {{{"name", "rag"}, {"template", jinja_3()}}}}});
  expect_error(Exit::usage, {"no chat template"}, [&] { (void)chat_template_of(folder); });
  config({{"chat_template", "{{ messages }}"}});
  expect_error(Exit::usage, {"tokenizer_config.json", "--chat-template"}, [&] { (void)chat_template_of(folder); });
  write_file_atomic(folder + "/chat_template.jinja", jinja_35());  // goes before the config
  EXPECT_EQ(chat_template_of(folder), qwen3_5);
  expect_error(Exit::usage, {"/no_such_folder"}, [] { (void)chat_template_of("/no_such_folder"); });
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
  const auto trained = [&](ChatTemplate kind, const std::vector<Message>& messages, std::optional<bool> thinking) {
    return trained_text(tokenizer, tokenize_conversation(tokenizer, kind, messages, thinking));
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
    const std::optional<bool> thinking = thinking_of(row);
    const TokenizedChat chat = tokenize_conversation(tokenizer, kind, messages, thinking);
    const std::string text = render_chat(kind, messages, false, thinking);
    ASSERT_EQ(chat.ids.size(), chat.loss_mask.size());
    EXPECT_EQ(nfc(tokenizer.decode(chat.ids)), nfc(text));
    size_t last = messages.size();
    while (last > 0 && messages[last - 1].role != "assistant") last--;
    if (last < 2) continue;
    const std::string prompt = render_chat(kind, std::span(messages).first(last - 1), true, thinking);
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
  expect_error(Exit::input, {"<|im_end|>"}, [&] { (void)tokenize_conversation(tokenizer, qwen3, messages, true); });
}

}  // namespace
}  // namespace furlong
