// Who may speak to the server.
#pragma once
#include <sys/socket.h>

#include <string>
#include <string_view>

#include "server/http.h"

namespace furlong {

constexpr size_t least_key_bytes = 16;

bool is_loopback(const sockaddr& address);

// In a time that does not depend on where they differ.
bool same_secret(std::string_view given, std::string_view right);

struct AccessRules {
  std::string api_key;  // empty: none is asked for
  bool loopback = true;
};

// Every request must bring the key ("Authorization: Bearer KEY"). On loopback its Host, and its Origin if it has one,
// must be this machine by a loopback name, so that no web page can reach the server through a browser. Throws ApiError.
void check_access(const AccessRules&, const HttpRequest&);

}  // namespace furlong
