// The CUDA runtime as the rest of the program sees it: devices, memory, transfers, the queue that ops run in. Only
// files under a folder named cuda include CUDA's own headers. In a build without CUDA whatever needs a device throws
// Error(Exit::resources).
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace furlong {
class ThreadPool;
}

namespace furlong::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  size_t total_bytes = 0, free_bytes = 0;
};

// Whether this program was compiled with CUDA.
bool built();
// Why the device of this index cannot be opened among `count` (error: the runtime's words where it found none), and why
// a found one cannot be used; empty: it can.
std::string why_not(int count, int index, const std::string& error);
std::string why_not(const DeviceInfo&);
// What a failed call is reported as. last_op: the op launched last in the same queue, where there is one; kernels run
// behind the host, so that a call may notice what an earlier op did.
std::string describe_error(const char* call, const char* last_op, const std::string& words, const std::string& name);
// Makes device `index` the process's own. Throws Error(Exit::resources) when there is none or its kernels are not in
// this program, naming what was found and what to do.
void open(int index = 0);
// Of the device that is open.
DeviceInfo device_info();

struct Memory {
  size_t free = 0, total = 0;
};
// Of the device that is open: bytes.
Memory memory();

// Device memory, zeroed, 256-byte aligned. Throws Error(Exit::resources) with what is free.
void* allocate(size_t bytes);
void release(void* memory) noexcept;
// Page-locked host memory, which the device copies at full speed. Contents undefined.
void* allocate_pinned(size_t bytes);
void release_pinned(void* memory) noexcept;
// Page-locks host memory that the caller has mapped, all threads at it, for copy_async. Throws Error(Exit::resources).
void lock_pages(void* memory, size_t bytes, ThreadPool& threads);
void unlock_pages(void* memory, size_t bytes) noexcept;

// A CUDA stream and what ops need beside it; defined in tensor/cuda/queue.h.
struct Queue;
std::shared_ptr<Queue> make_queue();
void synchronize(Queue&);

// A queue beside this one, which runs what it is given once all before in this one has run; recorded with it. Until
// join() it is the only one.
Queue& branch(Queue&);
// What this queue is given from now on waits for its branch. Without one: nothing.
void join(Queue&);

// A recorded run of launches.
struct Graph;
// Records what `body` launches, without running it. It must neither wait for the device nor take memory: run it once
// before, so that everything it needs is there.
std::shared_ptr<Graph> record(Queue&, const std::function<void()>& body);
void launch(Queue&, const Graph&);
// Changes whenever memory that recorded launches may use has moved: graphs recorded under another value are void.
uint64_t scratch_version(const Queue&);

// Copies `rows` rows of `width` bytes, strides in bytes, in the queue's order. Each side is host or device memory as it
// says. A copy to the host has ended on return; one from the host has taken its bytes.
void copy(Queue&, void* to, size_t to_stride, bool to_device, const void* from, size_t from_stride, bool from_device,
          size_t width, size_t rows);

// One run of bytes in the queue's order between device memory and page-locked host memory, which must stay as it is
// until the queue has passed. Returns at once.
void copy_async(Queue&, void* to, const void* from, size_t bytes, bool to_device);

// A place in a queue's order. Only work given to the queue before the latest mark() counts; one never marked is passed.
struct Event;
std::shared_ptr<Event> make_event();
void mark(Queue&, Event&);
void wait_for(Queue&, const Event&);  // what the queue is given from now on
void wait_for(const Event&);          // the caller

// Copies one run of bytes after all queues have finished; for work outside a stream (checkpoint files).
void copy_now(void* to, const void* from, size_t bytes, bool to_device);

}  // namespace furlong::cuda
