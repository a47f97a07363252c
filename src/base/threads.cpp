#include "base/threads.h"

#include <sched.h>

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace furlong {
namespace {

void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// A waiting worker spins about 100 microseconds, the length of the gaps inside a step, and then sleeps.
constexpr int spins_before_sleep = 4000;

}  // namespace

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

ThreadPool::ThreadPool(int n) : size_(n > 0 ? n : available_cores()) {
  for (int i = 1; i < size_; i++) threads_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(int64_t n, Body body, void* context) {
  if (busy_.exchange(true)) {  // called from inside a task
    body(context, 0, n);
    return;
  }
  body_ = body;
  context_ = context;
  n_ = n;
  running_.store(size_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) generation_.notify_all();
  body(context, 0, n / size_);
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; spins++) {
    // On a machine with fewer cores than threads a spinning caller would starve its own workers.
    if (spins > spins_before_sleep) {
      std::this_thread::yield();
    } else {
      pause_cpu();
    }
  }
  busy_ = false;
}

void ThreadPool::work(int index) {
  uint64_t seen = 0;
  for (;;) {
    for (int spins = 0; generation_.load(std::memory_order_acquire) == seen && spins < spins_before_sleep; spins++) {
      pause_cpu();
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      generation_.wait(seen, std::memory_order_seq_cst);
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
      if (generation_.load(std::memory_order_acquire) == seen) continue;
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    body_(context_, n_ * index / size_, n_ * (index + 1) / size_);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace furlong
