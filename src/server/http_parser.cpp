#ifdef FURLONG_SERVER
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "server/api_error.h"
#include "server/http.h"

namespace furlong {
namespace beast_http = boost::beast::http;
using BeastError = beast_http::error;

namespace {
constexpr size_t large_body = 1 << 20;
}

struct HttpParser::Impl {
  beast_http::request_parser<beast_http::string_body> parser;
};

bool can_serve() { return true; }

HttpParser::HttpParser(const HttpLimits& limits) : limits_(limits), impl_(std::make_unique<Impl>()) {
  impl_->parser.header_limit(static_cast<uint32_t>(limits.header_bytes));
  impl_->parser.body_limit(limits.body_bytes);
}

HttpParser::~HttpParser() = default;

bool HttpParser::done() const { return has_header_ && impl_ != nullptr && impl_->parser.is_done(); }

void HttpParser::abandon() { impl_.reset(); }

size_t HttpParser::read(std::string_view bytes) {
  auto& parser = impl_->parser;
  size_t used = 0;
  while (used < bytes.size() && !parser.is_done()) {
    boost::system::error_code error;
    const size_t n = parser.put(boost::asio::const_buffer(bytes.data() + used, bytes.size() - used), error);
    used += n;
    if (!has_header_ && parser.is_header_done()) header_came();
    if (error == BeastError::need_more) {
      // What waits for more is a line; none of a request may be longer than its whole header.
      if (bytes.size() - used > limits_.header_bytes) {
        if (!has_header_) throw ApiError(431, "", "", "the request's header is too large");
        throw ApiError(400, "", "", "a line of the chunked body is too long");
      }
      break;
    }
    if (error == BeastError::header_limit) {
      throw ApiError(431, "", "", fmt::format("the request's header has more than {} bytes", limits_.header_bytes));
    }
    if (error == BeastError::body_limit) {
      throw ApiError(413, "", "", fmt::format("the request's body has more than {} bytes", limits_.body_bytes));
    }
    if (error) throw ApiError(400, "", "", fmt::format("not an HTTP/1.1 request: {}", error.message()));
    if (n == 0) break;
  }
  // What is reserved and never written takes no memory; a body that grew by doubling would for a moment take three
  // times its own.
  auto& body = parser.get().body();
  if (body.size() > large_body && body.capacity() < limits_.body_bytes) body.reserve(limits_.body_bytes);
  if (done()) request_.body = std::move(parser.get().body());
  return used;
}

void HttpParser::header_came() {
  auto& parser = impl_->parser;
  const auto& message = parser.get();
  const auto text = [](boost::beast::string_view view) { return std::string(view.data(), view.size()); };
  request_.method = text(message.method_string());
  request_.target = text(message.target());
  request_.keep_alive = message.keep_alive();
  request_.chunked_reply = message.version() >= 11;
  size_t hosts = 0, lengths = 0;
  bool plain_length = true;
  for (const auto& field : message) {
    std::string name = text(field.name_string());
    for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    hosts += name == "host";
    if (name == "content-length") {
      lengths++;
      plain_length = text(field.value()).find_first_not_of("0123456789") == std::string::npos;
    }
    request_.headers.emplace_back(std::move(name), text(field.value()));
  }
  has_header_ = true;
  if (request_.headers.size() > limits_.headers) {
    throw ApiError(431, "", "", fmt::format("the request has more than {} headers", limits_.headers));
  }
  if (hosts != 1 && message.version() >= 11) throw ApiError(400, "", "", "an HTTP/1.1 request has one Host header");
  if (lengths > 1 || !plain_length) throw ApiError(400, "", "", "a request has one Content-Length, a number");
  const std::string* encoding = request_.header("transfer-encoding");
  if (encoding != nullptr && !parser.chunked())
    throw ApiError(400, "", "", "the only transfer encoding known is chunked");
  const std::string* expect = request_.header("expect");
  request_.wants_continue = expect != nullptr && boost::beast::iequals(*expect, "100-continue") && !parser.is_done();
  parser.eager(true);
}

}  // namespace furlong
#endif
