// The server's socket: takes connections, one thread each, and reads requests from them one after the other.
#pragma once
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "server/connection.h"

namespace furlong {

struct HttpCounts {
  std::atomic<int64_t> connections{0};  // open now
  std::atomic<int64_t> accepted{0}, turned_away{0};
  std::atomic<size_t> body_bytes{0};  // of requests that are being read or parsed
};

// Whether the host is on loopback. Throws as HttpListener's constructor does for a host or port that it could not take.
bool probe_address(const std::string& host, int port);

class HttpListener {
 public:
  struct Calls {
    // A request's header has come, its body has not: throws ApiError to refuse it.
    std::function<void(const HttpRequest&)> admit;
    // Answers. Throws ApiError (sent, where nothing was yet), ClientGone, or anything else (status 500).
    std::function<void(const HttpRequest&, HttpReply&)> handle;
    // A request was answered with this status (0: the client had gone).
    std::function<void(const HttpRequest&, int status)> answered;
  };

  // Listens at once. host: a name or number; port 0: any that is free. Throws Error(Exit::usage) for a host that is
  // not one of this machine's, Error(Exit::resources) for a port that is taken.
  HttpListener(const std::string& host, int port, const HttpLimits&, Calls);
  ~HttpListener();
  HttpListener(const HttpListener&) = delete;
  HttpListener& operator=(const HttpListener&) = delete;

  int port() const { return port_; }
  bool loopback() const { return loopback_; }
  // Begins to take connections.
  void start();
  // Takes no more connections or requests; waits until those at work are answered, or for `seconds` at most. Whether
  // all were.
  bool drain(double seconds);
  const HttpCounts& counts() const { return counts_; }

 private:
  struct Client {
    explicit Client(int socket, HttpListener& listener)
        : connection(socket, listener.limits_, listener.counts_.body_bytes, listener.stopping_) {}
    ClientConnection connection;
    std::thread thread;
    std::atomic<bool> ended{false};
  };
  void accept_all();
  void take(int socket);
  void serve(ClientConnection&);
  bool serve_one(ClientConnection&);
  void join_ended();

  HttpLimits limits_;
  Calls calls_;
  HttpCounts counts_;
  Wake stopping_;
  int socket_ = -1, port_ = 0;
  bool loopback_ = false;
  std::list<Client> clients_;  // of the accepting thread alone, until it has ended
  std::thread thread_;
};

}  // namespace furlong
