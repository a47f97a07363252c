#include "trainer/beside.h"

#include <chrono>
#include <utility>

namespace furlong {

Beside::Beside(bool own_thread) {
  if (own_thread) thread_ = std::thread([this] { run(); });
}

Beside::~Beside() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

void Beside::add(std::function<bool()> work) {
  const std::lock_guard lock(mutex_);
  work_.push_back(std::move(work));
  changed_.notify_all();
}

void Beside::check() {
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

bool Beside::piece(const std::function<bool()>& work) {
  const auto begun = std::chrono::steady_clock::now();
  const bool more = work();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begun;
  const std::lock_guard lock(mutex_);
  seconds_ += taken.count();
  return more;
}

double Beside::seconds() {
  const std::lock_guard lock(mutex_);
  return seconds_;
}

void Beside::tick() {
  if (thread_.joinable()) return check();
  while (!work_.empty()) {
    if (piece(work_.front())) return;
    work_.pop_front();
  }
}

void Beside::finish() {
  if (!thread_.joinable()) {
    while (!work_.empty()) tick();
    return;
  }
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return work_.empty() || error_; });
  }
  check();
}

void Beside::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [&] { return stop_ || !work_.empty(); });
    if (stop_) return;
    auto& front = work_.front();  // stays in its place when more is added
    lock.unlock();
    bool more = false;
    std::exception_ptr error;
    try {
      more = piece(front);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error) {
      error_ = error;
      work_.clear();
    } else if (!more) {
      work_.pop_front();
    }
    changed_.notify_all();
  }
}

}  // namespace furlong
