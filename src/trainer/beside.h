// Work beside a rollout. What a piece of it computes never depends on when it runs.
#pragma once
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace furlong {

// Does pieces of work in order: one with each tick(), which the rollout calls between the steps of its engine; or with
// a thread of its own, which on a GPU keeps a second queue of kernels filled.
class Beside {
 public:
  explicit Beside(bool own_thread);
  ~Beside();  // gives up what has not begun
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;

  // work() is a piece, and true while there are more.
  void add(std::function<bool()> work);
  // Throws what a piece has thrown.
  void tick();
  // Does the rest.
  void finish();
  // That pieces have taken.
  double seconds();

 private:
  bool piece(const std::function<bool()>& work);
  void run();
  void check();

  std::deque<std::function<bool()>> work_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  double seconds_ = 0;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace furlong
