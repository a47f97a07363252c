// An HTTP service on loopback that scores or misbehaves as the responses it is asked about tell it to:
//   {"value": 7, "fault": "reset", "times": 2}
// is answered with 7 from the third time on. Beyond that it knows nothing of HTTP that such requests do not need.
#pragma once
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/json.h"

namespace furlong {

class FaultyServer {
 public:
  explicit FaultyServer(double delay) : delay_(delay), listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener_, 256) != 0) std::abort();
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { accept_all(); });
  }
  ~FaultyServer() {
    ending_ = true;
    shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    {
      const std::lock_guard lock(mutex_);
      for (const int fd : open_) shutdown(fd, SHUT_RDWR);
    }
    for (auto& thread : threads_) thread.join();
    close(listener_);
  }
  std::string url(const std::string& path = "/score") const {
    return fmt::format("http://127.0.0.1:{}{}", port_, path);
  }
  int64_t requests() const { return requests_; }
  int64_t connections() const { return connections_; }
  std::vector<std::string> bodies() const {
    const std::lock_guard lock(mutex_);
    return bodies_;
  }
  void keep_bodies() { keeps_ = true; }

 private:
  void accept_all() {
    for (;;) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      connections_++;
      const std::lock_guard lock(mutex_);
      open_.push_back(fd);
      threads_.emplace_back([this, fd] {
        serve(fd);
        const std::lock_guard closing(mutex_);
        open_.remove(fd);
        close(fd);
      });
    }
  }

  static bool put(int fd, std::string_view text) {
    while (!text.empty()) {
      const ssize_t n = send(fd, text.data(), text.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      text.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }

  bool answer(int fd, int status, const std::string& body, const std::string& more = "") {
    return put(fd, fmt::format("HTTP/1.1 {} So\r\n{}Content-Length: {}\r\n\r\n{}", status, more, body.size(), body));
  }

  void serve(int fd) {
    std::string buffer;
    for (;;) {
      size_t head = 0;
      while ((head = buffer.find("\r\n\r\n")) == std::string::npos) {
        if (!more(fd, buffer)) return;
      }
      const size_t at = buffer.find("Content-Length: ");
      const size_t length = at < head ? std::stoul(buffer.substr(at + 16)) : 0;
      while (buffer.size() < head + 4 + length) {
        if (!more(fd, buffer)) return;
      }
      const std::string body = buffer.substr(head + 4, length);
      buffer.erase(0, head + 4 + length);
      requests_++;
      if (keeps_) {
        const std::lock_guard lock(mutex_);
        bodies_.push_back(body);
      }
      if (!respond(fd, Json::parse(body))) return;
    }
  }

  static bool more(int fd, std::string& buffer) {
    char bytes[1 << 14];
    const ssize_t n = recv(fd, bytes, sizeof(bytes), 0);
    if (n > 0) buffer.append(bytes, static_cast<size_t>(n));
    return n > 0;
  }

  bool respond(int fd, const Json& question) {
    if (question.contains("samples")) {
      Json out = Json::array();
      for (const Json& sample : question["samples"])
        out.push_back(Json::parse(sample["response"].get<std::string>())["value"]);
      return answer(fd, 200, out.dump());
    }
    const Json wish = Json::parse(question["response"].get<std::string>());
    const std::string fault = wish.value("fault", "");
    if (!fault.empty() && count(wish) <= wish.value("times", 1 << 30)) return misbehave(fd, fault);
    return speak(fd, wish.value("how", ""), wish["value"].dump());
  }

  // An answer in one of the forms that HTTP has for it.
  bool speak(int fd, const std::string& how, const std::string& body) {
    if (how == "chunked") {
      put(fd, "HTTP/1.1 200 So\r\nTransfer-Encoding: chunked\r\n\r\n");
      for (const char c : body) put(fd, fmt::format("1;x=y\r\n{}\r\n", c));
      return put(fd, "0\r\n\r\n");
    }
    if (how == "close") {
      put(fd, "HTTP/1.1 200 So\r\nConnection: close\r\n\r\n" + body);
      return false;
    }
    if (how == "old") {
      put(fd, "HTTP/1.0 200 So\r\n\r\n" + body);
      return false;
    }
    if (how == "forgets") {  // closes a connection that it had promised to keep
      answer(fd, 200, body);
      return false;
    }
    if (how == "bytes") {
      for (const char c : fmt::format("HTTP/1.1 200 So\r\ncontent-length:{}\r\n\r\n{}", body.size(), body)) {
        put(fd, {&c, 1});
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      return true;
    }
    return answer(fd, 200, body);
  }

  int count(const Json& wish) {
    const std::lock_guard lock(mutex_);
    return ++seen_[wish["value"].dump()];
  }

  // Whether the connection goes on.
  bool misbehave(int fd, const std::string& fault) {
    if (fault == "delay") {
      wait();
      return answer(fd, 200, "999");
    }
    if (fault == "reset") {
      const linger now{1, 0};
      setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
      return false;
    }
    if (fault == "5xx") return answer(fd, 503, "999");
    if (fault == "404") return answer(fd, 404, "999");
    if (fault == "redirect") return answer(fd, 302, "999", "Location: /elsewhere\r\n");
    if (fault == "junk") return answer(fd, 200, "<html>999</html>");
    if (fault == "nan") return answer(fd, 200, "NaN");
    if (fault == "text") return answer(fd, 200, "\"999\"");
    if (fault == "null") return answer(fd, 200, "null");
    if (fault == "deep") return answer(fd, 200, std::string(100000, '['));
    if (fault == "header") {
      put(fd, "HTTP/1.1 200 So\r\n");
      while (!ending_ && put(fd, "X: " + std::string(1000, 'x') + "\r\n")) {
      }
      return false;
    }
    if (fault == "mail") {
      put(fd, "220 ready\r\n999\r\n\r\n");
      return false;
    }
    if (fault == "both") {  // two lengths: no one knows where the answer ends
      return put(fd, "HTTP/1.1 200 So\r\nContent-Length: 1\r\nContent-Length: 3\r\n\r\n999");
    }
    if (fault == "short") {
      put(fd, "HTTP/1.1 200 So\r\nContent-Length: 100\r\n\r\n999");
      return false;
    }
    if (fault == "drip") {  // a byte now and then, so that no single read is late
      std::string text = "HTTP/1.1 200 So\r\nX: ";
      for (int i = 0; i < 200 && !ending_ && put(fd, text); i++) {
        text = "x";
        std::this_thread::sleep_for(std::chrono::duration<double>(delay_ / 20));
      }
      return false;
    }
    if (fault == "endless") {
      put(fd, "HTTP/1.1 200 So\r\nTransfer-Encoding: chunked\r\n\r\n");
      const std::string chunk = "10000\r\n" + std::string(1 << 16, ' ') + "\r\n";
      while (!ending_ && put(fd, chunk)) {
      }
      return false;
    }
    return answer(fd, 500, "no such fault");
  }

  void wait() const {
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(delay_);
    while (!ending_ && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  double delay_;
  int listener_, port_ = 0;
  std::atomic<bool> ending_{false}, keeps_{false};
  std::atomic<int64_t> requests_{0}, connections_{0};
  mutable std::mutex mutex_;
  std::list<int> open_;
  std::list<std::thread> threads_;
  std::map<std::string, int> seen_;
  std::vector<std::string> bodies_;
  std::thread acceptor_;
};

}  // namespace furlong
