// HTTP as hostile or careless clients speak it: limits, deadlines, what two readers could read in two ways.
#include "fixture.h"

namespace furlong {
namespace {

class Http : public ServerTest {
 protected:
  void start_with(const HttpLimits& limits) {
    ServerOptions options;
    options.limits = limits;
    start(options);
  }
  // Sends `bytes`, expects this status and that the connection ends.
  void refused(const std::string& bytes, int status) {
    Client client(server->port());
    client.send(bytes);
    EXPECT_EQ(client.read().status, status) << bytes.substr(0, 80);
    EXPECT_TRUE(client.ended(5)) << bytes.substr(0, 80);
  }
  static std::string body() { return Json({{"prompt", "x"}, {"max_tokens", 2}}).dump(); }
};

TEST_F(Http, OneConnectionManyRequests) {
  start();
  Client client(server->port());
  for (int i = 0; i < 3; i++) {
    client.send(post("/v1/completions", body()));
    EXPECT_EQ(client.read().status, 200);
    client.send(get("/nowhere"));  // no body, so what follows is a request
    EXPECT_EQ(client.read().status, 404);
  }
  EXPECT_EQ(server->metrics_text().find("furlong_connections_total 1\n") != std::string::npos, true);
}

TEST_F(Http, Pipelined) {
  start();
  Client client(server->port());
  client.send(get("/health") + post("/v1/completions", body()) + get("/v1/models") +
              get("/health", "Connection: close\r\n"));
  for (int i = 0; i < 4; i++) EXPECT_EQ(client.read().status, 200) << i;
  EXPECT_TRUE(client.ended());
}

TEST_F(Http, InPieces) {
  start();
  Client client(server->port());
  const std::string bytes = post("/v1/completions", body());
  for (const char c : bytes) {
    client.send({&c, 1});
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  EXPECT_EQ(client.read().status, 200);
}

TEST_F(Http, ChunkedBodies) {
  start();
  const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
  std::string bytes = head;
  for (const char c : body()) bytes += std::string("1;ext=1\r\n") + c + "\r\n";
  EXPECT_EQ(ask(bytes + "0\r\nTrailer: x\r\n\r\n").status, 200);
  refused(head + "zz\r\n", 400);
  refused(head + "ffffffffffffffffff\r\n", 400);
  refused(head + "-1\r\n", 400);
  refused(head + "1;" + std::string(40000, 'x'), 400);
  refused(head + "2000001\r\n", 413);
  refused(head + "0\r\n" + std::string(40000, 'T'), 400);
}

TEST_F(Http, Http10) {
  start();
  const Answer a =
      ask("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(body().size()) + "\r\n\r\n" + body());
  EXPECT_EQ(a.status, 200);
  const std::string stream = Json({{"prompt", "x"}, {"max_tokens", 2}, {"stream", true}}).dump();
  const Answer b =
      ask("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(stream.size()) + "\r\n\r\n" + stream);
  EXPECT_EQ(b.headers.count("Transfer-Encoding"), 0u);
  EXPECT_EQ(events(b.body).size() > 0, true);
}

TEST_F(Http, ExpectContinue) {
  start();
  Client client(server->port());
  const std::string whole = post("/v1/completions", body(), "Expect: 100-continue\r\n");
  client.send(whole.substr(0, whole.size() - body().size()));
  ASSERT_TRUE(client.until("HTTP/1.1 100 Continue\r\n\r\n"));
  client.send(body());
  EXPECT_EQ(client.read().status, 200);
  // Refused before the body is sent.
  Client large(server->port());
  large.send(
      "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n");
  EXPECT_EQ(large.read().status, 413);
}

TEST_F(Http, NotHttp) {
  start();
  refused("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400);
  refused("GET\r\n\r\n", 400);
  refused("GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 400);
  refused("GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400);
  refused("GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400);
  refused("GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400);
  refused(std::string("GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n", 36), 400);
  refused("GET / HTTP/1.1\r\n\r\n", 400);                                        // no Host
  refused("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400);  // two
}

// Requests that a proxy in front might cut elsewhere than we do.
TEST_F(Http, Smuggling) {
  start();
  const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n";
  refused(head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
  refused(head + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400);
  refused(head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400);
  refused(head + "Content-Length: +5\r\n\r\nhello", 400);
  refused(head + "Content-Length: 5, 5\r\n\r\nhello", 400);
  refused(head + "Content-Length: -1\r\n\r\n", 400);
  refused(head + "Content-Length: 99999999999999999999\r\n\r\n", 400);
  refused(head + "Transfer-Encoding: gzip\r\n\r\n", 400);
  refused(head + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400);
}

TEST_F(Http, SizeLimits) {
  start();
  refused("GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + std::string(20000, 'x') + "\r\n\r\n", 431);
  refused("GET /" + std::string(20000, 'x'), 431);
  std::string many = "GET /health HTTP/1.1\r\nHost: localhost\r\n";
  for (int i = 0; i < 100; i++) many += "A" + std::to_string(i) + ": x\r\n";
  refused(many + "\r\n", 431);
  refused("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 33554433\r\n\r\n", 413);
  // All of it within the limits.
  std::string most = "GET /health HTTP/1.1\r\nHost: localhost\r\n";
  for (int i = 0; i < 99; i++) most += "A" + std::to_string(i) + ": " + std::string(100, 'x') + "\r\n";
  EXPECT_EQ(ask(most + "\r\n").status, 200);
  const std::string blank(1 << 20, ' ');
  EXPECT_EQ(ask(post("/v1/completions", blank + body())).status, 200);
}

TEST_F(Http, BodiesTakeOnlySoMuchMemoryTogether) {
  HttpLimits limits;
  limits.body_bytes = 1 << 20;
  limits.bodies_bytes = 3 << 19;
  start_with(limits);
  Client first(server->port()), second(server->port());
  const std::string head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
  first.send(head + std::string(999999, ' '));
  ASSERT_TRUE(soon([&] { return metric("body_bytes") > 900000; }));
  second.send(head + std::string(999999, ' '));
  EXPECT_EQ(second.read().status, 503);
  second.close();
  first.send(" ");
  EXPECT_EQ(first.read().status, 400);  // blanks are no JSON
  // What was held is free again.
  for (int i = 0; i < 4; i++) EXPECT_EQ(ask(post("/v1/completions", std::string(900000, ' '))).status, 400);
}

TEST_F(Http, Deadlines) {
  HttpLimits limits;
  limits.header_seconds = 0.3;
  limits.body_seconds = 0.3;
  limits.idle_seconds = 0.5;
  start_with(limits);
  // A byte now and then does not help.
  Client slow(server->port());
  std::atomic<bool> stop{false};
  std::thread drip([&] {
    slow.send("GET /health HTTP/1.1\r\n");
    while (!stop && slow.send("X")) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  });
  EXPECT_EQ(slow.read().status, 408);
  stop = true;
  drip.join();
  Client half(server->port());
  half.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabc");
  EXPECT_EQ(half.read().status, 408);
  // Who says nothing is told nothing.
  Client silent(server->port());
  EXPECT_TRUE(silent.ended(5));
  EXPECT_EQ(silent.received(), "");
  Client idle(server->port());
  idle.send(get("/health"));
  EXPECT_EQ(idle.read().status, 200);
  EXPECT_TRUE(idle.ended(5));
  EXPECT_EQ(idle.received(), "");
}

TEST_F(Http, ManyConnections) {
  HttpLimits limits;
  limits.connections = 8;
  start_with(limits);
  std::vector<std::unique_ptr<Client>> open;
  for (int i = 0; i < 8; i++) open.push_back(std::make_unique<Client>(server->port()));
  ASSERT_TRUE(soon([&] { return metric("connections") == 8; }));
  for (int i = 0; i < 50; i++) {
    Client more(server->port());
    const Answer a = more.read();
    EXPECT_EQ(a.status, 503);
    EXPECT_TRUE(more.ended());
  }
  open.clear();
  ASSERT_TRUE(soon([&] { return metric("connections") == 0; }));
  EXPECT_EQ(ask(get("/health")).status, 200);
}

TEST_F(Http, PathsAndMethods) {
  start();
  for (const char* path : {"/", "/v1", "/v1/", "/v1/completions/", "/../etc/passwd", "/%2e%2e/etc/passwd", "//", "*",
                           "/metrics/..", "/generate?x=/../..", "/health/", "/inject-fault", "/admin"}) {
    const Answer a = ask(get(path));
    EXPECT_TRUE(a.status == 404 || a.status == 405) << path << " " << a.status;
  }
  EXPECT_EQ(ask(get("/health?verbose=1")).status, 200);
  EXPECT_EQ(ask(get("/v1/completions")).status, 405);
  EXPECT_EQ(ask(post("/health", "")).status, 405);
  EXPECT_EQ(ask("DELETE /v1/models/tiny HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 405);
  // An answer to HEAD has no body, or the next one would begin within it.
  Client head(server->port());
  head.send("HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + get("/nowhere"));
  ASSERT_TRUE(head.until("\r\n\r\nHTTP/1.1 404 "));
  EXPECT_EQ(ask("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 404);
}

TEST_F(Http, RandomBytesNeverHurt) {
  HttpLimits limits;
  limits.header_seconds = 0.2;
  start_with(limits);
  uint64_t state = 1;
  const auto random = [&] { return (state = state * 6364136223846793005u + 1442695040888963407u) >> 33; };
  const std::string good = post("/v1/completions", body(), "Accept: */*\r\n");
  for (int i = 0; i < 300; i++) {
    std::string bytes = good;
    for (uint64_t k = random() % 8; k-- > 0;) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0: bytes[at] = static_cast<char>(random()); break;
        case 1: bytes.erase(at, random() % 8); break;
        case 2: bytes.insert(at, bytes.substr(random() % bytes.size(), random() % 20)); break;
        default: bytes.insert(at, "\r\n"); break;
      }
    }
    Client client(server->port());
    client.send(bytes);
    client.half_close();
    const int status = client.read().status;
    EXPECT_LT(status, 500) << bytes;
  }
  EXPECT_EQ(ask(good).status, 200);
}

}  // namespace
}  // namespace furlong
