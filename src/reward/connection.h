// A connection to a service, plain or under TLS, on which nothing waits beyond a deadline.
#pragma once
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

namespace furlong {

struct ServiceUrl {
  bool tls = false;
  std::string host, port, path;  // "localhost", "8080", "/score?x=1"
  std::string authority;         // as it stood in the URL
};
// Throws Error(Exit::usage) for what is not http://host[:port][/path] or https://, and https in a build without TLS.
ServiceUrl parse_service_url(const std::string& url);

// Why a connection is of no use any more.
struct ConnectionLost {
  std::string why;
};

class Connection {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // All of these throw ConnectionLost. Looking up a host's name alone takes as long as the system takes.
  Connection(const ServiceUrl& url, Time deadline);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void write(std::string_view bytes, Time deadline);
  // At least one byte, or none when the other side has closed.
  std::string_view read(Time deadline);
  // Whether the other side has closed, or speaks unasked.
  bool is_stale() const;
  // From another thread: whatever waits here fails.
  void interrupt();

 private:
  struct Tls;
  void wait_for(short events, Time deadline) const;
  void connect_to(const ServiceUrl& url, Time deadline);
  int fd_ = -1;
  std::unique_ptr<Tls> tls_;
  char buffer_[1 << 14];
};

}  // namespace furlong
