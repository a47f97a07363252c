#include "base/error.h"
#include "base/text.h"
#include "reward/channel.h"

#ifdef FURLONG_HTTP
#include <httplib.h>
#endif

namespace furlong {

#ifdef FURLONG_HTTP
namespace {

struct ServiceUrl {
  std::string origin, path;  // "http://host:port", "/path?query"
};

ServiceUrl parse_service_url(const std::string& url) {
  const auto refuse = [&](const char* why) {
    fail(Exit::usage, "the URL {} {}; expected http://host[:port][/path] or https://", printable(url), why);
  };
  const size_t scheme = url.find("://");
  const std::string name = url.substr(0, scheme == std::string::npos ? 0 : scheme);
  if (name != "http" && name != "https") refuse("has no scheme that is known");
  const size_t host = scheme + 3, slash = url.find_first_of("/?#", host);
  const std::string authority = url.substr(host, slash == std::string::npos ? slash : slash - host);
  if (authority.empty()) refuse("names no host");
  if (authority.find('@') != std::string::npos) refuse("holds a user name");
  for (const unsigned char c : url) {
    if (c <= ' ' || c >= 0x7f) refuse("holds a character that must be escaped");
  }
  std::string path = slash == std::string::npos ? "/" : url.substr(slash, url.find('#') - slash);
  if (path.empty() || path.front() != '/') path = "/" + path;
  return {name + "://" + authority, path};
}

bool is_temporary(int status) { return status >= 500 || status == 408 || status == 425 || status == 429; }

class HttpChannel : public Channel {
 public:
  HttpChannel(const std::string& url, double timeout, size_t most_bytes)
      : url_(parse_service_url(url)), most_bytes_(most_bytes), client_(url_.origin) {
    if (!client_.is_valid()) fail(Exit::usage, "the URL {} names no host and port", printable(url));
    const auto limit = std::chrono::microseconds(static_cast<int64_t>(timeout * 1e6));
    client_.set_connection_timeout(limit);
    client_.set_read_timeout(limit);
    client_.set_write_timeout(limit);
    client_.set_keep_alive(true);
    client_.set_tcp_nodelay(true);
    client_.set_decompress(false);
    client_.set_url_encode(false);
  }

  Reply ask(const std::string& body, uint64_t, Time deadline) override {
    httplib::Request request;
    request.method = "POST";
    request.path = url_.path;
    request.headers = {{"Content-Type", "application/json"}, {"Accept", "application/json"}};
    request.body = body;
    std::string text;
    int status = 0;
    bool too_long = false;
    request.response_handler = [&](const httplib::Response& response) {
      status = response.status;
      return true;
    };
    request.content_receiver = [&](const char* data, size_t bytes, uint64_t, uint64_t) {
      too_long = text.size() + bytes > most_bytes_;
      if (!too_long) text.append(data, bytes);
      return !too_long && std::chrono::steady_clock::now() < deadline;
    };
    const auto result = client_.send(request);
    if (too_long) return lost(fmt::format("an answer of more than {}", human_bytes(most_bytes_)));
    if (!result) {
      if (std::chrono::steady_clock::now() >= deadline) return lost("no answer in time");
      return lost(httplib::to_string(result.error()));
    }
    if (is_temporary(status)) return lost(fmt::format("status {} {}", status, printable(text)));
    if (status < 200 || status > 299) {
      return {.text = {}, .error = fmt::format("{}: status {} {}", url_.origin, status, printable(text))};
    }
    return {.text = std::move(text), .error = {}};
  }

  void interrupt() override { client_.stop(); }

 private:
  Reply lost(const std::string& why) const {
    return {.text = {}, .error = url_.origin + ": " + why, .again = true, .unreachable = true};
  }

  ServiceUrl url_;
  size_t most_bytes_;
  httplib::Client client_;
};

}  // namespace

std::unique_ptr<Channel> http_channel(const std::string& url, double timeout_seconds, size_t most_bytes) {
#ifndef CPPHTTPLIB_OPENSSL_SUPPORT
  if (url.starts_with("https:")) fail(Exit::usage, "the URL {}: this build has no TLS; use http://", printable(url));
#endif
  return std::make_unique<HttpChannel>(url, timeout_seconds, most_bytes);
}

#else

std::unique_ptr<Channel> http_channel(const std::string& url, double, size_t) {
  fail(Exit::usage, "{}: this build has no HTTP (Debian: libcpp-httplib-dev); use a command instead", printable(url));
}

#endif

}  // namespace furlong
