// The server over the engine itself: the tokens are those of Engine::generate, and nothing of its memory is lost.
#include <random>

#include "checkpoint/hf.h"
#include "fixture.h"
#include "rollout/engine.h"

namespace furlong {
namespace {

class OverEngine : public ServerTest {
 protected:
  OverEngine() : config(read_model_config(tiny_folder)), weights(load_hf(tiny_folder, config, DType::f32)) {}
  void begin(int64_t drafts, int64_t pages = 20) {
    EngineOptions options{.max_running = 8, .drafts = drafts, .max_tokens = 128, .keep_prefixes = true};
    options.max_pages = pages;  // less than 8 sequences may need
    running = std::make_unique<Engine>(config, weights, options, threads);
    ServedModel model;
    model.name = "tiny";
    model.tokenizer = Tokenizer::load(tiny_folder);
    model.longest_token = 16;
    model.vocab_size = config.vocab_size;
    model.context = 128;
    ServerOptions serving;
    serving.port = 0;
    serving.queue.max_running = 8;
    EngineCalls calls;
    Engine& e = *running;
    calls.submit = [&e](Request r, Sink s) { return e.submit(std::move(r), std::move(s)); };
    calls.cancel = [&e](uint64_t id) { e.cancel(id); };
    calls.step = [&e] { return e.step(); };
    calls.gauges = [&e] {
      return EngineCalls::Gauges{.free_pages = e.memory().free_pages(),
                                 .free_slots = e.memory().free_slots(),
                                 .kept_pages = e.kept_prefixes().pages(),
                                 .kept_slots = e.kept_prefixes().slots()};
    };
    server = std::make_unique<Server>(serving, model, calls);
  }
  ~OverEngine() override { server.reset(); }

  ModelConfig config;
  Weights weights;
  ThreadPool threads{1};
  std::unique_ptr<Engine> running;
};

TEST_F(OverEngine, TokensAreTheEngines) {
  Engine alone(config, weights, {.max_running = 4, .max_tokens = 128}, threads);
  const Request request{.prompt = {5, 6, 7, 8}, .samples = 3, .max_new_tokens = 30, .seed = 11};
  const auto wanted = alone.generate(std::span(&request, 1));
  begin(2);
  const Json answer = generate({{"input_ids", request.prompt},
                                {"sampling_params", {{"max_new_tokens", 30}, {"n", 3}, {"sampling_seed", 11}}},
                                {"return_logprob", true},
                                {"top_logprobs_num", 2}})
                          .json();
  for (size_t s = 0; s < 3; s++) {
    EXPECT_EQ(answer[s].at("output_ids"), Json(wanted[s].tokens));
    const Json& meta = answer[s].at("meta_info");
    for (size_t t = 0; t < wanted[s].tokens.size(); t++) {
      EXPECT_EQ(meta.at("output_token_logprobs")[t][0].get<float>(), wanted[s].log_probs[t]);
      EXPECT_GE(meta.at("output_top_logprobs")[t][0][0].get<float>(), wanted[s].log_probs[t]);
    }
    EXPECT_GT(meta.at("spec_draft_token_num"), 0);
  }
  // The same in a stream of text.
  Json body = {{"prompt", request.prompt}, {"max_tokens", 30}, {"n", 3}, {"seed", 11}, {"stream", true}};
  std::map<size_t, std::string> texts;
  for (const Json& e : events(completion(body).body)) {
    const Json& choice = e.at("choices")[0];
    texts[choice.at("index")] += choice.at("text").get<std::string>();
  }
  for (size_t s = 0; s < 3; s++) EXPECT_EQ(texts[s], answer[s].at("text"));
}

TEST_F(OverEngine, DisconnectsGiveAllMemoryBack) {
  begin(2);
  const double pages = metric("kv_pages_free"), slots = metric("state_slots_free");
  std::vector<std::thread> clients;
  for (unsigned t = 0; t < 4; t++) {
    clients.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 40; i++) {
        Client client(server->port());
        const Json body = {{"prompt", std::vector<int>(1 + random() % 60, 3)},
                           {"max_tokens", 1 + random() % 60},
                           {"n", 1 + random() % 3},
                           {"stream", random() % 2 == 0}};
        client.send(post("/v1/completions", body.dump()));
        if (random() % 3 == 0) client.read();
        if (random() % 2 == 0) client.more(0.001 * static_cast<double>(random() % 20));
      }
    });
  }
  for (auto& client : clients) client.join();
  // The server may still be reading what clients sent before they went: answered after it, this one comes behind them.
  EXPECT_EQ(completion({{"prompt", "hello"}, {"max_tokens", 5}}).status, 200);
  EXPECT_TRUE(soon([&] {
    const std::string now = server->metrics_text();
    return metric_of(now, "running_sequences") == 0 && metric_of(now, "waiting_requests") == 0 &&
           metric_of(now, "kv_pages_free") + metric_of(now, "kv_pages_kept") == pages &&
           metric_of(now, "state_slots_free") + metric_of(now, "state_slots_kept") == slots;
  }));
  EXPECT_GT(metric("cancelled_requests_total"), 0);
}

TEST_F(OverEngine, WhatItsMemoryCannotHoldIsRefused) {
  begin(0, 4);
  const Json most = {{"prompt", {1}}, {"max_tokens", 120}};
  const Answer refused = completion(most);
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(refused.json().at("error").at("code"), "context_length_exceeded");
  EXPECT_EQ(completion({{"prompt", {1}}, {"max_tokens", 20}}).status, 200);
}

}  // namespace
}  // namespace furlong
