#include <mutex>

#include "base/error.h"
#include "base/text.h"
#include "reward/channel.h"
#include "reward/connection.h"

#ifdef FURLONG_HTTP
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#endif

namespace furlong {

#ifdef FURLONG_HTTP
namespace {

namespace beast = boost::beast::http;

constexpr uint32_t most_header_bytes = 1 << 16;

bool may_pass(int status) { return status >= 500 || status == 408 || status == 425 || status == 429; }

class HttpChannel : public Channel {
 public:
  HttpChannel(const std::string& url, size_t most_bytes) : url_(parse_service_url(url)), most_bytes_(most_bytes) {}

  Reply ask(const std::string& body, uint64_t, Time deadline) override {
    const std::string request = fmt::format(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nAccept: application/json\r\n"
        "Content-Length: {}\r\n\r\n{}",
        url_.path, url_.authority, body.size(), body);
    try {
      for (;;) {
        const bool reused = connect(deadline);
        bool began = false;
        try {
          return answer_to(request, deadline, began);
        } catch (const ConnectionLost&) {
          // One that was kept may have been closed meanwhile.
          if (!reused || began || std::chrono::steady_clock::now() >= deadline) throw;
          disconnect();
        }
      }
    } catch (const ConnectionLost& e) {
      disconnect();
      return {.text = {}, .error = name() + ": " + e.why, .again = true, .unreachable = true};
    }
  }

  void interrupt() override {
    const std::lock_guard lock(mutex_);
    if (connection_) connection_->interrupt();
  }

 private:
  std::string name() const { return (url_.tls ? "https://" : "http://") + url_.authority; }

  // Whether the connection has served before.
  bool connect(Time deadline) {
    if (connection_ && connection_->is_stale()) disconnect();
    if (connection_) return true;
    auto made = std::make_unique<Connection>(url_, deadline);
    const std::lock_guard lock(mutex_);
    connection_ = std::move(made);
    return false;
  }

  void disconnect() {
    const std::lock_guard lock(mutex_);
    connection_.reset();
  }

  Reply answer_to(const std::string& request, Time deadline, bool& began) {
    connection_->write(request, deadline);
    beast::response_parser<beast::string_body> parser;
    parser.header_limit(most_header_bytes);
    parser.body_limit(most_bytes_);
    parser.eager(true);
    boost::system::error_code error;
    std::string pending;
    while (!parser.is_done()) {
      const std::string_view bytes = connection_->read(deadline);
      if (bytes.empty()) {
        if (!began) throw ConnectionLost{"closed without an answer"};
        parser.put_eof(error);
        if (error || !parser.is_done()) throw ConnectionLost{"the answer is cut off"};
        break;
      }
      began = true;
      pending += bytes;
      while (!pending.empty() && !parser.is_done()) {
        const size_t n = parser.put(boost::asio::const_buffer(pending.data(), pending.size()), error);
        pending.erase(0, n);
        if (error == beast::error::need_more) break;
        if (error) throw ConnectionLost{what_is_wrong(error)};
        if (n == 0) break;
      }
    }
    // What follows an answer unasked would be taken for the next one.
    const bool keeps = parser.get().keep_alive() && pending.empty();
    const int status = parser.get().result_int();
    std::string text = std::move(parser.get().body());
    if (!keeps) disconnect();
    if (status >= 200 && status <= 299) return {.text = std::move(text), .error = {}};
    const bool again = may_pass(status);
    return {.text = {},
            .error = fmt::format("{}: status {} {}", name(), status, printable(text)),
            .again = again,
            .unreachable = again};
  }

  std::string what_is_wrong(const boost::system::error_code& error) const {
    if (error == beast::error::body_limit) return "an answer of more than " + human_bytes(most_bytes_);
    if (error == beast::error::header_limit) return "an answer whose header has no end";
    return "no HTTP: " + error.message();
  }

  ServiceUrl url_;
  size_t most_bytes_;
  std::mutex mutex_;  // of the connection's coming and going
  std::unique_ptr<Connection> connection_;
};

}  // namespace

std::unique_ptr<Channel> http_channel(const std::string& url, size_t most_bytes) {
  return std::make_unique<HttpChannel>(url, most_bytes);
}

#else

std::unique_ptr<Channel> http_channel(const std::string& url, size_t) {
  fail(Exit::usage, "{}: this build has no HTTP (Debian: libboost-dev); use a command instead", printable(url));
}

#endif

}  // namespace furlong
