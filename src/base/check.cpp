#include "base/check.h"

#include <execinfo.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace furlong {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  std::fprintf(stderr, "furlong: internal error at %s:%d: CHECK(%s) failed%s%s\n", file, line, condition,
               message.empty() ? "" : ": ", message.c_str());
  std::fprintf(stderr, "This is a bug in furlong. Please report it with the command line and this stack:\n");
  std::fflush(stderr);
  void* frames[48];
  const int n = backtrace(frames, 48);
  backtrace_symbols_fd(frames, n, STDERR_FILENO);
  std::_Exit(70);
}

}  // namespace furlong
