// Many questions to a service over HTTP or to a command, asked by threads of their own while the program goes on. Every
// one has an answer or an error within a bounded time: deadlines, tries, waits with jitter, a circuit breaker.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "reward/channel.h"

namespace furlong {

struct CallOptions {
  std::string url, command;   // one of the two
  std::string log_directory;  // of a command's standard error, <name>-<worker>.err; "": the program's
  std::string name = "call";
  int64_t workers = 16;         // connections, or processes
  int64_t batch = 1;            // url alone: questions of one call at most
  double timeout = 30;          // seconds a try
  int64_t tries = 5;            // url alone; a command that fails once has failed
  double backoff = 0.5;         // seconds before the second try; doubled for each further one, times 0.5 to 1.5
  int64_t breaker_after = 32;   // failures in a row after which no one is asked
  double breaker_rest = 5;      // for so many seconds; then one is asked
  size_t most_bytes = 4 << 20;  // of an answer
  uint64_t seed = 0;            // of the jitter
};

// The answer: JSON as text, or why there is none.
struct Called {
  std::string text, error;
};

struct CallStats {
  int64_t calls = 0, tries = 0, failed_tries = 0, unanswered = 0, breaker_opened = 0;
};

class CallPool {
 public:
  // Throws Error(Exit::usage) for a URL that is none.
  explicit CallPool(const CallOptions& options);
  // Ends what is under way.
  ~CallPool();

  // `body`: a JSON object. With batch > 1 several travel as {"samples":[body, ...]}, and the answer must be a list of
  // as many, or {"rewards":[...]}. Returns the call's ticket.
  uint64_t submit(std::string body);
  bool ready(uint64_t ticket) const;
  // Waits for the answer and forgets it.
  Called wait(uint64_t ticket);
  // Nobody will wait for this one.
  void forget(uint64_t ticket);
  // Waits until one of these tickets is ready, at most so many seconds.
  void wait_any(const std::vector<uint64_t>& tickets, double seconds) const;
  CallStats stats() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Question {
    uint64_t ticket;
    std::string body;
  };
  struct Worker {
    std::unique_ptr<Channel> channel;
    std::mutex mutex;     // of the deadline
    bool asking = false;  // whether there is one
    Clock::time_point deadline;
    std::thread thread;
  };
  void work(Worker&);
  void keep_time();
  std::vector<Called> answers(Worker&, const std::vector<Question>&);
  Reply ask(Worker&, const std::string& body, uint64_t ticket);
  std::string read_answer(const std::string& text, size_t count, std::vector<Called>& out) const;
  bool may_ask();
  void note(bool reached);
  bool rest(double seconds);  // false: the pool ends

  CallOptions options_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::thread timekeeper_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool ending_ = false;
  uint64_t next_ = 0;
  std::deque<Question> queue_;
  std::map<uint64_t, Called> answered_;
  std::set<uint64_t> forgotten_;  // being asked
  int64_t failures_in_a_row_ = 0;
  bool open_ = false, probing_ = false;
  Clock::time_point closed_until_;
  CallStats stats_;
};

}  // namespace furlong
