// Where ops run: the first parameter of every op. On the CPU it is a thread pool; on a CUDA device a queue of launches
// that runs behind the host. A dry stream runs nothing, so that a step can be measured on a measuring arena.
#pragma once
#include <memory>

#include "base/threads.h"
#include "tensor/cuda.h"
#include "tensor/tensor.h"

namespace furlong {

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
  // Waits until everything before has run.
  void synchronize() const {
    if (queue_ != nullptr) cuda::synchronize(*queue_);
  }

 private:
  ThreadPool* threads_;
  Device device_ = Device::cpu;
  std::shared_ptr<cuda::Queue> queue_;
  bool dry_ = false;
};

}  // namespace furlong
