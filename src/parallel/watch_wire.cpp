#include "parallel/watch_wire.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "base/error.h"

namespace furlong::watch {
namespace {

constexpr int send_patience_ms = 1000, connect_patience_ms = 3000;
constexpr auto between_tries = std::chrono::milliseconds(200);

int ms_until(Clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, connect_patience_ms));
}

// The IPv4 addresses of this host's interfaces that are up, without the loopback.
void add_addresses(Card& card) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) fail(Exit::resources, "cannot list this host's network interfaces: {}", strerror(errno));
  for (const ifaddrs* i = list; i != nullptr && card.addresses < Card::most_addresses; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != AF_INET) continue;
    if ((i->ifa_flags & IFF_UP) == 0 || (i->ifa_flags & IFF_LOOPBACK) != 0) continue;
    sockaddr_in in{};
    std::memcpy(&in, i->ifa_addr, sizeof in);
    card.address[card.addresses++] = in.sin_addr.s_addr;
  }
  freeifaddrs(list);
  if (card.addresses == 0) {
    fail(Exit::resources, "this host has no IPv4 address that the other hosts of the run could reach");
  }
}

void prepare(int fd) {
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

// One attempt; no socket when it fails.
Socket try_address(uint32_t address, uint16_t port, int patience_ms) {
  Socket made(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!made.open()) fail(Exit::resources, "cannot make a socket: {}", strerror(errno));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = address;
  if (connect(made.fd(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) {
    if (errno != EINPROGRESS) return {};
    pollfd wait{made.fd(), POLLOUT, 0};
    int error = 0;
    socklen_t size = sizeof error;
    if (poll(&wait, 1, patience_ms) != 1 || getsockopt(made.fd(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 ||
        error != 0) {
      return {};
    }
  }
  prepare(made.fd());
  return made;
}

// Whether rank 0 is at the other end: it knows the second half of the secret.
bool greets_back(Socket& socket, const Card& card, Frame hello, Clock::time_point deadline) {
  hello.kind = Kind::hello;
  std::copy_n(card.secret, Card::half_secret, hello.text);
  if (!socket.send(hello)) return false;
  bool ended = false;
  while (!ended && Clock::now() < deadline) {
    if (const auto frame = socket.receive(ended)) {
      return frame->kind == Kind::hello && same_secret(frame->text, card.secret + Card::half_secret, Card::half_secret);
    }
    pollfd wait{socket.fd(), POLLIN, 0};
    poll(&wait, 1, ms_until(deadline));
  }
  return false;
}

}  // namespace

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
    in_ = other.in_;
    got_ = other.got_;
  }
  return *this;
}

void Socket::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  got_ = 0;
}

bool Socket::send(const Frame& frame) {
  const char* bytes = reinterpret_cast<const char*>(&frame);
  size_t sent = 0;
  while (open() && sent < sizeof frame) {
    const ssize_t n = ::send(fd_, bytes + sent, sizeof frame - sent, MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<size_t>(n);
    } else if (n < 0 && errno == EAGAIN) {
      // A frame is a few hundred bytes: a buffer that stays full belongs to a peer that reads no more.
      if (sent == 0) return false;
      pollfd wait{fd_, POLLOUT, 0};
      if (poll(&wait, 1, send_patience_ms) == 0) break;
    } else if (n < 0 && errno != EINTR) {
      break;
    }
  }
  if (sent == sizeof frame) return true;
  if (sent > 0) close();  // half a frame: what follows would be misread
  return false;
}

std::optional<Frame> Socket::receive(bool& ended) {
  while (open()) {
    const ssize_t n = ::recv(fd_, in_.data() + got_, in_.size() - got_, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return std::nullopt;
    if (n <= 0) break;
    got_ += static_cast<size_t>(n);
    if (got_ < in_.size()) continue;
    got_ = 0;
    Frame frame;
    std::memcpy(&frame, in_.data(), sizeof frame);
    if (frame.magic != Frame::right_magic || frame.version != Frame::right_version) break;
    return frame;
  }
  ended = true;
  return std::nullopt;
}

Socket listen_for_ranks(bool one_host, Card& card) {
  card = {};
  if (getrandom(card.secret, sizeof card.secret, 0) != static_cast<ssize_t>(sizeof card.secret)) {
    fail(Exit::resources, "the system has no random numbers: {}", strerror(errno));
  }
  if (one_host) {
    card.address[card.addresses++] = htonl(INADDR_LOOPBACK);
  } else {
    add_addresses(card);
  }
  Socket made(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(one_host ? INADDR_LOOPBACK : INADDR_ANY);
  socklen_t size = sizeof at;
  if (!made.open() || bind(made.fd(), reinterpret_cast<sockaddr*>(&at), size) != 0 ||
      listen(made.fd(), SOMAXCONN) != 0 || getsockname(made.fd(), reinterpret_cast<sockaddr*>(&at), &size) != 0) {
    fail(Exit::resources, "cannot listen for the other ranks: {}", strerror(errno));
  }
  card.port = ntohs(at.sin_port);
  return made;
}

Socket accept_one(const Socket& listening) {
  Socket made(accept4(listening.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (made.open()) prepare(made.fd());
  return made;
}

Socket connect_to_first(const Card& card, Frame hello, Clock::time_point deadline) {
  do {
    for (size_t i = 0; i < std::min<size_t>(card.addresses, Card::most_addresses); i++) {
      Socket socket = try_address(card.address[i], card.port, ms_until(deadline));
      if (socket.open() &&
          greets_back(socket, card, hello, std::min(deadline, Clock::now() + std::chrono::seconds(10))))
        return socket;
    }
    std::this_thread::sleep_for(between_tries);
  } while (Clock::now() < deadline);
  char first[INET_ADDRSTRLEN] = "?";
  inet_ntop(AF_INET, &card.address[0], first, sizeof first);
  fail(
      Exit::lost,
      "rank {} ({}) cannot reach rank 0 at {}:{} (one of {} addresses): open the ports between the hosts of the run to "
      "each other",
      hello.rank, get(hello.host), first, card.port, card.addresses);
}

bool same_secret(const char* a, const char* b, size_t bytes) {
  unsigned differ = 0;
  for (size_t i = 0; i < bytes; i++) differ |= static_cast<unsigned>(static_cast<unsigned char>(a[i] ^ b[i]));
  return differ == 0;
}

}  // namespace furlong::watch
