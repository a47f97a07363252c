// What one request makes the process take, at most.
#include <malloc.h>

#include <fstream>

#include "fixture.h"

namespace furlong {
namespace {

// Bytes, of /proc/self/status.
int64_t memory_of(const std::string& name) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(name)) return std::stoll(line.substr(name.size() + 1)) * 1024;
  }
  return 0;
}

class Memory : public ServerTest {
 protected:
  void SetUp() override {
    mallopt(M_MMAP_THRESHOLD, 1 << 20);  // as `furlong serve` does
    mallopt(M_ARENA_MAX, 4);
    context = 262144;
    start();
  }
  // How far the process grows at most, beyond what it has now, while it answers.
  int64_t growth(const std::string& request, int& status) {
    malloc_trim(0);
    std::ofstream("/proc/self/clear_refs") << 5;  // the peak begins anew
    const int64_t before = memory_of("VmRSS:");
    status = ask(request).status;
    const int64_t most = memory_of("VmHWM:");
    EXPECT_GE(most, before);
    return most - before;
  }
};

std::string filled(const std::string& text, size_t bytes) {
  std::string out;
  while (out.size() + text.size() <= bytes) out += text;
  return out;
}

constexpr size_t most_body = 32 << 20;
constexpr int64_t promised = 64 << 20;

TEST_F(Memory, OfALargeRequestIsBounded) {
  struct Case {
    std::string what, path, body;
    int status;
  };
  const auto prompt = [](const std::string& text) { return "{\"max_tokens\":1,\"prompt\":\"" + text + "\"}"; };
  const auto chat = [](const std::string& text) {
    return "{\"max_tokens\":1,\"messages\":[{\"role\":\"user\",\"content\":\"" + text + "\"}]}";
  };
  const auto padded = [](const std::string& body) {
    const std::string blanks(4 << 20, ' ');
    std::string out = blanks;
    for (size_t i = 0; i < body.size(); i++) {
      out += body[i];
      if (i < 40 && out.size() + blanks.size() + body.size() < most_body && std::string_view("{:,").find(body[i]) < 3)
        out += blanks;
    }
    return out;
  };
  const size_t most_text = (4 << 20) - 100;
  const std::string completions = "/v1/completions", chats = "/v1/chat/completions", generate = "/generate";
  const std::vector<Case> cases = {
      {"one text", completions, prompt(std::string(most_body - 100, 'x')), 400},
      {"words", completions, padded(prompt(filled("a b\u00e9 ", most_text))), 400},
      {"one word", completions, padded(prompt(std::string(most_text, 'x'))), 400},
      {"the longest word", completions, padded(prompt(std::string(524000, 'x') + " x")), 400},
      {"blanks", completions, padded(prompt(std::string(most_text, ' '))), 400},
      {"marks", completions, padded(prompt(filled("e\u0301", most_text))), 400},
      {"escapes", completions, padded(prompt(filled("\\u3000", most_text))), 400},
      {"texts", completions,
       padded("{\"prompt\":[" + filled("\"x\",", 1023 * 4) + "\"" + filled("xyz ", most_text - 5000) + "\"]}"), 400},
      {"ids", completions, padded("{\"prompt\":[" + filled("1,", 999000) + "1]}"), 400},
      {"long numbers", completions,
       "{\"prompt\":[" +
           filled("1.0000000000000000000000000000000000000000000000000000000000000000000000,", most_body - 100) + "1]}",
       400},
      {"one number", completions, "{\"n\":1" + std::string(most_body - 100, '0') + "}", 400},
      {"chat of one text", chats, chat(std::string(most_body - 100, 'x')), 400},
      {"chat of words", chats, padded(chat(filled("a b ", most_text))), 400},
      {"text of words", generate, padded("{\"text\":\"" + filled("a b ", most_text) + "\"}"), 400},
  };
  for (const Case& c : cases) {
    ASSERT_LE(c.body.size(), most_body) << c.what;
    for (const bool chunked : {false, true}) {
      std::string request = post(c.path, c.body);
      if (chunked) {
        request = "POST " + c.path + " HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (size_t at = 0; at < c.body.size(); at += 1 << 20) {
          const std::string piece = c.body.substr(at, 1 << 20);
          request += fmt::format("{:x}\r\n{}\r\n", piece.size(), piece);
        }
        request += "0\r\n\r\n";
      }
      int status = 0;
      const int64_t grown = growth(request, status);
      EXPECT_EQ(status, c.status) << c.what;
      EXPECT_LE(grown, promised) << c.what << ", chunked " << chunked;
    }
  }
}

TEST_F(Memory, OfABodyIsGivenBackBeforeTheAnswer) {
  int status = 0;
  const std::string body = "{\"max_tokens\":3,\"prompt\":\"x\"}";
  engine.held = true;
  Client client(server->port());
  client.send(post("/v1/completions", std::string(4 << 20, ' ') + body + std::string(4 << 20, ' ')));
  ASSERT_TRUE(soon([&] { return engine.live == 1; }));
  EXPECT_EQ(metric("body_bytes"), 0);
  const int64_t first = memory_of("VmRSS:");
  EXPECT_LE(growth(get("/health"), status), 1 << 20);
  EXPECT_LE(memory_of("VmRSS:"), first + (1 << 20));
  engine.held = false;
  EXPECT_EQ(client.read().status, 200);
}

}  // namespace
}  // namespace furlong
