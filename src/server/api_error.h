// What a client is told went wrong: an HTTP status and OpenAI's error object.
#pragma once
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace furlong {

class ApiError : public std::runtime_error {
 public:
  // code: a word for programs ("context_length_exceeded"); param: the field of the request at fault; both may be empty.
  ApiError(int status, std::string code, std::string param, const std::string& message)
      : std::runtime_error(message), status_(status), code_(std::move(code)), param_(std::move(param)) {}
  int status() const { return status_; }
  const std::string& code() const { return code_; }
  const std::string& param() const { return param_; }
  // {"error": {"message", "type", "param", "code"}}
  std::string json() const;

 private:
  int status_;
  std::string code_, param_;
};

// A request that is wrong in the field `param` (400).
template <class... Args>
[[noreturn]] void refuse(const std::string& param, fmt::format_string<Args...> format, Args&&... args) {
  throw ApiError(400, "", param, fmt::format(format, std::forward<Args>(args)...));
}

// OpenAI's word for a status.
const char* error_type(int status);

}  // namespace furlong
