#include "server/access.h"

#include <netinet/in.h>

#include <algorithm>

#include "base/text.h"
#include "server/api_error.h"

namespace furlong {
namespace {

// "localhost:8000" -> "localhost", "[::1]:8000" -> "[::1]"
std::string_view without_port(std::string_view host) {
  if (host.starts_with('[')) return host.substr(0, std::min(host.size(), host.find(']') + 1));
  return host.substr(0, host.find(':'));
}

bool is_loopback_name(std::string_view host) {
  std::string name(without_port(host));
  for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  if (name == "localhost" || name == "[::1]") return true;
  // 127.x.y.z in numbers alone: "127.evil.example" is a name.
  return name.starts_with("127.") && std::count(name.begin(), name.end(), '.') == 3 && name.size() <= 15 &&
         name.find_first_not_of("0123456789.") == name.npos;
}

bool is_loopback_origin(std::string_view origin) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (origin.starts_with(scheme)) return is_loopback_name(origin.substr(scheme.size()));
  }
  return false;
}

}  // namespace

bool is_loopback(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    return (ntohl(reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr) >> 24) == 127;
  }
  return address.sa_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
}

bool same_secret(std::string_view given, std::string_view right) {
  unsigned differs = given.size() == right.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); i++) {
    differs |=
        static_cast<unsigned char>(given[i]) ^ static_cast<unsigned char>(right.empty() ? 0 : right[i % right.size()]);
  }
  return differs == 0;
}

void check_access(const AccessRules& rules, const HttpRequest& request) {
  if (!rules.api_key.empty()) {
    const std::string* given = request.header("authorization");
    constexpr std::string_view scheme = "bearer ";
    bool bearer = given != nullptr && given->size() > scheme.size();
    for (size_t i = 0; bearer && i < scheme.size(); i++) bearer = ((*given)[i] | 0x20) == (scheme[i] | 0x20);
    if (!bearer) throw ApiError(401, "invalid_api_key", "", "this server wants its key: Authorization: Bearer KEY");
    if (!same_secret(std::string_view(*given).substr(scheme.size()), rules.api_key)) {
      throw ApiError(401, "invalid_api_key", "", "that is not this server's key");
    }
  }
  if (!rules.loopback) return;
  const std::string* host = request.header("host");
  if (host != nullptr && !is_loopback_name(*host)) {
    throw ApiError(
        403, "", "",
        fmt::format("Host {}: this server answers on loopback only, to requests for localhost. A proxy before it "
                    "must set Host to localhost.",
                    printable(*host)));
  }
  const std::string* origin = request.header("origin");
  if (origin != nullptr && !is_loopback_origin(*origin)) {
    throw ApiError(403, "", "",
                   fmt::format("Origin {}: pages of other sites may not use this server", printable(*origin)));
  }
}

}  // namespace furlong
