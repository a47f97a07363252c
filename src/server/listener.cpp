#include "server/listener.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "server/access.h"
#include "server/api_error.h"

namespace furlong {
namespace {

constexpr int backlog = 1024;
constexpr size_t files_beside_clients = 64;

// Two descriptors a client: its socket and what wakes it.
size_t clients_that_files_allow(size_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  const rlim_t needed = 2 * wanted + files_beside_clients;
  if (limit.rlim_cur < needed) {
    limit.rlim_cur = std::min(needed, limit.rlim_max);
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  if (limit.rlim_cur >= needed) return wanted;
  const size_t fit = limit.rlim_cur > 2 * files_beside_clients ? (limit.rlim_cur - files_beside_clients) / 2 : 1;
  log::warn("the limit of open files ({}) allows {} connections, not {}; ulimit -n raises it", limit.rlim_cur, fit,
            wanted);
  return fit;
}

struct AddressList {
  AddressList() = default;
  AddressList(AddressList&& other) noexcept : first(std::exchange(other.first, nullptr)) {}
  ~AddressList() {
    if (first != nullptr) freeaddrinfo(first);
  }
  addrinfo* first = nullptr;
};

AddressList addresses_of(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  AddressList found;
  const int error = getaddrinfo(host.c_str(), fmt::format("{}", port).c_str(), &hints, &found.first);
  if (error != 0) fail(Exit::usage, "--host {}: {}", printable(host), gai_strerror(error));
  return found;
}

int bound_socket(const addrinfo& address, const std::string& host, int port) {
  const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) fail(Exit::resources, "cannot open a socket: {}", std::strerror(errno));
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, address.ai_addr, address.ai_addrlen) == 0) return fd;
  const int error = errno;
  close(fd);
  if (error == EADDRNOTAVAIL) fail(Exit::usage, "--host {}: that is not an address of this machine", printable(host));
  fail(Exit::resources, "cannot listen on {}:{}: {}. Choose another --port, or 0 for any that is free.",
       printable(host), port, std::strerror(error));
}

int port_of(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

}  // namespace

bool probe_address(const std::string& host, int port) {
  const AddressList found = addresses_of(host, port);
  close(bound_socket(*found.first, host, port));
  return is_loopback(*found.first->ai_addr);
}

HttpListener::HttpListener(const std::string& host, int port, const HttpLimits& limits, Calls calls)
    : limits_(limits), calls_(std::move(calls)) {
  limits_.connections = clients_that_files_allow(limits_.connections);
  const AddressList found = addresses_of(host, port);
  loopback_ = is_loopback(*found.first->ai_addr);
  socket_ = bound_socket(*found.first, host, port);
  if (listen(socket_, backlog) != 0) {
    const int error = errno;
    close(socket_);
    fail(Exit::resources, "cannot listen on {}:{}: {}", printable(host), port, std::strerror(error));
  }
  port_ = port_of(socket_);
}

HttpListener::~HttpListener() { drain(0); }

void HttpListener::start() {
  thread_ = std::thread([this] { accept_all(); });
}

bool HttpListener::drain(double seconds) {
  stopping_.set();
  if (thread_.joinable()) thread_.join();
  // From here on the system refuses connections.
  if (socket_ >= 0) close(std::exchange(socket_, -1));
  const auto until =
      SteadyClock::now() + std::chrono::duration_cast<SteadyClock::duration>(std::chrono::duration<double>(seconds));
  while (counts_.connections > 0 && SteadyClock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  const bool all = counts_.connections == 0;
  for (Client& client : clients_) client.connection.abort();
  for (Client& client : clients_) client.thread.join();
  clients_.clear();
  return all;
}

void HttpListener::accept_all() {
  for (;;) {
    pollfd fds[2] = {{socket_, POLLIN, 0}, {stopping_.fd(), POLLIN, 0}};
    if (poll(fds, 2, 1000) < 0 && errno != EINTR) CHECK(false, "poll: {}", std::strerror(errno));
    join_ended();
    if (fds[1].revents != 0) return;
    if (fds[0].revents == 0) continue;
    const int fd = accept4(socket_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
      take(fd);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));  // until a client ends
    }
  }
}

void HttpListener::join_ended() {
  clients_.remove_if([](Client& client) {
    if (!client.ended) return false;
    client.thread.join();
    return true;
  });
}

void HttpListener::take(int socket) {
  counts_.accepted++;
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  bool room = counts_.connections < static_cast<int64_t>(limits_.connections);
  if (room) {
    try {
      Client& client = clients_.emplace_back(socket, *this);
      counts_.connections++;
      try {
        client.thread = std::thread([this, &client] {
          serve(client.connection);
          client.ended = true;
          counts_.connections--;
        });
        return;
      } catch (const std::system_error&) {  // no further thread
        counts_.connections--;
        clients_.pop_back();
        counts_.turned_away++;
        return;
      }
    } catch (const std::bad_alloc&) {
      room = false;
    }
  }
  counts_.turned_away++;
  const std::string body = ApiError(503, "", "", "the server has as many connections as it takes").json();
  const std::string answer = fmt::format(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: "
      "close\r\nContent-Length: {}\r\n\r\n{}",
      body.size(), body);
  [[maybe_unused]] const auto n = ::send(socket, answer.data(), answer.size(), MSG_NOSIGNAL);
  close(socket);
}

void HttpListener::serve(ClientConnection& connection) {
  try {
    while (serve_one(connection)) {
    }
  } catch (const ClientGone&) {
  } catch (const std::exception& e) {
    log::warn("a connection was closed: {}", e.what());
  }
  connection.release_body();
  connection.abort();
}

// Whether the connection may bring another request.
bool HttpListener::serve_one(ClientConnection& connection) {
  HttpParser parser(limits_);
  HttpRequest& request = parser.request();
  HttpReply reply(connection, request);
  bool sound = false;  // where the request ends is known, and it has ended
  const auto refuse_with = [&](const ApiError& error) {
    if (!sound) {
      reply.close_after();
      parser.abandon();
    }
    reply.drop_body();
    if (reply.status() != 0) return reply.close_after();  // what has begun can only be broken off
    HttpReply::Headers headers;
    if (error.status() == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
    if (error.status() == 429 || error.status() == 503) headers.emplace_back("Retry-After", "1");
    reply.send(error.status(), "application/json", error.json(), headers);
  };
  try {
    try {
      if (!connection.read_header(parser)) return false;
      sound = parser.done();
      calls_.admit(request);
      if (request.wants_continue) connection.write("HTTP/1.1 100 Continue\r\n\r\n");
      connection.read_body(parser);
      sound = true;
      calls_.handle(request, reply);
    } catch (const ApiError& error) {
      refuse_with(error);
    } catch (const std::bad_alloc&) {
      refuse_with(ApiError(503, "", "", "no memory for this request; send it again later"));
    } catch (const std::exception& e) {
      log::error("{} {}: {}", printable(request.method), printable(request.target), e.what());
      refuse_with(ApiError(500, "", "", "a mistake of the server's; its log says more"));
    }
  } catch (const ClientGone&) {
    calls_.answered(request, 0);
    throw;
  }
  reply.drop_body();
  calls_.answered(request, reply.status());
  if (!reply.closes()) return true;
  connection.linger();
  return false;
}

}  // namespace furlong
