// The thread that owns the engine. Requests come to it through a bounded queue; what it draws goes to each request's
// inbox.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "rollout/request.h"

namespace furlong {

// The engine, as the loop uses it: Engine's functions of these names. Called by the loop's thread alone.
struct EngineCalls {
  std::function<uint64_t(Request, Sink)> submit;
  std::function<void(uint64_t)> cancel;
  std::function<bool()> step;
  struct Gauges {
    int64_t free_pages = 0, pages = 0, free_slots = 0, slots = 0;
    int64_t kept_pages = 0, kept_slots = 0;  // of earlier sequences, until others need them
    int64_t shared_rows = 0;                 // not run, because an earlier sequence's could be used
    int64_t drafted = 0, accepted = 0, preemptions = 0;
  };
  std::function<Gauges()> gauges;
};

// Tokens of one sample, in the order drawn.
struct Drawn {
  size_t part = 0;  // which of the requests that were sent together
  int64_t sample = 0;
  std::vector<int32_t> tokens;
  std::vector<float> log_probs;
  std::vector<std::vector<Alternative>> alternatives;
  std::optional<FinishReason> finished;  // with the sample's last
  int64_t drafted = 0, accepted = 0;     // of the whole sample, with its last
};

// Where the drawn tokens of one client's requests wait for the client's thread.
class Inbox {
 public:
  // wake: called, by the loop's thread, after something was put in.
  explicit Inbox(std::function<void()> wake) : wake_(std::move(wake)) {}
  void put(Drawn drawn);
  // The requests end here.
  void fail(std::exception_ptr why);
  // All that has come; throws what fail() was given, once the rest has been taken.
  std::vector<Drawn> take();

 private:
  std::mutex mutex_;
  std::vector<Drawn> drawn_;
  std::exception_ptr failure_;
  std::function<void()> wake_;
};

struct LoopState {
  bool busy = false;           // there is work
  double seconds = 0;          // since the last step, or since work came after none
  int64_t steps = 0;           // since the start
  int64_t running = 0;         // samples in the engine
  int64_t waiting = 0;         // requests in the queue
  int64_t tokens = 0;          // drawn since the start
  int64_t prompt_tokens = 0;   // of requests handed to the engine
  int64_t cancelled = 0;       // requests
  EngineCalls::Gauges engine;  // a quarter of a second old at most, while there is work
};

class EngineLoop {
 public:
  struct Options {
    int64_t max_running = 512;   // samples in the engine; further requests wait here
    int64_t max_waiting = 1024;  // requests; more are refused
  };
  // failed: called by the loop's thread when a step has thrown; the loop then ends.
  EngineLoop(EngineCalls, const Options&, std::function<void(std::exception_ptr)> failed);
  ~EngineLoop();

  // Requests of one client that end with it: destroyed, they are cancelled within one step of the engine.
  class Ticket {
   public:
    Ticket(EngineLoop& loop, std::vector<uint64_t> numbers) : loop_(loop), numbers_(std::move(numbers)) {}
    ~Ticket() { loop_.cancel(numbers_); }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

   private:
    EngineLoop& loop_;
    std::vector<uint64_t> numbers_;
  };
  // From any thread. All of them, or none: throws ApiError (429) when too many wait, (503) when the loop ends. What the
  // engine refuses comes through the inbox.
  std::unique_ptr<Ticket> submit(std::vector<Request> requests, std::shared_ptr<Inbox> inbox);
  // No further requests.
  void close();
  LoopState state() const;

 private:
  struct Job {
    uint64_t number = 0;
    size_t part = 0;
    Request request;
    std::shared_ptr<Inbox> inbox;
  };
  struct Running {
    uint64_t engine_number = 0;
    int64_t left = 0;  // samples not finished
    size_t part = 0;
    std::shared_ptr<Inbox> inbox;  // null: cancelled
  };
  void cancel(const std::vector<uint64_t>& numbers);
  void run();
  bool wait_for_work(std::vector<uint64_t>& cancelled, std::vector<Job>& started);
  void start(Job job);
  void deliver(uint64_t number, const Emitted& emitted);
  void step();
  void end_with(const std::exception_ptr& why);

  EngineCalls calls_;
  Options options_;
  std::function<void(std::exception_ptr)> failed_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> waiting_;
  std::vector<uint64_t> to_cancel_;
  bool closed_ = false, ending_ = false;
  uint64_t next_number_ = 1;
  LoopState state_;  // busy and seconds are found when asked for
  std::chrono::steady_clock::time_point last_progress_;
  // The loop's own.
  std::map<uint64_t, Running> running_;
  int64_t samples_ = 0;  // of running_ that are left
  std::chrono::steady_clock::time_point last_gauges_;
  std::thread thread_;
};

}  // namespace furlong
