// Where ops run: the first parameter of every op. On the CPU it is a thread pool; on a CUDA device a queue of launches
// that runs behind the host. A dry stream runs nothing, so that a step can be measured on a measuring arena.
#pragma once
#include <exception>
#include <memory>
#include <utility>

#include "base/threads.h"
#include "tensor/cuda.h"
#include "tensor/tensor.h"

namespace furlong {

class WeightPacks;  // ops/packs.h

class Stream {
 public:
  explicit Stream(ThreadPool& threads, Device device = Device::cpu)
      : threads_(&threads), device_(device), queue_(device == Device::cuda ? cuda::make_queue() : nullptr) {}
  static Stream dry(ThreadPool& threads, Device device = Device::cpu) {
    Stream stream(threads);
    stream.device_ = device;
    stream.dry_ = true;
    return stream;
  }

  bool is_dry() const { return dry_; }
  Device device() const { return device_; }
  ThreadPool& threads() const { return *threads_; }
  cuda::Queue& queue() const {
    CHECK(queue_ != nullptr, "an op on device memory in a stream of the CPU");
    return *queue_;
  }
  // What products on the CPU may read in place of the weights themselves; null: nothing. Borrowed.
  const WeightPacks* packs() const { return packs_; }
  void use_packs(const WeightPacks* packs) { packs_ = packs; }
  // Waits until everything before has run.
  void synchronize() const {
    if (queue_ != nullptr) cuda::synchronize(*queue_);
  }

 private:
  friend class Branch;
  ThreadPool* threads_;
  Device device_ = Device::cpu;
  std::shared_ptr<cuda::Queue> queue_;
  const WeightPacks* packs_ = nullptr;
  bool dry_ = false;
};

// Ops that may run beside what `main` is given until join(): on a CUDA device, if wanted. Else they run in main itself.
// What they write is there after join(); what main runs meanwhile must not touch it.
class Branch {
 public:
  Branch(const Stream& main, bool wanted) : main_(main), side_(main) {
    if (!wanted || main.queue_ == nullptr || main.is_dry()) return;
    side_.queue_ = std::shared_ptr<cuda::Queue>(main.queue_, &cuda::branch(*main.queue_));
    open_ = true;
  }
  ~Branch() {
    try {
      join();
    } catch (const std::exception&) {  // the device is lost, as whoever waits for it will hear
    }
  }
  Branch(const Branch&) = delete;
  Branch& operator=(const Branch&) = delete;
  Stream& stream() { return side_; }
  void join() {
    if (std::exchange(open_, false)) cuda::join(*main_.queue_);
  }

 private:
  Stream main_, side_;
  bool open_ = false;
};

}  // namespace furlong
