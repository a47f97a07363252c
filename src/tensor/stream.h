// Where ops run: the first parameter of every op. On the CPU it is a thread pool; a dry stream runs nothing, so that a
// step can be measured on a measuring arena.
#pragma once
#include "base/threads.h"
#include "tensor/tensor.h"

namespace furlong {

class Stream {
 public:
  explicit Stream(ThreadPool& threads) : threads_(&threads) {}
  static Stream dry(ThreadPool& threads) {
    Stream stream(threads);
    stream.dry_ = true;
    return stream;
  }

  bool is_dry() const { return dry_; }
  ThreadPool& threads() const { return *threads_; }

 private:
  ThreadPool* threads_;
  bool dry_ = false;
};

}  // namespace furlong
