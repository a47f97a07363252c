// One client's connection: bytes in and out with deadlines, and the answer to its request.
#pragma once
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/http.h"

namespace furlong {

using SteadyClock = std::chrono::steady_clock;

// Thrown where the client has closed the connection, or takes no more bytes.
struct ClientGone {};

// Lets one thread wake another out of poll(2).
class Wake {
 public:
  Wake();  // throws Error(Exit::resources)
  ~Wake();
  Wake(const Wake&) = delete;
  Wake& operator=(const Wake&) = delete;
  void set() const;
  void clear() const;
  int fd() const { return fd_; }

 private:
  int fd_;
};

class ClientConnection {
 public:
  // Owns the socket, which does not block. bodies: bytes of requests in memory, over all connections. stopping: set
  // when no further request is wanted.
  ClientConnection(int socket, const HttpLimits&, std::atomic<size_t>& bodies, const Wake& stopping);
  ~ClientConnection();
  ClientConnection(const ClientConnection&) = delete;
  ClientConnection& operator=(const ClientConnection&) = delete;

  // False when there is no further request: the client has closed, was idle for too long, or the server stops. Throws
  // ApiError (408 and the parser's).
  bool read_header(HttpParser&);
  // Throws ApiError (408, 413, 503) or ClientGone.
  void read_body(HttpParser&);
  // The request read last is no longer in memory.
  void release_body();
  // Throws ClientGone.
  void write(std::string_view bytes);

  enum class Event { woken, gone, timeout };
  // Waits for `wake`, or until the client has closed its side or `until` has come.
  Event wait(const Wake& wake, SteadyClock::time_point until);
  // Ends the connection so that the client can still read what was sent last: what it is sending is thrown away.
  void linger();
  // Ends all reading and writing, from any thread.
  void abort();

 private:
  // False: the client has sent its last byte.
  bool receive();
  void take(HttpParser&);
  bool poll_socket(short events, SteadyClock::time_point until, bool until_stopping = false);

  int socket_;
  const HttpLimits& limits_;
  std::atomic<size_t>& bodies_;
  const Wake& stopping_;
  std::string in_;  // bytes that came and are not used yet
  size_t charged_ = 0;
  bool first_ = true;
};

// The answer to one request.
class HttpReply {
 public:
  using Headers = std::vector<std::pair<std::string, std::string>>;
  HttpReply(ClientConnection& connection, HttpRequest& request) : connection_(connection), request_(request) {}

  // All of it. Throws ClientGone, as the next three do.
  void send(int status, std::string_view type, std::string_view body, const Headers& headers = {});
  // Or its head, pieces, and end.
  void begin(int status, std::string_view type);
  void write(std::string_view piece);
  void end();

  // Waits for a call of waker(), or that the client goes away.
  ClientConnection::Event wait(double seconds);
  // May be called by any thread, also after the reply has gone.
  std::function<void()> waker();

  // The request's body is of no further use: its memory is given back.
  void drop_body() {
    std::string().swap(request_.body);  // an assignment would keep the memory
    connection_.release_body();
  }
  int status() const { return status_; }  // 0: not begun
  void close_after() { close_ = true; }
  bool closes() const { return close_ || !request_.keep_alive; }

 private:
  std::string head(int status, std::string_view type, const Headers& headers) const;

  ClientConnection& connection_;
  HttpRequest& request_;
  std::shared_ptr<Wake> wake_;
  int status_ = 0;
  bool close_ = false, ended_ = false;
};

}  // namespace furlong
