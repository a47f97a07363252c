#include <atomic>
#include <cstring>

#include "base/check.h"
#include "base/threads.h"
#include "tensor/cuda/queue.h"
#include "tensor/cuda_devices.h"

namespace furlong::cuda {
namespace {

constexpr size_t ring_bytes = size_t{32} << 20;
// Host memory is locked in runs that end at multiples of this address, so that threads can lock them side by side. One
// copy must not reach over two runs.
constexpr uintptr_t lock_run = uintptr_t{1} << 30;

// Calls f(offset, bytes) for each part of [memory, memory + bytes) that lies in one run.
template <class F>
void each_run(const void* memory, size_t bytes, F&& f) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  for (size_t done = 0; done < bytes;) {
    const size_t part = std::min<size_t>(bytes - done, lock_run - (begin + done) % lock_run);
    f(done, part);
    done += part;
  }
}

// The device that open() chose. CUDA keeps the current device by thread, 0 at first.
std::atomic<int>& opened() {
  static std::atomic<int> index{0};
  return index;
}
// Before a call that depends on the current device, in whichever thread it is.
void on_opened_device() {
  thread_local int current = 0;
  const int index = opened();
  if (index == current) return;
  check(cudaSetDevice(index), "cudaSetDevice");
  current = index;
}

double gibibytes(size_t bytes) { return static_cast<double>(bytes) / 1073741824.0; }

[[noreturn]] void report(cudaError_t status, const char* what, const char* last_op) {
  const Exit code = status == cudaErrorMemoryAllocation ? Exit::resources : Exit::lost;
  throw Error(code, describe_error(what, last_op, cudaGetErrorString(status), cudaGetErrorName(status)));
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) report(status, what, nullptr);
}

void check(const Queue& queue, cudaError_t status, const char* what) {
  if (status != cudaSuccess) report(status, what, queue.last_op);
}

bool built() { return true; }

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void open(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  const std::string none =
      why_not(status == cudaSuccess ? count : 0, index, status == cudaSuccess ? "" : cudaGetErrorString(status));
  if (!none.empty()) throw Error(Exit::resources, none);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  const std::string refused = why_not({.name = properties.name, .major = properties.major, .minor = properties.minor});
  if (!refused.empty()) throw Error(Exit::resources, refused);
  opened() = index;
  on_opened_device();
  check(cudaFree(nullptr), "opening the device");
}

DeviceInfo device_info() {
  on_opened_device();
  int index = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  DeviceInfo info{.name = properties.name,
                  .major = properties.major,
                  .minor = properties.minor,
                  .multiprocessors = properties.multiProcessorCount};
  check(cudaMemGetInfo(&info.free_bytes, &info.total_bytes), "cudaMemGetInfo");
  return info;
}

Memory memory() {
  on_opened_device();
  Memory found;
  check(cudaMemGetInfo(&found.free, &found.total), "cudaMemGetInfo");
  return found;
}

void* allocate(size_t bytes) {
  on_opened_device();
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail(Exit::resources,
         "the GPU has too little memory: {:.2f} GiB wanted at once, {:.2f} of {:.2f} GiB free. Smaller "
         "--max-tokens-per-gpu, --rollout-mem-fraction-static or --optimizer-cpu-offload need less.",
         gibibytes(bytes), gibibytes(free), gibibytes(total));
  }
  check(status, "cudaMalloc");
  // Queues do not wait for the default stream, so that the zeros must be there before anybody else writes.
  check(cudaMemset(memory, 0, bytes), "cudaMemset");
  check(cudaStreamSynchronize(cudaStreamLegacy), "cudaMemset");
  return memory;
}

void release(void* memory) noexcept {
  if (memory != nullptr) cudaFree(memory);
}

void* allocate_pinned(size_t bytes) {
  on_opened_device();
  void* memory = nullptr;
  const cudaError_t status = cudaMallocHost(&memory, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(Exit::resources, "cannot lock {:.2f} GiB of host memory for transfers to the GPU", gibibytes(bytes));
  }
  check(status, "cudaMallocHost");
  return memory;
}

void release_pinned(void* memory) noexcept {
  if (memory != nullptr) cudaFreeHost(memory);
}

void lock_pages(void* memory, size_t bytes, ThreadPool& threads) {
  on_opened_device();
  std::vector<std::pair<char*, size_t>> runs;
  each_run(memory, bytes, [&](size_t at, size_t part) { runs.emplace_back(static_cast<char*>(memory) + at, part); });
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  std::vector<cudaError_t> status(runs.size());
  threads.parallel_uneven(static_cast<int64_t>(runs.size()), [&](int64_t i) {
    const auto& [at, part] = runs[static_cast<size_t>(i)];
    status[static_cast<size_t>(i)] = cudaSetDevice(device);
    if (status[static_cast<size_t>(i)] != cudaSuccess) return;
    status[static_cast<size_t>(i)] = cudaHostRegister(at, part, cudaHostRegisterPortable);
    cudaGetLastError();
  });
  for (size_t i = 0; i < runs.size(); i++) {
    if (status[i] == cudaSuccess) continue;
    for (size_t j = 0; j < runs.size(); j++) {
      if (status[j] == cudaSuccess) cudaHostUnregister(runs[j].first);
    }
    fail(Exit::resources, "cannot page-lock {:.2f} GiB of host memory: {}", gibibytes(bytes),
         cudaGetErrorString(status[i]));
  }
}

void unlock_pages(void* memory, size_t bytes) noexcept {
  each_run(memory, bytes, [&](size_t at, size_t) { cudaHostUnregister(static_cast<char*>(memory) + at); });
}

void* DeviceBlock::reserve(size_t bytes) {
  if (bytes > bytes_) {
    release(data_);
    data_ = nullptr;
    bytes_ = 0;
    data_ = allocate(bytes);
    bytes_ = bytes;
  }
  return data_;
}

Queue::Queue() {
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  multiprocessors = device_info().multiprocessors;
  ring_ = static_cast<char*>(allocate_pinned(ring_bytes));
}

Queue::~Queue() {
  if (stream != nullptr) {
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  release_pinned(ring_);
}

void* Queue::scratch(size_t bytes) {
  if (bytes > scratch_.bytes()) {
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
    CHECK(status == cudaStreamCaptureStatusNone, "scratch of {} bytes asked for while recording", bytes);
    scratch_version++;
  }
  return scratch_.reserve((bytes + 255) / 256 * 256);
}

void* Queue::stage(size_t bytes) {
  CHECK(bytes <= stage_limit, "{} bytes staged at once", bytes);
  if (ring_at_ + bytes > ring_bytes) {
    check(*this, cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    ring_at_ = 0;
  }
  void* place = ring_ + ring_at_;
  ring_at_ += (bytes + 63) / 64 * 64;
  return place;
}

std::shared_ptr<Queue> make_queue() {
  on_opened_device();
  return std::make_shared<Queue>();
}

void synchronize(Queue& queue) { check(queue, cudaStreamSynchronize(queue.stream), "cudaStreamSynchronize"); }

namespace {

constexpr int first_part = 18;  // ops: two layers, longer on the device than the rest takes the host

void begin_part(Queue& queue) {
  check(cudaStreamBeginCapture(queue.stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
}

void end_part(Queue& queue) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(queue.stream, &graph), "cudaStreamEndCapture");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "cudaGraphInstantiate");
  queue.graph->parts.push_back(exec);
}

}  // namespace

std::shared_ptr<Graph> record(Queue& queue, const std::function<void()>& body) {
  auto graph = std::make_shared<Graph>();
  begin_part(queue);
  queue.graph = graph.get();
  queue.recording = true;
  queue.recorded = 0;
  const auto stop = [&] {
    queue.recording = false;
    queue.graph = nullptr;
  };
  try {
    body();
    end_part(queue);
  } catch (...) {
    stop();
    cudaGraph_t rest = nullptr;
    cudaStreamEndCapture(queue.stream, &rest);
    if (rest != nullptr) cudaGraphDestroy(rest);
    throw;
  }
  stop();
  return graph;
}

void launch(Queue& queue, const Graph& graph) {
  for (cudaGraphExec_t part : graph.parts) check(cudaGraphLaunch(part, queue.stream), "cudaGraphLaunch");
}

uint64_t scratch_version(const Queue& queue) {
  return queue.scratch_version + (queue.side == nullptr ? 0 : queue.side->scratch_version);
}

Queue& branch(Queue& queue) {
  CHECK(!queue.branched, "a branch beside a branch");
  on_opened_device();
  if (queue.side == nullptr) queue.side = std::make_unique<Queue>();
  Queue& side = *queue.side;
  check(cudaEventRecord(queue.forked.event, queue.stream), "cudaEventRecord");
  check(cudaStreamWaitEvent(side.stream, queue.forked.event, 0), "cudaStreamWaitEvent");
  side.recording = queue.recording;
  queue.branched = true;
  return side;
}

void join(Queue& queue) {
  if (!std::exchange(queue.branched, false)) return;
  queue.side->recording = false;
  check(cudaEventRecord(queue.joined.event, queue.side->stream), "cudaEventRecord");
  check(cudaStreamWaitEvent(queue.stream, queue.joined.event, 0), "cudaStreamWaitEvent");
}

void check_launch(Queue& queue, const char* op) {
  check(queue, cudaGetLastError(), op);
  queue.last_op = op;
  // A branch has no graph of its own, and no part ends beside one.
  const bool counts = queue.recording && queue.graph != nullptr && queue.graph->parts.empty();
  if (counts && ++queue.recorded >= first_part && !queue.branched) {
    end_part(queue);
    begin_part(queue);
  }
#ifdef FURLONG_CUDA_DEBUG
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(queue.stream, &status), op);
  if (status == cudaStreamCaptureStatusNone) check(cudaStreamSynchronize(queue.stream), op);
#endif
}

void copy(Queue& queue, void* to, size_t to_stride, bool to_device, const void* from, size_t from_stride,
          bool from_device, size_t width, size_t rows) {
  if (width == 0 || rows == 0) return;
  on_opened_device();
  // Small uploads go through page-locked memory, so that they need not wait for the stream.
  if (!from_device && width * rows <= Queue::stage_limit) {
    auto* staged = static_cast<char*>(queue.stage(width * rows));
    for (size_t r = 0; r < rows; r++) {
      std::memcpy(staged + r * width, static_cast<const char*>(from) + r * from_stride, width);
    }
    from = staged;
    from_stride = width;
  }
  // So do small downloads, which the driver else takes through memory of its own.
  if (!to_device && from_device && width * rows <= Queue::stage_limit) {
    auto* staged = static_cast<char*>(queue.stage(width * rows));
    check(queue, cudaMemcpy2DAsync(staged, width, from, from_stride, width, rows, cudaMemcpyDeviceToHost, queue.stream),
          "cudaMemcpy2DAsync");
    synchronize(queue);
    for (size_t r = 0; r < rows; r++) std::memcpy(static_cast<char*>(to) + r * to_stride, staged + r * width, width);
    return;
  }
  const cudaMemcpyKind kind = to_device ? (from_device ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                                        : (from_device ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
  if (rows == 1 || (to_stride == width && from_stride == width)) {
    check(queue, cudaMemcpyAsync(to, from, width * rows, kind, queue.stream), "cudaMemcpyAsync");
  } else {
    check(queue, cudaMemcpy2DAsync(to, to_stride, from, from_stride, width, rows, kind, queue.stream),
          "cudaMemcpy2DAsync");
  }
  if (!to_device || (!from_device && width * rows > Queue::stage_limit)) synchronize(queue);
}

void copy_async(Queue& queue, void* to, const void* from, size_t bytes, bool to_device) {
  on_opened_device();
  const cudaMemcpyKind kind = to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
  each_run(to_device ? from : to, bytes, [&](size_t at, size_t part) {
    check(cudaMemcpyAsync(static_cast<char*>(to) + at, static_cast<const char*>(from) + at, part, kind, queue.stream),
          "cudaMemcpyAsync");
  });
}

std::shared_ptr<Event> make_event() {
  on_opened_device();
  return std::make_shared<Event>();
}

void mark(Queue& queue, Event& event) { check(cudaEventRecord(event.event, queue.stream), "cudaEventRecord"); }

void wait_for(Queue& queue, const Event& event) {
  check(cudaStreamWaitEvent(queue.stream, event.event, 0), "cudaStreamWaitEvent");
}

void wait_for(const Event& event) { check(cudaEventSynchronize(event.event), "cudaEventSynchronize"); }

void copy_now(void* to, const void* from, size_t bytes, bool to_device) {
  on_opened_device();
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  check(cudaMemcpy(to, from, bytes, to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost), "cudaMemcpy");
  // From pageable memory it returns when the bytes have been read; queues do not wait for the default stream.
  check(cudaStreamSynchronize(cudaStreamLegacy), "cudaMemcpy");
}

}  // namespace furlong::cuda
