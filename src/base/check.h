// CHECK states what must hold unless we made a mistake. It prints the place and a stack and ends the process with
// exit code 70. Bad input from the user is an Error (error.h), never a CHECK.
#pragma once
#ifndef __CUDACC__
#include <fmt/format.h>
#endif

#include <string>

namespace furlong {

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

// nvcc cannot compile fmt's headers; a check in CUDA code prints its text without the values.
#ifdef __CUDACC__
template <class... Args>
std::string check_text(const char* text, const Args&...) {
  return text;
}
#else
template <class... Args>
std::string check_text(fmt::format_string<const Args&...> format, const Args&... args) {
  return fmt::format(format, args...);
}
#endif

}  // namespace furlong

#define CHECK(condition, ...)                                                                         \
  do {                                                                                                \
    if (!(condition)) [[unlikely]]                                                                    \
      ::furlong::check_failed(__FILE__, __LINE__, #condition, ::furlong::check_text("" __VA_ARGS__)); \
  } while (false)
