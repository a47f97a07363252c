// CHECK states what must hold unless we made a mistake. It prints the place and a stack and ends the process with
// exit code 70. Bad input from the user is an Error (error.h), never a CHECK.
#pragma once
#include <fmt/format.h>

#include <string>

namespace furlong {

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

}  // namespace furlong

#define CHECK(condition, ...)                                                                 \
  do {                                                                                        \
    if (!(condition)) [[unlikely]]                                                            \
      ::furlong::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)
