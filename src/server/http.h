// HTTP/1.1 as the server speaks it: requests, limits, and the reader of their syntax.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace furlong {

// What no client can make the server go beyond.
struct HttpLimits {
  size_t header_bytes = 16 << 10;  // request line and headers
  size_t headers = 100;
  size_t body_bytes = 32 << 20;
  size_t bodies_bytes = 40 << 20;  // of all requests that are being read or parsed
  double header_seconds = 10;  // from a request's first byte (of a new connection: from its start) to its last header
  double body_seconds = 60;
  double idle_seconds = 60;   // between two requests of a connection
  double write_seconds = 30;  // without a byte taken by the client
  size_t connections = 1024;
};

struct HttpRequest {
  std::string method, target;                                // target as it came, "/v1/models?x=1"
  std::vector<std::pair<std::string, std::string>> headers;  // names in small letters
  std::string body;
  bool keep_alive = true;
  bool chunked_reply = true;  // HTTP/1.1: the client takes a body in chunks
  bool wants_continue = false;

  std::string_view path() const { return std::string_view(target).substr(0, target.find('?')); }
  // Null where there is none; the first of several.
  const std::string* header(std::string_view name) const;
};

// Reads one request from the bytes of a connection, through Boost.Beast's parser.
class HttpParser {
 public:
  explicit HttpParser(const HttpLimits&);
  ~HttpParser();
  HttpParser(const HttpParser&) = delete;
  HttpParser& operator=(const HttpParser&) = delete;

  // Takes what it can use of the bytes and returns how many; the rest is to be given again, with more after it. Throws
  // ApiError (400, 413, 431): the connection is then of no more use.
  size_t read(std::string_view bytes);
  // The header is whole: request() has everything but the body.
  bool has_header() const { return has_header_; }
  bool done() const;
  HttpRequest& request() { return request_; }
  // Nothing further is read: what there is of a body is given back.
  void abandon();

 private:
  struct Impl;
  void header_came();
  HttpLimits limits_;
  std::unique_ptr<Impl> impl_;
  HttpRequest request_;
  bool has_header_ = false;
};

// Whether this build has the parser. Without it HttpParser's constructor throws Error(Exit::usage).
bool can_serve();

// "a%2Fb" -> "a/b". What is no such code stays as it is.
std::string percent_decoded(std::string_view text);

const char* reason_phrase(int status);

}  // namespace furlong
