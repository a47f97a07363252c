// OpenAI's routes as a client sees them.
#include "fixture.h"

namespace furlong {
namespace {

using Openai = ServerTest;

std::string repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; i++) out += text;
  return out;
}

TEST_F(Openai, Completion) {
  start();
  const Json a = completion({{"model", "tiny"}, {"prompt", "hello"}, {"max_tokens", 4}}).json();
  EXPECT_EQ(a.at("object"), "text_completion");
  EXPECT_EQ(a.at("model"), "tiny");
  EXPECT_EQ(a.at("choices").size(), 1u);
  EXPECT_EQ(a.at("choices")[0].at("text"), "abcd");
  EXPECT_EQ(a.at("choices")[0].at("finish_reason"), "length");
  EXPECT_EQ(a.at("choices")[0].at("logprobs"), nullptr);
  const int64_t prompt = a.at("usage").at("prompt_tokens");
  EXPECT_EQ(prompt, static_cast<int64_t>(engine.seen().at(0).prompt.size()));
  EXPECT_EQ(a.at("usage").at("completion_tokens"), 4);
  EXPECT_EQ(a.at("usage").at("total_tokens"), prompt + 4);
}

TEST_F(Openai, ChatStreamsWhatItAnswersWhole) {
  start();
  const Json messages = {{{"role", "user"}, {"content", "hello"}}};
  Json body = {{"messages", messages}, {"max_tokens", 5}, {"n", 2}, {"logprobs", true}, {"top_logprobs", 2}};
  const Json whole = chat(body).json();
  EXPECT_EQ(whole.at("object"), "chat.completion");
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const Answer streamed = chat(body);
  EXPECT_EQ(streamed.headers.at("Content-Type"), "text/event-stream; charset=utf-8");
  std::map<int, std::string> text;
  std::map<int, Json> log_probs, reasons;
  Json usage;
  for (const Json& e : events(streamed.body)) {
    EXPECT_EQ(e.at("object"), "chat.completion.chunk");
    if (e.at("choices").empty()) {
      usage = e.at("usage");
      continue;
    }
    EXPECT_EQ(e.at("usage"), nullptr);
    const Json& choice = e.at("choices")[0];
    const int i = choice.at("index");
    text[i] += choice.at("delta").value("content", "");
    if (!choice.at("logprobs").is_null()) {
      for (const Json& entry : choice["logprobs"].at("content")) log_probs[i].push_back(entry);
    }
    if (!choice.at("finish_reason").is_null()) reasons[i] = choice["finish_reason"];
  }
  for (int i = 0; i < 2; i++) {
    const Json& choice = whole.at("choices")[static_cast<size_t>(i)];
    EXPECT_EQ(choice.at("message").at("role"), "assistant");
    EXPECT_EQ(choice.at("message").at("content"), i == 0 ? "abcde" : "bcdef");
    EXPECT_EQ(text[i], choice.at("message").at("content"));
    EXPECT_EQ(log_probs[i], choice.at("logprobs").at("content"));
    EXPECT_EQ(reasons[i], choice.at("finish_reason"));
  }
  EXPECT_EQ(usage, whole.at("usage"));
  const Json second = whole.at("choices")[0].at("logprobs").at("content")[1];
  EXPECT_EQ(second, Json({{"token", "b"},
                          {"logprob", -1.0},
                          {"bytes", {98}},
                          {"top_logprobs",
                           {{{"token", tiny_text(97)}, {"logprob", -0.25}, {"bytes", tiny_bytes(97)}},
                            {{"token", tiny_text(98)}, {"logprob", -0.5}, {"bytes", tiny_bytes(98)}}}}}));
}

TEST_F(Openai, CompletionLogProbs) {
  start();
  engine.script = {64, 127, 102, 65};  // a, the two bytes of é, b
  const Json choice = completion({{"prompt", "x"}, {"max_tokens", 4}, {"logprobs", 1}}).json().at("choices")[0];
  EXPECT_EQ(choice.at("text"), "aéb");
  const Json& found = choice.at("logprobs");
  EXPECT_EQ(found.at("tokens"), Json({"a", "\uFFFD", "\uFFFD", "b"}));
  EXPECT_EQ(found.at("token_logprobs"), Json({-0.5, -1.0, -1.5, -2.0}));
  EXPECT_EQ(found.at("text_offset"), Json({0, 1, 2, 3}));
  EXPECT_EQ(found.at("top_logprobs").size(), 4u);
}

TEST_F(Openai, PromptsOfEveryForm) {
  start();
  const auto texts = [](const Json& answer) {
    std::vector<std::string> out;
    for (size_t i = 0; i < answer.at("choices").size(); i++) {
      EXPECT_EQ(answer["choices"][i].at("index"), i);
      out.push_back(answer["choices"][i].at("text"));
    }
    return out;
  };
  const auto ask_for = [&](const Json& prompt, int n) {
    return texts(completion({{"prompt", prompt}, {"max_tokens", 2}, {"n", n}}).json());
  };
  EXPECT_EQ(ask_for({1, 2, 3}, 1), (std::vector<std::string>{"ab"}));
  EXPECT_EQ(engine.seen().back().prompt, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(ask_for({"x", "y"}, 2), (std::vector<std::string>{"ab", "bc", "ab", "bc"}));
  EXPECT_EQ(ask_for(Json::array({{1, 2}, {3}}), 1), (std::vector<std::string>{"ab", "ab"}));
  EXPECT_EQ(engine.seen().back().prompt, (std::vector<int32_t>{3}));
}

TEST_F(Openai, SamplingReachesTheEngine) {
  start();
  completion({{"prompt", "x"}, {"max_tokens", 3}, {"temperature", 0.25}, {"top_p", 0.5}, {"top_k", 7}, {"seed", -5}});
  completion({{"prompt", "x"}, {"max_tokens", 3}, {"stop_token_ids", {70}}, {"temperature", nullptr}});
  completion({{"prompt", "x"}, {"max_tokens", 3}, {"ignore_eos", true}});
  const auto seen = engine.seen();
  EXPECT_EQ(seen[0].params.temperature, 0.25);
  EXPECT_EQ(seen[0].params.top_p, 0.5);
  EXPECT_EQ(seen[0].params.top_k, 7);
  EXPECT_EQ(seen[0].seed, static_cast<uint64_t>(-5));
  EXPECT_EQ(seen[0].max_new_tokens, 3);
  EXPECT_EQ(seen[0].stop_ids, std::vector<int32_t>{stop_id});
  EXPECT_EQ(seen[1].stop_ids, (std::vector<int32_t>{stop_id, 70}));
  EXPECT_EQ(seen[1].params.temperature, 1);
  EXPECT_TRUE(seen[2].stop_ids.empty());
  // Without a seed requests draw apart.
  EXPECT_NE(seen[1].seed, seen[2].seed);
}

TEST_F(Openai, WithoutALengthTheContextIsTheLimit) {
  context = 20;
  start();
  const Json a = chat({{"messages", {{{"role", "user"}, {"content", "x"}}}}}).json();
  EXPECT_EQ(a.at("usage").at("total_tokens"), 20);
}

TEST_F(Openai, Stops) {
  start();
  engine.script = {64, 65, 66, 67, 68, 69, stop_id};
  const auto choice = [&](const Json& more) {
    Json body = {{"prompt", "x"}, {"max_tokens", 10}};
    body.update(more);
    const Json whole = completion(body).json().at("choices")[0];
    body["stream"] = true;
    std::string text;
    for (const Json& e : events(completion(body).body)) text += e.at("choices")[0].at("text");
    EXPECT_EQ(text, whole.at("text"));
    return std::pair<std::string, std::string>(whole.at("text"), whole.at("finish_reason"));
  };
  using Pair = std::pair<std::string, std::string>;
  EXPECT_EQ(choice(Json::object()), Pair("abcdef", "stop"));
  EXPECT_EQ(choice({{"stop", "cd"}}), Pair("ab", "stop"));
  EXPECT_EQ(choice({{"stop", {"zz", "de"}}}), Pair("abc", "stop"));
  EXPECT_EQ(choice({{"stop", "cd"}, {"include_stop_str_in_output", true}}), Pair("abcd", "stop"));
  EXPECT_EQ(choice({{"stop_token_ids", {67}}}), Pair("abc", "stop"));
  EXPECT_EQ(choice({{"ignore_eos", true}}), Pair("abcdefabc", "length"));
  EXPECT_EQ(choice({{"stop", "cd"}, {"min_tokens", 7}}), Pair("ab", "stop"));
  EXPECT_EQ(choice({{"max_tokens", 3}}), Pair("abc", "length"));
}

TEST_F(Openai, MinTokensPutsStopsOff) {
  start();
  engine.script = {64, stop_id, 65};
  const Json a = completion({{"prompt", "x"}, {"max_tokens", 9}, {"min_tokens", 4}}).json();
  EXPECT_EQ(a.at("usage").at("completion_tokens"), 5);
  EXPECT_EQ(a.at("choices")[0].at("text"), "aba");
  EXPECT_EQ(a.at("choices")[0].at("finish_reason"), "stop");
}

TEST_F(Openai, ContentInParts) {
  start();
  const auto prompt_of = [&](const Json& message) {
    EXPECT_EQ(chat({{"messages", {message}}, {"max_tokens", 1}}).status, 200);
    return engine.seen().back().prompt;
  };
  const auto whole = prompt_of({{"role", "user"}, {"content", "ab"}});
  const Json parts = {{{"type", "text"}, {"text", "a"}}, {{"type", "text"}, {"text", "b"}}};
  EXPECT_EQ(prompt_of({{"role", "user"}, {"content", parts}}), whole);
  const Json image = {{{"type", "image_url"}, {"image_url", {{"url", "http://x"}}}}};
  EXPECT_EQ(chat({{"messages", {{{"role", "user"}, {"content", image}}}}}).status, 400);
}

TEST_F(Openai, ToolsReachTheTemplateInTheirOrder) {
  start();
  const std::string tools = R"([{"type":"function","function":{"name":"add","parameters":{"z":1,"a":2}}}])";
  const std::string calls = R"([{"type":"function","id":"1","function":{"name":"add","arguments":"{}"}}])";
  const std::string messages = R"([{"role":"user","content":"x"},{"role":"assistant","content":null,"tool_calls":)" +
                               calls + R"(},{"role":"tool","content":"3","tool_call_id":"1"}])";
  const auto send = [&](const std::string& more) {
    return ask(post("/v1/chat/completions", R"({"max_tokens":1,"messages":)" + messages + more + "}")).status;
  };
  ASSERT_EQ(send(R"(,"tools":)" + tools + R"(,"chat_template_kwargs":{"enable_thinking":false,"y":1,"b":2})"), 200);
  EXPECT_EQ(chats[0].values.tools, tools);
  EXPECT_EQ(chats[0].values.values, R"({"y":1,"b":2})");
  EXPECT_EQ(chats[0].values.enable_thinking, false);
  ASSERT_EQ(chats[0].messages.size(), 3u);
  EXPECT_EQ(chats[0].messages[1].others, R"({"tool_calls":)" + calls + "}");
  EXPECT_EQ(chats[0].messages[2].others, R"({"tool_call_id":"1"})");
  ASSERT_EQ(send(R"(,"tool_choice":"none","tools":)" + tools), 200);
  EXPECT_EQ(chats[1].values.tools, "");
  EXPECT_EQ(send(R"(,"tools":[1])"), 400);
  EXPECT_EQ(send(R"(,"tools":{"a":1})"), 400);
  EXPECT_EQ(send(R"(,"tool_choice":"required","tools":)" + tools), 400);
}

TEST_F(Openai, Models) {
  start();
  const Json list = ask(get("/v1/models")).json();
  EXPECT_EQ(list.at("data").size(), 1u);
  EXPECT_EQ(list["data"][0].at("id"), "tiny");
  EXPECT_EQ(ask(get("/v1/models/tiny")).json(), list["data"][0]);
  EXPECT_EQ(ask(get("/v1/models/t%69ny")).status, 200);
  for (const char* name : {"..%2f..%2fetc%2fpasswd", "../tiny", "%00", "tiny%00", "tiny/", "x", "%", "%2"}) {
    const Answer a = ask(get(std::string("/v1/models/") + name));
    EXPECT_EQ(a.status, 404) << name;
    EXPECT_EQ(a.json().at("error").at("code"), "model_not_found") << name;
  }
}

TEST_F(Openai, RefusesWithTheFieldsName) {
  start();
  struct Case {
    Json more;
    std::string param, words;
  };
  const std::string deep = std::string(3000, '[') + std::string(3000, ']');
  const Case cases[] = {
      {{{"n", 1000000000}}, "n", "from 1 to 128"},
      {{{"n", 0}}, "n", "from 1"},
      {{{"n", 1.5}}, "n", "an integer"},
      {{{"n", "2"}}, "n", "an integer"},
      {{{"n", 18446744073709551615u}}, "n", "from 1 to 128"},
      {{{"max_tokens", -1}}, "max_tokens", "from 1"},
      {{{"temperature", -0.1}}, "temperature", "from 0"},
      {{{"temperature", 1e300}}, "temperature", "from 0"},
      {{{"temperature", "hot"}}, "temperature", "a number"},
      {{{"top_p", 1.01}}, "top_p", "from 0 to 1"},
      {{{"top_k", 0.01}}, "top_k", "an integer"},
      {{{"stop", ""}}, "stop", "empty stop"},
      {{{"stop", {1}}}, "stop", "a text"},
      {{{"stop", std::vector<std::string>(17, "x")}}, "stop", "at most 16"},
      {{{"stop", std::string(2000, 'x')}}, "stop", "at most 1024"},
      {{{"stop_token_ids", {512}}}, "stop_token_ids", "from 0 to 511"},
      {{{"logit_bias", {{"1", 1e9}}}}, "logit_bias", "not offered"},
      {{{"logit_bias", "x"}}, "logit_bias", "not offered"},
      {{{"frequency_penalty", 1}}, "frequency_penalty", "not offered"},
      {{{"logprobs", 21}}, "logprobs", "from 0 to 20"},
      {{{"stream", "yes"}}, "stream", "true or false"},
      {{{"stream_options", {{"include_usage", true}}}}, "stream_options", "stream: true"},
      {{{"stream", true}, {"stream_options", {{"usage", true}}}}, "stream_options.usage", "not a field"},
      {{{"temprature", 1}}, "temprature", "did you mean temperature?"},
      {{{"prompt", Json::array()}}, "prompt", "prompt must be"},
      {{{"prompt", ""}}, "prompt", "no tokens"},
      {{{"prompt", {1, -2}}}, "prompt", "-2"},
      {{{"prompt", {1, 4000000000u}}}, "prompt", "not a token id"},
      {{{"prompt", {1, 600}}}, "prompt", "from 0 to 511"},
      {{{"prompt", {{1}, "x", 2}}}, "prompt[2]", "token ids"},
      {{{"prompt", {{"a", 1}}}}, "prompt", "prompt must be"},
      {{{"prompt", std::vector<std::string>(100, "x")}, {"n", 100}}, "n", "at most 1024"},
      {{{"prompt", nullptr}}, "prompt", "is needed"},
      {{{"echo", true}}, "echo", "not offered"},
  };
  for (const Case& c : cases) {
    Json body = {{"prompt", "x"}, {"max_tokens", 2}};
    body.update(c.more);
    const Answer a = completion(body);
    EXPECT_EQ(a.status, 400) << body;
    const Json error = a.json().at("error");
    EXPECT_EQ(error.at("param"), c.param) << body;
    EXPECT_EQ(error.at("type"), "invalid_request_error");
    EXPECT_NE(error.at("message").get<std::string>().find(c.words), std::string::npos) << error;
  }
  EXPECT_EQ(engine.submitted, 0);
}

TEST_F(Openai, RefusesBadChats) {
  start();
  const Json cases[] = {
      Json(),
      Json::array(),
      "hello",
      {"hello"},
      {{{"content", "x"}}},
      {{{"role", "alien"}, {"content", "x"}}},
      {{{"role", 1}, {"content", "x"}}},
      {{{"role", "user"}, {"content", 1}}},
      {{{"role", "user"}, {"content", {1}}}},
      {{{"role", "user"}, {"content", "x"}, {"contents", "y"}}},
      {{{"role", "assistant"}, {"content", "x"}, {"tool_calls", {1}}}},
      std::vector<Json>(5000, {{"role", "user"}, {"content", "x"}}),
  };
  for (const Json& messages : cases) {
    const Answer a = chat({{"messages", messages}});
    EXPECT_EQ(a.status, 400) << messages.dump().substr(0, 100);
    EXPECT_EQ(a.json().at("error").at("param").get<std::string>().substr(0, 8), "messages");
  }
}

TEST_F(Openai, RefusesBadJson) {
  start();
  const std::string cases[] = {"",
                               "{",
                               "[]",
                               "null",
                               "{\"prompt\":\"x\",\"prompt\":\"y\"}",
                               "{\"prompt\":\"x\",\"temperature\":NaN}",
                               "{\"prompt\":\"x\",\"temperature\":1e999}",
                               "{\"prompt\":\"\xff\"}",
                               "{\"prompt\":\"\\ud800\"}",
                               std::string("{\"prompt\":\"x\0\"}", 14),
                               "{\"prompt\":" + std::string(100000, '[') + std::string(100000, ']') + "}",
                               std::string(1 << 20, '{')};
  for (const std::string& body : cases) {
    const Answer a = ask(post("/v1/completions", body));
    EXPECT_EQ(a.status, 400) << body.substr(0, 60);
    EXPECT_FALSE(a.error().empty());
  }
}

TEST_F(Openai, RefusesBodiesOfTooManyValuesBeforeTheyAreTaken) {
  start();
  const std::string bodies[] = {"{\"prompt\":[" + repeated("1,", 800000) + "1]}",
                                "{\"prompt\":[" + repeated("{\"a\":1},", 21000) + "1]}"};
  for (const std::string& body : bodies) {
    EXPECT_NE(ask(post("/v1/completions", body)).error().find("more than 500000 values or 20000 names"),
              std::string::npos);
  }
}

TEST_F(Openai, WhatCannotFitIsRefused) {
  engine.most_tokens = 100;
  start();
  const auto refused = [](const Answer& a) {
    return a.status == 400 && a.json().at("error").at("code") == "context_length_exceeded";
  };
  EXPECT_TRUE(refused(completion({{"prompt", "x"}, {"max_tokens", 4096}})));                     // the context
  EXPECT_TRUE(refused(completion({{"prompt", std::vector<int>(4096, 1)}, {"max_tokens", 1}})));  //
  EXPECT_TRUE(refused(completion({{"prompt", std::string(1 << 20, 'x')}, {"max_tokens", 1}})));  //
  EXPECT_TRUE(refused(completion({{"prompt", "x"}, {"max_tokens", 200}})));                      // the engine's memory
  Json body = {{"prompt", "x"}, {"max_tokens", 200}, {"stream", true}};
  EXPECT_TRUE(refused(completion(body)));
  EXPECT_EQ(completion({{"prompt", "x"}, {"max_tokens", 50}}).status, 200);
}

TEST_F(Openai, WithoutATokenizerIdsStillWork) {
  start({}, /*with_tokenizer=*/false);
  EXPECT_EQ(completion({{"prompt", "x"}}).status, 400);
  EXPECT_EQ(completion({{"prompt", {1}}, {"stop", "x"}}).status, 400);
  const Json a = generate({{"input_ids", {1}}, {"sampling_params", {{"max_new_tokens", 2}}}}).json();
  EXPECT_EQ(a.at("output_ids"), Json({64, 65}));
}

}  // namespace
}  // namespace furlong
