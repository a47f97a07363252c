#include "server/connection.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "server/api_error.h"

namespace furlong {
namespace {

constexpr size_t read_piece = 16 << 10;
constexpr double linger_seconds = 2;

SteadyClock::time_point from_now(double seconds) {
  return SteadyClock::now() + std::chrono::duration_cast<SteadyClock::duration>(std::chrono::duration<double>(seconds));
}

int milliseconds_to(SteadyClock::time_point until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - SteadyClock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 3'600'000));
}

}  // namespace

Wake::Wake() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (fd_ < 0) fail(Exit::resources, "eventfd: {}; raise the limit of open files (ulimit -n)", std::strerror(errno));
}

Wake::~Wake() { close(fd_); }

void Wake::set() const {
  const uint64_t one = 1;
  [[maybe_unused]] const auto n = ::write(fd_, &one, sizeof one);  // a full counter is set as well
}

void Wake::clear() const {
  uint64_t count;
  [[maybe_unused]] const auto n = ::read(fd_, &count, sizeof count);
}

ClientConnection::ClientConnection(int socket, const HttpLimits& limits, std::atomic<size_t>& bodies,
                                   const Wake& stopping)
    : socket_(socket), limits_(limits), bodies_(bodies), stopping_(stopping) {}

ClientConnection::~ClientConnection() {
  release_body();
  close(socket_);
}

// Whether the socket is ready; false when `until` has come, or the server stops and that was asked for.
bool ClientConnection::poll_socket(short events, SteadyClock::time_point until, bool until_stopping) {
  for (;;) {
    pollfd fds[2] = {{socket_, events, 0}, {stopping_.fd(), POLLIN, 0}};
    const int ready = poll(fds, until_stopping ? 2 : 1, milliseconds_to(until));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return false;
    if (fds[0].revents != 0) return true;
    return false;
  }
}

bool ClientConnection::receive() {
  std::array<char, read_piece> piece;
  ssize_t n;
  do n = recv(socket_, piece.data(), piece.size(), 0);
  while (n < 0 && errno == EINTR);
  if (n > 0) in_.append(piece.data(), static_cast<size_t>(n));
  return n > 0 || (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
}

void ClientConnection::take(HttpParser& parser) { in_.erase(0, parser.read(in_)); }

bool ClientConnection::read_header(HttpParser& parser) {
  const bool first = std::exchange(first_, false);
  auto until = from_now(first || !in_.empty() ? limits_.header_seconds : limits_.idle_seconds);
  for (bool begun = !in_.empty();;) {
    if (!in_.empty()) take(parser);
    if (parser.has_header()) return true;
    if (!poll_socket(POLLIN, until, !begun)) {
      if (!begun) return false;
      throw ApiError(408, "", "", fmt::format("the request's header took longer than {} s", limits_.header_seconds));
    }
    if (!receive()) return false;
    if (!begun && !in_.empty()) {
      begun = true;
      if (!first) until = from_now(limits_.header_seconds);
    }
  }
}

void ClientConnection::read_body(HttpParser& parser) {
  const auto until = from_now(limits_.body_seconds);
  while (!parser.done()) {
    const size_t held = in_.size();
    if (held > 0) take(parser);
    const size_t used = held - in_.size();
    charged_ += used;
    if (bodies_.fetch_add(used) + used > limits_.bodies_bytes) {
      throw ApiError(503, "", "", "too many large requests at a time; send it again later");
    }
    if (parser.done()) return;
    if (!poll_socket(POLLIN, until)) {
      throw ApiError(408, "", "", fmt::format("the request's body took longer than {} s", limits_.body_seconds));
    }
    if (!receive()) throw ClientGone();
  }
}

void ClientConnection::release_body() { bodies_ -= std::exchange(charged_, 0); }

void ClientConnection::write(std::string_view bytes) {
  auto until = from_now(limits_.write_seconds);
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
      until = from_now(limits_.write_seconds);
    } else if (n < 0 && errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) {
      throw ClientGone();
    } else if (!poll_socket(POLLOUT, until)) {
      throw ClientGone();
    }
  }
}

ClientConnection::Event ClientConnection::wait(const Wake& wake, SteadyClock::time_point until) {
  for (;;) {
    pollfd fds[2] = {{socket_, POLLRDHUP, 0}, {wake.fd(), POLLIN, 0}};
    const int ready = poll(fds, 2, milliseconds_to(until));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return Event::timeout;
    if (fds[0].revents != 0) return Event::gone;
    wake.clear();
    return Event::woken;
  }
}

void ClientConnection::linger() {
  shutdown(socket_, SHUT_WR);
  const auto until = from_now(linger_seconds);
  std::array<char, read_piece> dropped;
  while (poll_socket(POLLIN, until)) {
    const ssize_t n = recv(socket_, dropped.data(), dropped.size(), 0);
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) return;
    if (SteadyClock::now() > until) return;
  }
}

void ClientConnection::abort() { shutdown(socket_, SHUT_RDWR); }

std::string HttpReply::head(int status, std::string_view type, const Headers& headers) const {
  std::string text = fmt::format("HTTP/1.1 {} {}\r\nContent-Type: {}\r\nCache-Control: no-store\r\n", status,
                                 reason_phrase(status), type);
  text += "X-Content-Type-Options: nosniff\r\n";
  for (const auto& [name, value] : headers) text += fmt::format("{}: {}\r\n", name, value);
  if (closes()) text += "Connection: close\r\n";
  return text;
}

void HttpReply::send(int status, std::string_view type, std::string_view body, const Headers& headers) {
  status_ = status;
  ended_ = true;
  connection_.write(head(status, type, headers) + fmt::format("Content-Length: {}\r\n\r\n", body.size()));
  if (request_.method != "HEAD") connection_.write(body);
}

void HttpReply::begin(int status, std::string_view type) {
  status_ = status;
  if (!request_.chunked_reply) close_ = true;
  connection_.write(head(status, type, {}) + (request_.chunked_reply ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n"));
}

void HttpReply::write(std::string_view piece) {
  if (piece.empty()) return;  // a chunk of no bytes would end the body
  if (request_.chunked_reply) {
    connection_.write(fmt::format("{:x}\r\n{}\r\n", piece.size(), piece));
  } else {
    connection_.write(piece);
  }
}

void HttpReply::end() {
  if (std::exchange(ended_, true)) return;
  if (request_.chunked_reply) connection_.write("0\r\n\r\n");
}

ClientConnection::Event HttpReply::wait(double seconds) {
  waker();
  return connection_.wait(*wake_, from_now(seconds));
}

std::function<void()> HttpReply::waker() {
  if (!wake_) wake_ = std::make_shared<Wake>();
  return [wake = wake_] { wake->set(); };
}

}  // namespace furlong
