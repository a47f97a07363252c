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

constexpr int count_bits = 22;
constexpr uint64_t count_mask = (uint64_t{1} << count_bits) - 1;
constexpr uint32_t generation_mask = (1u << (64 - 2 * count_bits)) - 1;

uint64_t first_ticket(uint32_t generation, uint64_t blocks) {
  return uint64_t{generation & generation_mask} << (2 * count_bits) | blocks << count_bits;
}

}  // namespace

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

ThreadPool::ThreadPool(int n) : size_(n > 0 ? n : available_cores()), tickets_(new Ticket[static_cast<size_t>(size_)]) {
  for (int i = 1; i < size_; i++) threads_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (auto& thread : threads_) thread.join();
}

int64_t ThreadPool::own_blocks(int thread) const {
  if (own_ == Own::part) return blocks_ * (thread + 1) / size_ - blocks_ * thread / size_;
  return (blocks_ - thread + size_ - 1) / size_;
}

int64_t ThreadPool::own_block(int thread, int64_t i) const {
  return own_ == Own::part ? blocks_ * thread / size_ + i : thread + i * size_;
}

void ThreadPool::run(int64_t n, int64_t blocks, Own own, Body body, void* context) {
  if (busy_.exchange(true)) {  // called from inside a task
    body(context, 0, n);
    return;
  }
  body_ = body;
  context_ = context;
  n_ = n;
  blocks_ = blocks;
  own_ = own;
  done_.store(0, std::memory_order_relaxed);
  const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  for (int t = 0; t < size_; t++) {
    const auto count = static_cast<uint64_t>(own_blocks(t));
    tickets_[static_cast<size_t>(t)].value.store(first_ticket(generation, count), std::memory_order_release);
  }
  generation_.store(generation, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) generation_.notify_all();
  take_blocks(0, generation);
  for (int spins = 0; done_.load(std::memory_order_acquire) != blocks; spins++) {
    // On a machine with fewer cores than threads a spinning caller would starve its own workers.
    if (spins > spins_before_sleep) {
      std::this_thread::yield();
    } else {
      pause_cpu();
    }
  }
  busy_ = false;
}

void ThreadPool::take_blocks(int thread, uint32_t generation) {
  for (int other = 0; other < size_; other++) {
    const int owner = (thread + other) % size_;
    auto& value = tickets_[static_cast<size_t>(owner)].value;
    uint64_t ticket = value.load(std::memory_order_acquire);
    for (;;) {
      const auto own = static_cast<int64_t>(ticket >> count_bits & count_mask);
      const auto taken = static_cast<int64_t>(ticket & count_mask);
      if (ticket >> (2 * count_bits) != (generation & generation_mask)) return;
      if (taken == own) break;
      if (!value.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acquire)) continue;
      const int64_t block = own_block(owner, taken);
      body_(context_, n_ * block / blocks_, n_ * (block + 1) / blocks_);
      done_.fetch_add(1, std::memory_order_release);
      ticket = value.load(std::memory_order_acquire);
    }
  }
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
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
    take_blocks(thread, seen);
  }
}

}  // namespace furlong
