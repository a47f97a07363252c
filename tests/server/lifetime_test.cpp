// Requests whose client goes away, queues that are full, engines that fail, servers that stop.
#include "fixture.h"

namespace furlong {
namespace {

using Lifetime = ServerTest;

Json endless(bool stream) { return {{"prompt", "x"}, {"max_tokens", 4000}, {"ignore_eos", true}, {"stream", stream}}; }

TEST_F(Lifetime, AClientThatGoesEndsItsRequest) {
  engine.step_microseconds = 200;
  start();
  for (const bool stream : {true, false}) {
    Client client(server->port());
    Json body = endless(stream);
    body["n"] = 3;
    client.send(post("/v1/completions", body.dump()));
    if (stream) {
      ASSERT_TRUE(client.until("data: "));
    }
    ASSERT_TRUE(soon([&] { return engine.live == 3; }));
    client.close();
    EXPECT_TRUE(soon([&] { return engine.live == 0; }));
  }
  EXPECT_EQ(engine.cancelled, 2);
  EXPECT_TRUE(soon([&] { return metric("cancelled_requests_total") == 2 && metric("running_sequences") == 0; }));
  EXPECT_TRUE(soon([&] { return metric("connections") == 0; }));
}

TEST_F(Lifetime, WhileTheEngineIsBusyTheCancelWaitsOneStep) {
  start();
  engine.held = true;
  Client client(server->port());
  client.send(post("/v1/completions", endless(true).dump()));
  ASSERT_TRUE(soon([&] { return engine.live == 1; }));
  const int64_t steps = engine.steps;
  client.close();
  ASSERT_TRUE(soon([&] { return metric("connections") == 0; }));
  engine.held = false;
  ASSERT_TRUE(soon([&] { return engine.live == 0; }));
  EXPECT_LE(engine.steps, steps + 2);  // the one that was held, and the one that ends it
}

TEST_F(Lifetime, ARequestThatWaitsIsForgottenWithItsClient) {
  ServerOptions options;
  options.queue = {.max_running = 1, .max_waiting = 10};
  engine.step_microseconds = 200;
  start(options);
  engine.held = true;
  Client first(server->port()), second(server->port());
  first.send(post("/v1/completions", endless(true).dump()));
  ASSERT_TRUE(soon([&] { return engine.live == 1; }));
  second.send(post("/v1/completions", endless(true).dump()));
  ASSERT_TRUE(soon([&] { return metric("waiting_requests") == 1; }));
  second.close();
  engine.held = false;
  EXPECT_TRUE(soon([&] { return metric("waiting_requests") == 0; }));
  first.close();
  EXPECT_TRUE(soon([&] { return engine.live == 0; }));
  EXPECT_EQ(engine.submitted, 1);
}

TEST_F(Lifetime, AFullQueueRefuses) {
  ServerOptions options;
  options.queue = {.max_running = 1, .max_waiting = 2};
  start(options);
  engine.held = true;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 3; i++) {
    clients.push_back(std::make_unique<Client>(server->port()));
    clients.back()->send(post("/v1/completions", Json({{"prompt", "x"}, {"max_tokens", 2}}).dump()));
    ASSERT_TRUE(soon([&] { return i == 0 ? engine.live == 1 : metric("waiting_requests") == i; }));
  }
  const Answer refused = completion({{"prompt", "x"}, {"max_tokens", 2}});
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.headers.at("Retry-After"), "1");
  EXPECT_EQ(refused.json().at("error").at("type"), "rate_limit_error");
  engine.held = false;
  for (auto& client : clients) EXPECT_EQ(client->read().status, 200);
}

TEST_F(Lifetime, ManyDisconnectsLeakNothing) {
  engine.step_microseconds = 50;
  start();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; i++) {
        Client client(server->port());
        const bool stream = (i + t) % 3 != 0;
        client.send(post("/v1/completions", endless(stream).dump()));
        if (i % 4 == 0) client.half_close();
        if (stream && i % 2 == 0) client.until("data: ");
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(soon([&] { return engine.live == 0 && metric("connections") == 0; }));
  EXPECT_TRUE(soon([&] { return metric("running_sequences") == 0 && metric("waiting_requests") == 0; }));
  EXPECT_TRUE(soon([&] { return metric("kv_pages_free") == metric("kv_pages"); }));
  EXPECT_EQ(completion({{"prompt", "x"}, {"max_tokens", 2}}).status, 200);
}

TEST_F(Lifetime, AClientThatDoesNotReadIsLeft) {
  ServerOptions options;
  options.limits.write_seconds = 0.3;
  context = 1 << 20;
  start(options);
  Client client(server->port());
  client.send(post(
      "/v1/completions",
      Json({{"prompt", "x"}, {"max_tokens", 500000}, {"ignore_eos", true}, {"stream", true}, {"logprobs", 5}}).dump()));
  ASSERT_TRUE(soon([&] { return engine.live == 1; }));
  EXPECT_TRUE(soon([&] { return engine.live == 0; }));
  EXPECT_TRUE(soon([&] { return metric("connections") == 0; }));
}

TEST_F(Lifetime, HealthTellsOfProgress) {
  ServerOptions options;
  options.stuck_seconds = 0.2;
  start(options);
  EXPECT_EQ(ask(get("/health")).json().at("status"), "idle");
  EXPECT_EQ(completion({{"prompt", "x"}, {"max_tokens", 3}}).status, 200);
  EXPECT_TRUE(soon([&] { return ask(get("/health")).json().at("steps") == 3; }));
  engine.held = true;
  Client client(server->port());
  client.send(post("/v1/completions", Json({{"prompt", "x"}, {"max_tokens", 3}}).dump()));
  ASSERT_TRUE(soon([&] { return engine.live == 1; }));
  ASSERT_TRUE(soon([&] { return ask(get("/health")).status == 503; }));
  const Json stuck = ask(get("/health")).json();
  EXPECT_EQ(stuck.at("status"), "stuck");
  EXPECT_EQ(stuck.at("running"), 1);
  EXPECT_GT(stuck.at("seconds_since_step"), 0.2);
  // The request that waits for it is told so.
  EXPECT_EQ(client.read().status, 503);
  engine.held = false;
  EXPECT_TRUE(soon([&] { return ask(get("/health")).status == 200; }));
}

TEST_F(Lifetime, AnEngineThatFailsAnswersAndIsReported) {
  start();
  std::atomic<int> told{0};
  engine.step_microseconds = 100;
  server->on_failure([&] { told++; });
  Client whole(server->port()), stream(server->port());
  whole.send(post("/v1/completions", endless(false).dump()));
  stream.send(post("/v1/completions", endless(true).dump()));
  ASSERT_TRUE(stream.until("data: "));
  ASSERT_TRUE(soon([&] { return engine.live == 2; }));
  engine.failing = true;
  EXPECT_EQ(whole.read().status, 500);
  EXPECT_TRUE(stream.until("\"error\""));
  EXPECT_TRUE(stream.until("data: [DONE]"));
  EXPECT_TRUE(soon([&] { return told == 1; }));
  ASSERT_NE(server->failure(), nullptr);
  EXPECT_THROW(std::rethrow_exception(server->failure()), Error);
  EXPECT_EQ(completion({{"prompt", "x"}}).status, 503);
  EXPECT_EQ(ask(get("/health")).json().at("status"), "failed");
}

TEST_F(Lifetime, DrainingLetsRequestsEnd) {
  start();
  engine.held = true;
  Client client(server->port()), idle(server->port());
  client.send(post("/v1/completions", Json({{"prompt", "x"}, {"max_tokens", 3}}).dump()));
  idle.send(get("/health"));
  EXPECT_EQ(idle.read().status, 200);
  ASSERT_TRUE(soon([&] { return engine.live == 1; }));
  bool all = false;
  std::thread drain([&] { all = server->drain(10); });
  EXPECT_TRUE(idle.ended());
  EXPECT_TRUE(soon([&] {
    Client late(server->port());
    return !late.connected();
  }));
  engine.held = false;
  EXPECT_EQ(client.read().status, 200);
  drain.join();
  EXPECT_TRUE(all);
}

TEST_F(Lifetime, DrainingEndsInTime) {
  engine.step_microseconds = 500;
  start();
  Client client(server->port());
  client.send(post("/v1/completions", endless(true).dump()));
  ASSERT_TRUE(client.until("data: "));
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_FALSE(server->drain(0.2));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
  EXPECT_TRUE(client.ended());
  EXPECT_TRUE(soon([&] { return engine.live == 0; }));
}

TEST_F(Lifetime, Metrics) {
  start();
  EXPECT_EQ(completion({{"prompt", "x"}, {"max_tokens", 3}}).status, 200);
  EXPECT_EQ(ask(get("/v1/completions/../../x")).status, 404);
  EXPECT_EQ(completion({{"prompt", 1}}).status, 400);
  // Counted once they have been sent.
  ASSERT_TRUE(soon([&] {
    const std::string text = server->metrics_text();
    return metric("steps_total") == 3 && text.find("{route=\"other\",status=\"404\"} 1\n") != text.npos &&
           text.find("{route=\"/v1/completions\",status=\"400\"} 1\n") != text.npos;
  }));
  const Answer a = ask(get("/metrics"));
  EXPECT_EQ(a.headers.at("Content-Type"), "text/plain; version=0.0.4; charset=utf-8");
  for (const char* line :
       {"furlong_generated_tokens_total 3\n", "furlong_steps_total 3\n", "# TYPE furlong_steps_total counter\n",
        "furlong_requests_total{route=\"/v1/completions\",status=\"200\"} 1\n",
        "furlong_requests_total{route=\"/v1/completions\",status=\"400\"} 1\n",
        "furlong_requests_total{route=\"other\",status=\"404\"} 1\n", "furlong_request_tokens_bucket{le=\"4\"} 1\n",
        "furlong_request_tokens_bucket{le=\"+Inf\"} 1\n", "furlong_request_tokens_sum 3\n"}) {
    EXPECT_NE(a.body.find(line), std::string::npos) << line << a.body;
  }
}

}  // namespace
}  // namespace furlong
