// Errors of the user's making (a bad file, a bad flag, too little memory): what, where, why, what to do.
// They are exceptions, caught once in main. Our own bugs go through CHECK (check.h) instead.
#pragma once
#ifndef __CUDACC__  // nvcc cannot compile fmt's headers
#include <fmt/format.h>
#endif

#include <stdexcept>
#include <string>

namespace furlong {

// Process exit codes.
enum class Exit : int {
  done = 0,
  usage = 2,      // command line or config
  input = 3,      // input data or checkpoint
  resources = 4,  // disk, memory, ports
  numerics = 5,   // NaN, a broken invariant
  lost = 6,       // a peer, service or rank was lost
  bug = 70,       // our bug
};

class Error : public std::runtime_error {
 public:
  Error(Exit code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Exit code() const { return code_; }

 private:
  Exit code_;
};

#ifndef __CUDACC__
template <class... Args>
[[noreturn]] void fail(Exit code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}
#endif

}  // namespace furlong
