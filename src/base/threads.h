// A pool of threads with a fixed partition of work: task i always computes the same thing, whoever runs it, so that
// results do not depend on the number of threads.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace furlong {

class ThreadPool {
 public:
  // n threads in all, the caller included; 0 means one per core this process may use.
  explicit ThreadPool(int n);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Calls task(i) for i in [0, n) and returns when all are done. Tasks are handed out in contiguous blocks, one per
  // thread. Calls from inside a task run serially. A task must not throw.
  template <class F>
  void parallel(int64_t n, F&& task) {
    if (n <= 0) return;
    if (n == 1 || size_ == 1) {
      for (int64_t i = 0; i < n; i++) task(i);
      return;
    }
    run(
        n,
        [](void* context, int64_t begin, int64_t end) {
          auto& f = *static_cast<std::remove_reference_t<F>*>(context);
          for (int64_t i = begin; i < end; i++) f(i);
        },
        &task);
  }

  // The same with tasks handed out one by one to whichever thread is free: for tasks of unequal size.
  template <class F>
  void parallel_uneven(int64_t n, F&& task) {
    std::atomic<int64_t> next{0};
    parallel(std::min<int64_t>(n, size_), [&](int64_t) {
      for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < n;
           i = next.fetch_add(1, std::memory_order_relaxed)) {
        task(i);
      }
    });
  }

 private:
  using Body = void (*)(void*, int64_t, int64_t);
  void run(int64_t n, Body body, void* context);
  void work(int index);

  int size_;
  std::vector<std::thread> threads_;
  // One job at a time: the fields are written before `generation_` is raised and read after it is seen.
  Body body_ = nullptr;
  void* context_ = nullptr;
  int64_t n_ = 0;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> running_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
};

// The number of cores this process may run on.
int available_cores();

}  // namespace furlong
