#include "server/api_error.h"

#include "base/json.h"

namespace furlong {

const char* error_type(int status) {
  switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 429: return "rate_limit_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

std::string ApiError::json() const {
  const auto word = [](const std::string& text) { return text.empty() ? OrderedJson() : OrderedJson(text); };
  const OrderedJson error = {
      {"message", what()}, {"type", error_type(status_)}, {"param", word(param_)}, {"code", word(code_)}};
  // The message may quote what the client sent.
  return OrderedJson{{"error", error}}.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

}  // namespace furlong
