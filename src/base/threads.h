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

  // Calls task(i) for i in [0, n) and returns when all are done. Tasks are handed out in contiguous blocks, several per
  // thread. Each thread begins with blocks of its own, the same ones in every call of so many tasks, so that it finds
  // in its caches what it left there, and then takes what others have left over. Calls from inside a task run serially.
  // A task must not throw.
  template <class F>
  void parallel(int64_t n, F&& task) {
    if (n <= 0) return;
    if (n == 1 || size_ == 1) {
      for (int64_t i = 0; i < n; i++) task(i);
      return;
    }
    run(
        n, std::min<int64_t>(n, blocks_per_thread * size_), Own::part,
        [](void* context, int64_t begin, int64_t end) {
          auto& f = *static_cast<std::remove_reference_t<F>*>(context);
          for (int64_t i = begin; i < end; i++) f(i);
        },
        &task);
  }

  // The same with tasks handed out one by one, of which each thread begins with every so manieth: for tasks of unequal
  // size, the largest first.
  template <class F>
  void parallel_uneven(int64_t n, F&& task) {
    one_by_one(n, Own::every_so_manieth, task);
  }

  // Handed out one by one too, and each thread begins with tasks that follow each other: for those whose memory does.
  template <class F>
  void parallel_in_order(int64_t n, F&& task) {
    one_by_one(n, Own::part, task);
  }

 private:
  using Body = void (*)(void*, int64_t, int64_t);
  // Which blocks are a thread's own: as many that follow each other, or each size-th.
  enum class Own { part, every_so_manieth };
  // Enough that a thread whose core is taken away holds up little; few enough that handing out costs nothing.
  static constexpr int64_t blocks_per_thread = 4, most_blocks = 1 << 20;
  template <class F>
  void one_by_one(int64_t n, Own own, F& task) {
    if (n <= 1 || size_ == 1) {
      for (int64_t i = 0; i < n; i++) task(i);
      return;
    }
    run(
        n, std::min<int64_t>(n, most_blocks), own,
        [](void* context, int64_t begin, int64_t end) {
          auto& f = *static_cast<std::remove_reference_t<F>*>(context);
          for (int64_t i = begin; i < end; i++) f(i);
        },
        &task);
  }
  void run(int64_t n, int64_t blocks, Own own, Body body, void* context);
  void take_blocks(int thread, uint32_t generation);
  void work(int thread);
  // Of the blocks that are a thread's own: how many, and which is the i-th.
  int64_t own_blocks(int thread) const;
  int64_t own_block(int thread, int64_t i) const;

  int size_;
  std::vector<std::thread> threads_;
  // One job at a time. A block is taken by raising the count in the ticket of the thread whose own it is, which also
  // names the job it belongs to: a thread that comes late takes nothing, and nobody waits for it. The fields stay as
  // they are until every block of the job is done.
  Body body_ = nullptr;
  void* context_ = nullptr;
  int64_t n_ = 0, blocks_ = 0;
  Own own_ = Own::part;
  struct alignas(64) Ticket {
    std::atomic<uint64_t> value{0};  // generation (20 bits), blocks (22), blocks taken (22)
  };
  std::unique_ptr<Ticket[]> tickets_;
  std::atomic<int64_t> done_{0};
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> busy_{false};
  std::atomic<bool> stop_{false};
};

// The number of cores this process may run on.
int available_cores();

}  // namespace furlong
