// Who may speak to the server.
#include "fixture.h"

namespace furlong {
namespace {

using Access = ServerTest;
constexpr const char* key = "0123456789abcdef";

TEST_F(Access, EveryRouteWantsTheKey) {
  ServerOptions options;
  options.api_key = key;
  start(options);
  const std::string paths[] = {"/v1/chat/completions",
                               "/v1/completions",
                               "/v1/models",
                               "/v1/models/tiny",
                               "/generate",
                               "/health",
                               "/metrics",
                               "/nowhere"};
  const std::string wrong[] = {"",
                               "Authorization: Bearer 0123456789abcdeX\r\n",
                               "Authorization: Bearer 0123456789abcde\r\n",
                               "Authorization: Bearer 0123456789abcdef0\r\n",
                               "Authorization: Bearer \r\n",
                               "Authorization: Basic 0123456789abcdef\r\n",
                               "Authorization: 0123456789abcdef\r\n",
                               "X-Api-Key: 0123456789abcdef\r\n"};
  for (const std::string& path : paths) {
    for (const std::string& header : wrong) {
      const Answer a = ask(get(path, header));
      EXPECT_EQ(a.status, 401) << path << " " << header;
      EXPECT_EQ(a.headers.at("WWW-Authenticate"), "Bearer");
      EXPECT_EQ(ask(post(path, "{}", header)).status, 401) << path << " " << header;
    }
    for (const std::string name : {"Bearer ", "bearer "}) {
      EXPECT_NE(ask(get(path, "Authorization: " + name + key + "\r\n")).status, 401) << path;
    }
  }
  EXPECT_EQ(ask(get("/health", std::string("Authorization: Bearer ") + key + "\r\n")).status, 200);
  // Refused before the body is read.
  Client client(server->port());
  client.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n");
  EXPECT_EQ(client.read().status, 401);
}

TEST_F(Access, OtherHostsAndOriginsAreRefused) {
  start();
  const auto status = [&](const std::string& host, const std::string& more = "") {
    return ask("GET /health HTTP/1.1\r\nHost: " + host + "\r\n" + more + "\r\n").status;
  };
  for (const char* host : {"localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "[::1]:8000", "127.1.2.3"}) {
    EXPECT_EQ(status(host), 200) << host;
  }
  for (const char* host : {"evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.evil", "10.0.0.1",
                           "[::2]", "", "localhost@evil.example", "0.0.0.0"}) {
    EXPECT_EQ(status(host), 403) << host;
  }
  EXPECT_EQ(status("localhost", "Origin: http://localhost:3000\r\n"), 200);
  EXPECT_EQ(status("localhost", "Origin: https://127.0.0.1\r\n"), 200);
  for (const char* origin :
       {"http://evil.example", "null", "http://localhost.evil.example", "file://localhost", "localhost"}) {
    EXPECT_EQ(status("localhost", std::string("Origin: ") + origin + "\r\n"), 403) << origin;
  }
}

std::string refusal(const ServerOptions& options) {
  try {
    check_server_options(options);
  } catch (const Error& error) {
    return std::string(error.code() == Exit::usage ? "usage: " : "resources: ") + error.what();
  }
  return "";
}

TEST(ServerOptionsCheck, NothingListensBeyondLoopbackWithoutAKey) {
  for (const char* host : {"0.0.0.0", "::"}) {
    ServerOptions options;
    options.host = host;
    options.port = 0;
    EXPECT_NE(refusal(options).find("usage: --host " + options.host + ": beyond this machine"), std::string::npos);
    options.api_key = key;
    EXPECT_EQ(refusal(options), "");
  }
  for (const char* host : {"127.0.0.1", "localhost", "127.0.0.2"}) {
    EXPECT_EQ(refusal({.host = host, .port = 0}), "") << host;
  }
}

TEST(ServerOptionsCheck, ShortKeysAndForeignAddresses) {
  EXPECT_NE(refusal({.port = 0, .api_key = "short"}).find("a key of 5 bytes"), std::string::npos);
  EXPECT_NE(refusal({.host = "203.0.113.7", .port = 0, .api_key = key}).find("not an address of this machine"),
            std::string::npos);
}

TEST_F(Access, ATakenPortIsSaidAtOnce) {
  start();
  const std::string words = refusal({.port = server->port()});
  EXPECT_EQ(words.rfind("resources: cannot listen on 127.0.0.1:", 0), 0u) << words;
  EXPECT_NE(words.find("Address already in use"), std::string::npos) << words;
}

TEST(SameSecret, ComparesAllOfIt) {
  EXPECT_TRUE(same_secret("abc", "abc"));
  EXPECT_FALSE(same_secret("abd", "abc"));
  EXPECT_FALSE(same_secret("ab", "abc"));
  EXPECT_FALSE(same_secret("abcabc", "abc"));
  EXPECT_FALSE(same_secret("", "abc"));
}

}  // namespace
}  // namespace furlong
