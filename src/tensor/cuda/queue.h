// What a CUDA op finds in its stream. Included by CUDA code only.
#pragma once
#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "base/error.h"
#include "tensor/cuda.h"
#include "tensor/stream.h"

namespace furlong::cuda {

// Throws Error(Exit::resources) for want of memory, Error(Exit::lost) for a device error; `what` names the call or op.
void check(cudaError_t status, const char* what);
struct Queue;
// The same for a call that waits for a queue, whose last op is named too.
void check(const Queue&, cudaError_t status, const char* what);

// Device memory with an owner.
class DeviceBlock {
 public:
  DeviceBlock() = default;
  ~DeviceBlock() { release(data_); }
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;
  // At least `bytes`; what it held before is lost when it grows.
  void* reserve(size_t bytes);
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

struct Event {
  Event() { check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t event = nullptr;
};

struct Queue {
  Queue();
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  // Scratch of one op: valid for kernels launched before the next call that asks for it.
  void* scratch(size_t bytes);
  template <class T>
  T* scratch(int64_t count) {
    return static_cast<T*>(scratch(static_cast<size_t>(count) * sizeof(T)));
  }
  // Page-locked host memory to copy small things from; reused once the stream has passed.
  void* stage(size_t bytes);
  static constexpr size_t stage_limit = size_t{4} << 20;

  cudaStream_t stream = nullptr;
  int multiprocessors = 0;
  uint64_t scratch_version = 0;   // raised when scratch moves
  bool recording = false;         // inside record()
  int recorded = 0;               // ops since a recording began
  bool branched = false;          // between branch() and join()
  Graph* graph = nullptr;         // the recording
  const char* last_op = nullptr;  // the op launched last
  std::shared_ptr<void> blas;     // the matrix library's handle and plans (ops/cuda/blas.cu)
  std::unique_ptr<Queue> side;    // for branches, once there was one
  Event forked, joined;

 private:
  DeviceBlock scratch_;
  char* ring_ = nullptr;
  size_t ring_at_ = 0;
};

// A recording in two parts: the device works on the first, a short one, while the host hands over the second.
struct Graph {
  Graph() = default;
  ~Graph() {
    for (cudaGraphExec_t part : parts) cudaGraphExecDestroy(part);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  std::vector<cudaGraphExec_t> parts;
};

// Throws when the launches before it failed, naming the op; in a cuda-debug build it also waits for them.
void check_launch(Queue&, const char* op);

}  // namespace furlong::cuda
