// One way of asking something outside the program: a text for a text. A channel serves one thread; each worker of a
// CallPool has its own.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

namespace furlong {

struct Reply {
  std::string text;          // the answer
  std::string error;         // why there is none; empty: there is one
  bool again = false;        // whether the same question may fare better
  bool unreachable = false;  // nobody was reached, or nobody who could answer: counts for the circuit breaker
};

class Channel {
 public:
  using Time = std::chrono::steady_clock::time_point;
  virtual ~Channel() = default;
  // Answers by the deadline, whatever the other side does. `body` is a JSON object.
  virtual Reply ask(const std::string& body, uint64_t id, Time deadline) = 0;
  // From another thread: ends an ask() whose deadline has passed.
  virtual void interrupt() {}
};

// POSTs the body as JSON over a connection that is kept. Throws Error(Exit::usage) for a URL that is not
// http://host[:port][/path] (or https://), and in a build without HTTP.
std::unique_ptr<Channel> http_channel(const std::string& url, size_t most_bytes);

// Hands the body to a process as one line, with "id" added, and takes the line of that id as the answer: a JSON object.
// A process that is late, ends, or writes anything else is killed with all its children; the next ask() starts another.
std::unique_ptr<Channel> command_channel(const std::string& command, const std::string& stderr_path, size_t most_bytes);

}  // namespace furlong
