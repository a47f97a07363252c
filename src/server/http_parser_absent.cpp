#ifndef FURLONG_SERVER
#include "base/error.h"
#include "server/http.h"

namespace furlong {

struct HttpParser::Impl {};

bool can_serve() { return false; }

HttpParser::HttpParser(const HttpLimits&) {
  fail(Exit::usage,
       "this program was built without its server: build it with -DFURLONG_SERVER=ON (Debian: libboost-dev)");
}
HttpParser::~HttpParser() = default;
bool HttpParser::done() const { return false; }
void HttpParser::abandon() {}
size_t HttpParser::read(std::string_view) { return 0; }

}  // namespace furlong
#endif
