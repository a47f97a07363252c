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

ThreadPool::ThreadPool(int n) : size_(n > 0 ? n : available_cores()) {
  for (int i = 1; i < size_; i++) threads_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::run(int64_t n, int64_t blocks, Body body, void* context) {
  if (busy_.exchange(true)) {  // called from inside a task
    body(context, 0, n);
    return;
  }
  body_ = body;
  context_ = context;
  n_ = n;
  done_.store(0, std::memory_order_relaxed);
  const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
  ticket_.store(first_ticket(generation, static_cast<uint64_t>(blocks)), std::memory_order_release);
  generation_.store(generation, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) generation_.notify_all();
  take_blocks(generation);
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

void ThreadPool::take_blocks(uint32_t generation) {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const auto blocks = static_cast<int64_t>(ticket >> count_bits & count_mask);
    const auto taken = static_cast<int64_t>(ticket & count_mask);
    if (ticket >> (2 * count_bits) != (generation & generation_mask) || taken == blocks) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acquire)) continue;
    body_(context_, n_ * taken / blocks, n_ * (taken + 1) / blocks);
    done_.fetch_add(1, std::memory_order_release);
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::work() {
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
    take_blocks(seen);
  }
}

}  // namespace furlong
