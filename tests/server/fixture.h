// A server over an engine that draws what it is told, and a client that speaks bytes.
#pragma once
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "server/server.h"

namespace furlong {

inline const std::string tiny_folder = FURLONG_TEST_DATA "/tiny";

// Every sample gets the tokens of the script, one a step; sample s begins s tokens later.
class ScriptedEngine {
 public:
  std::vector<int32_t> script = {64, 65, 66, 67, 68, 69};  // abcdef
  std::atomic<bool> held{false};                           // a step waits
  std::atomic<bool> failing{false};                        // a step throws
  std::atomic<int64_t> steps{0}, live{0}, submitted{0}, cancelled{0};
  std::atomic<int64_t> step_microseconds{0};
  int64_t most_tokens = 1 << 20;  // of a request that fits

  EngineCalls calls() {
    EngineCalls c;
    c.submit = [this](Request request, Sink sink) { return submit(std::move(request), std::move(sink)); };
    c.cancel = [this](uint64_t id) { cancel(id); };
    c.step = [this] { return step(); };
    c.gauges = [this] {
      return EngineCalls::Gauges{.free_pages = 100 - live, .pages = 100, .free_slots = 100 - live, .slots = 100};
    };
    return c;
  }
  std::vector<Request> seen() const {
    const std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  struct Running {
    Request request;
    Sink sink;
    std::vector<Completion> samples;
    std::vector<bool> ended;
    bool cancelled = false;
  };

  uint64_t submit(Request request, Sink sink) {
    if (static_cast<int64_t>(request.prompt.size()) + request.max_new_tokens > most_tokens) {
      fail(Exit::resources, "the request needs more pages than there are");
    }
    {
      const std::lock_guard lock(mutex_);
      seen_.push_back(request);
    }
    submitted++;
    live += request.samples;
    Running r{std::move(request), std::move(sink), {}, {}};
    for (int64_t s = 0; s < r.request.samples; s++) r.samples.push_back({.request = next_, .sample = s});
    r.ended.resize(r.samples.size());
    running_.emplace(next_, std::move(r));
    return next_++;
  }

  void cancel(uint64_t id) {
    if (running_.count(id) == 0) return;
    cancelled++;
    running_.at(id).cancelled = true;
  }

  bool step() {
    while (held) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (failing) fail(Exit::numerics, "the logits are not finite");
    if (running_.empty()) return false;
    steps++;
    if (step_microseconds > 0) std::this_thread::sleep_for(std::chrono::microseconds(step_microseconds));
    std::vector<uint64_t> ids;
    for (const auto& [id, running] : running_) ids.push_back(id);
    for (const uint64_t id : ids) {
      Running& r = running_.at(id);
      for (size_t s = 0; s < r.samples.size(); s++) {
        if (!r.ended[s]) draw(r, s);
      }
      if (std::find(r.ended.begin(), r.ended.end(), false) == r.ended.end()) running_.erase(id);
    }
    return true;
  }

  void draw(Running& r, size_t s) {
    Completion& c = r.samples[s];
    Emitted e{.request = c.request, .sample = c.sample};
    std::vector<std::vector<Alternative>> alternatives;
    bool ends = r.cancelled;
    if (ends) {
      c.reason = FinishReason::abort;
    } else {
      c.tokens.push_back(script[(c.tokens.size() + s) % script.size()]);
      c.log_probs.push_back(-0.5f * static_cast<float>(c.tokens.size()));
      e.tokens = std::span(c.tokens).last(1);
      e.log_probs = std::span(c.log_probs).last(1);
      if (r.request.alternatives > 0) {
        alternatives.emplace_back();
        for (int32_t k = 0; k < r.request.alternatives; k++) alternatives[0].push_back({97 + k, -0.25f * (k + 1)});
        e.alternatives = alternatives;
      }
      const auto& stops = r.request.stop_ids;
      const bool stop = std::find(stops.begin(), stops.end(), c.tokens.back()) != stops.end() ||
                        (r.request.stop_when && r.request.stop_when(c.tokens));
      if (stop) c.reason = FinishReason::stop;
      ends = stop || static_cast<int64_t>(c.tokens.size()) >= r.request.max_new_tokens;
    }
    if (ends) {
      r.ended[s] = true;
      live--;
      e.finished = &c;
    }
    r.sink(e);
  }

  mutable std::mutex mutex_;
  std::vector<Request> seen_;
  std::map<uint64_t, Running> running_;
  uint64_t next_ = 1;
};

inline std::string tiny_text(int32_t id) { return Tokenizer::load(tiny_folder).token_text(id); }
inline Json tiny_bytes(int32_t id) {
  Json bytes = Json::array();
  const Tokenizer tokenizer = Tokenizer::load(tiny_folder);
  for (const char c : tokenizer.token_bytes(id)) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

struct Answer {
  int status = 0;  // 0: the connection ended without one
  std::map<std::string, std::string> headers;
  std::string body;
  Json json() const { return Json::parse(body); }
  std::string error() const { return json().at("error").at("message"); }
};

class Client {
 public:
  explicit Client(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~Client() { close(); }
  Client(const Client&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void half_close() { shutdown(fd_, SHUT_WR); }
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  // More of what the server sends; false: nothing more comes, or not within `seconds`.
  bool more(double seconds = 10) {
    pollfd p{fd_, POLLIN, 0};
    if (poll(&p, 1, static_cast<int>(seconds * 1000)) <= 0) return false;
    char buffer[16384];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
    if (n <= 0) return false;
    in_.append(buffer, static_cast<size_t>(n));
    return true;
  }
  // Until the server has sent this; false: it never did.
  bool until(const std::string& text) {
    while (in_.find(text) == in_.npos) {
      if (!more()) return false;
    }
    return true;
  }
  bool ended(double seconds = 10) {
    while (more(seconds)) {
    }
    pollfd p{fd_, POLLIN, 0};
    return poll(&p, 1, 0) > 0;
  }
  const std::string& received() const { return in_; }

  // One answer, its body put together.
  Answer read() {
    Answer a;
    if (!until("\r\n\r\n")) return a;
    size_t at = in_.find("\r\n\r\n") + 4;
    size_t line = in_.find("\r\n") + 2;
    a.status = std::stoi(in_.substr(9, 3));
    while (line < at - 2) {
      const size_t end = in_.find("\r\n", line), colon = in_.find(": ", line);
      a.headers[in_.substr(line, colon - line)] = in_.substr(colon + 2, end - colon - 2);
      line = end + 2;
    }
    in_.erase(0, at);
    if (a.status == 100) return read();
    if (a.headers.count("Transfer-Encoding") > 0) {
      for (;;) {
        while (in_.find("\r\n") == in_.npos && more()) {
        }
        const size_t size = std::stoul(in_, nullptr, 16), begin = in_.find("\r\n") + 2;
        while (in_.size() < begin + size + 2 && more()) {
        }
        a.body += in_.substr(begin, size);
        in_.erase(0, begin + size + 2);
        if (size == 0) return a;
      }
    }
    if (a.headers.count("Content-Length") == 0) {
      while (more()) {
      }
      a.body = std::exchange(in_, "");
      return a;
    }
    const size_t size = std::stoul(a.headers.at("Content-Length"));
    while (in_.size() < size && more()) {
    }
    a.body = in_.substr(0, size);
    in_.erase(0, a.body.size());
    return a;
  }

 private:
  int fd_;
  bool connected_ = false;
  std::string in_;
};

inline std::string post(const std::string& path, const std::string& body, const std::string& headers = "") {
  return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

inline std::string get(const std::string& path, const std::string& headers = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n";
}

// The JSON of an event stream's events; the last must be [DONE].
inline std::vector<Json> events(const std::string& body) {
  std::vector<Json> out;
  bool done = false;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    EXPECT_EQ(body.substr(at, 6), "data: ");
    EXPECT_FALSE(done) << "an event after [DONE]";
    const std::string data = body.substr(at + 6, end - at - 6);
    if (data == "[DONE]") {
      done = true;
    } else {
      out.push_back(Json::parse(data));
    }
    at = end + 2;
  }
  EXPECT_TRUE(done) << body;
  return out;
}

// Whether `condition` comes true within some seconds; it need not stay so.
template <class F>
bool soon(F&& condition) {
  for (int i = 0; i < 5000; i++) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

class ServerTest : public testing::Test {
 protected:
  void start(ServerOptions options = {}, bool with_tokenizer = true) {
    ServedModel model;
    model.name = "tiny";
    if (with_tokenizer) model.tokenizer = Tokenizer::load(tiny_folder);
    model.render_chat = [this](const ChatPrompt& prompt) {
      {
        const std::lock_guard lock(chats_mutex);
        chats.push_back(prompt);
      }
      // The built-in format knows no tools.
      std::vector<Message> messages = prompt.messages;
      for (Message& message : messages) message.others.clear();
      const ChatValues values{.enable_thinking = prompt.values.enable_thinking};
      return render_chat(named_chat_template("qwen3"), messages, true, values);
    };
    model.longest_token = 16;
    model.stop_ids = {stop_id};
    model.vocab_size = 512;
    model.context = context;
    model.seed = 99;
    options.port = 0;
    server = std::make_unique<Server>(options, model, engine.calls());
  }
  Answer ask(const std::string& bytes) {
    Client client(server->port());
    client.send(bytes);
    return client.read();
  }
  Answer completion(const Json& body) { return ask(post("/v1/completions", body.dump())); }
  Answer chat(const Json& body) { return ask(post("/v1/chat/completions", body.dump())); }
  Answer generate(const Json& body) { return ask(post("/generate", body.dump())); }
  // A number of /metrics.
  double metric(const std::string& name) { return metric_of(server->metrics_text(), name); }
  // Of one answer of /metrics, so that several figures are of one moment.
  static double metric_of(const std::string& text, const std::string& name) {
    const size_t at = text.find("\nfurlong_" + name + " ");
    EXPECT_NE(at, text.npos) << name;
    return at == text.npos ? -1 : std::stod(text.substr(at + name.size() + 10));
  }

  static constexpr int32_t stop_id = 498;  // <|im_end|>
  int64_t context = 4096;
  std::mutex chats_mutex;
  std::vector<ChatPrompt> chats;
  ScriptedEngine engine;  // outlives the server
  std::unique_ptr<Server> server;
};

}  // namespace furlong
