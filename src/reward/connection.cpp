#include "reward/connection.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/text.h"

#ifdef FURLONG_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#endif

namespace furlong {
namespace {

[[noreturn]] void lose(const std::string& why) { throw ConnectionLost{why}; }

// Host and port of "host", "host:port" or "[v6]:port".
bool split_authority(const std::string& authority, ServiceUrl& url) {
  size_t colon = authority.rfind(':');
  if (authority.starts_with('[')) {
    const size_t close = authority.find(']');
    if (close == std::string::npos) return false;
    url.host = authority.substr(1, close - 1);
    if (close + 1 < authority.size() && authority[close + 1] != ':') return false;
    colon = close + 1 < authority.size() ? close + 1 : std::string::npos;
  } else {
    url.host = authority.substr(0, colon);
    if (url.host.find(':') != std::string::npos) return false;
  }
  if (colon != std::string::npos) url.port = authority.substr(colon + 1);
  const auto port = parse_integer(url.port);
  return !url.host.empty() && port && *port > 0 && *port < 65536;
}

}  // namespace

ServiceUrl parse_service_url(const std::string& text) {
  const auto refuse = [&](const char* why) {
    fail(Exit::usage, "the URL {} {}; expected http://host[:port][/path] or https://", printable(text), why);
  };
  ServiceUrl url;
  for (const unsigned char c : text) {
    if (c <= ' ' || c >= 0x7f) refuse("holds a character that must be escaped");
  }
  const size_t scheme = text.find("://");
  const std::string name = text.substr(0, scheme == std::string::npos ? 0 : scheme);
  if (name != "http" && name != "https") refuse("has no scheme that is known");
  url.tls = name == "https";
  url.port = url.tls ? "443" : "80";
  const size_t begin = scheme + 3, end = std::min(text.find_first_of("/?#", begin), text.size());
  url.authority = text.substr(begin, end - begin);
  if (url.authority.find('@') != std::string::npos) refuse("holds a user name");
  if (!split_authority(url.authority, url)) refuse("names no host and port");
  url.path = text.substr(end, text.find('#') - end);
  if (!url.path.starts_with('/')) url.path = "/" + url.path;
#ifndef FURLONG_TLS
  if (url.tls)
    fail(Exit::usage, "the URL {}: this build has no TLS (Debian: libssl-dev); use http://", printable(text));
#endif
  return url;
}

#ifdef FURLONG_TLS

struct Connection::Tls {
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context{SSL_CTX_new(TLS_client_method()), SSL_CTX_free};
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl{nullptr, SSL_free};

  Tls(int fd, const std::string& host) {
    if (!context) lose("no TLS");
    SSL_CTX_set_default_verify_paths(context.get());
    SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
    SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    ssl.reset(SSL_new(context.get()));
    if (!ssl) lose("no TLS");
    // A number is held against the certificate's numbers, a name against its names.
    if (X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl.get()), host.c_str()) != 1) {
      SSL_set1_host(ssl.get(), host.c_str());
      SSL_set_tlsext_host_name(ssl.get(), host.c_str());
    }
    SSL_set_fd(ssl.get(), fd);
  }

  // For a call of which only its own errors are to be found.
  SSL* fresh() const {
    ERR_clear_error();
    return ssl.get();
  }

  // What to wait for before the call that returned this is made again; throws where that is no use.
  short events_after(int result) const {
    const int error = SSL_get_error(ssl.get(), result);
    if (error == SSL_ERROR_WANT_READ) return POLLIN;
    if (error == SSL_ERROR_WANT_WRITE) return POLLOUT;
    if (const long verdict = SSL_get_verify_result(ssl.get()); verdict != X509_V_OK) {
      lose(std::string("the certificate does not hold: ") + X509_verify_cert_error_string(verdict));
    }
    lose("the TLS connection broke");
  }
};

#else

struct Connection::Tls {};

#endif

Connection::Connection(const ServiceUrl& url, Time deadline) {
  try {
    connect_to(url, deadline);
#ifdef FURLONG_TLS
    if (url.tls) {
      tls_ = std::make_unique<Tls>(fd_, url.host);
      for (int n = 0; (n = SSL_connect(tls_->fresh())) != 1;) wait_for(tls_->events_after(n), deadline);
    }
#endif
  } catch (...) {
    if (fd_ >= 0) close(fd_);
    throw;
  }
}

Connection::~Connection() { close(fd_); }

void Connection::connect_to(const ServiceUrl& url, Time deadline) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(url.host.c_str(), url.port.c_str(), &wanted, &found); error != 0) {
    lose(std::string("the host was not found: ") + gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> list(found, freeaddrinfo);
  std::string why;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    fd_ = socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, at->ai_protocol);
    if (fd_ < 0) continue;
    int error = connect(fd_, at->ai_addr, at->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      wait_for(POLLOUT, deadline);
      socklen_t size = sizeof(error);
      getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error == 0) {
      const int on = 1;
      setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      return;
    }
    why = std::strerror(error);
    close(fd_);
    fd_ = -1;
  }
  lose("cannot connect: " + why);
}

void Connection::wait_for(short events, Time deadline) const {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    if (left <= 0) lose("no answer in time");
    pollfd p{fd_, events, 0};
    if (poll(&p, 1, static_cast<int>(std::min<int64_t>(left, 1 << 30))) > 0) return;
  }
}

void Connection::write(std::string_view bytes, Time deadline) {
  while (!bytes.empty()) {
#ifdef FURLONG_TLS
    if (tls_) {
      const int n = SSL_write(tls_->fresh(), bytes.data(), static_cast<int>(std::min<size_t>(bytes.size(), 1 << 20)));
      if (n > 0) {
        bytes.remove_prefix(static_cast<size_t>(n));
      } else {
        wait_for(tls_->events_after(n), deadline);
      }
      continue;
    }
#endif
    const ssize_t n = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      wait_for(POLLOUT, deadline);
    } else if (errno != EINTR) {
      lose(std::string("the connection broke: ") + std::strerror(errno));
    }
  }
}

std::string_view Connection::read(Time deadline) {
  for (;;) {
    // Asked every time, also where there is always more to read.
    if (std::chrono::steady_clock::now() >= deadline) lose("no answer in time");
#ifdef FURLONG_TLS
    if (tls_) {
      const int n = SSL_read(tls_->fresh(), buffer_, sizeof(buffer_));
      if (n > 0) return {buffer_, static_cast<size_t>(n)};
      if (SSL_get_error(tls_->ssl.get(), n) == SSL_ERROR_ZERO_RETURN) return {};
      wait_for(tls_->events_after(n), deadline);
      continue;
    }
#endif
    const ssize_t n = recv(fd_, buffer_, sizeof(buffer_), 0);
    if (n >= 0) return {buffer_, static_cast<size_t>(n)};
    if (errno == EAGAIN) {
      wait_for(POLLIN, deadline);
    } else if (errno != EINTR) {
      lose(std::string("the connection broke: ") + std::strerror(errno));
    }
  }
}

bool Connection::is_stale() const {
  pollfd p{fd_, POLLIN, 0};
  return poll(&p, 1, 0) != 0;
}

void Connection::interrupt() { shutdown(fd_, SHUT_RDWR); }

}  // namespace furlong
