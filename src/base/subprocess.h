// A child process that is spoken to in lines. It leads a process group of its own, so that whatever it starts ends with
// it.
#pragma once
#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>

namespace furlong {

class Subprocess {
 public:
  using Time = std::chrono::steady_clock::time_point;
  enum class Outcome {
    done,
    late,     // the deadline came first
    closed,   // the process ended or closed its side
    too_long  // a line of more than the limit
  };

  // Starts /bin/sh -c `command`. Its standard error is appended to `stderr_path`, or this process's where that is
  // empty. The thread that writes must have SIGPIPE blocked or ignored. Throws Error(Exit::resources).
  Subprocess(const std::string& command, const std::string& stderr_path);
  ~Subprocess();  // end()
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  // `line` and a newline.
  Outcome write_line(std::string_view line, Time deadline);
  // The next line without its newline, at most `limit` bytes.
  Outcome read_line(std::string& line, Time deadline, size_t limit);
  // Whether it has written what nobody has read, or closed its side.
  bool has_spoken() const;
  // Kills the process and all it has started, which a thread that reads or writes then sees. Not at the same time as
  // end().
  void kill_group() const;
  // Does so, and says how the process ended: "exit status 3", "signal 9", "killed" if by this. Again: the same.
  std::string end();

 private:
  bool wait_for(int fd, short events, Time deadline) const;
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1;
  std::string pending_;  // read and not yet given out
  size_t searched_ = 0;  // of it, known to hold no newline
  bool closed_ = false;  // its side is
  std::string ending_;
};

// Keeps SIGPIPE from the calling thread: writing to a closed pipe or socket is then an error like others.
void block_sigpipe();

}  // namespace furlong
