// In programs without CUDA.
#include "base/error.h"
#include "tensor/cuda.h"
#include "tensor/cuda_devices.h"

namespace furlong::cuda {
namespace {

[[noreturn]] void absent() {
  fail(Exit::resources,
       "--device cuda: this program was built without CUDA. Build it with ./run build where nvcc is installed "
       "(PRESET=cuda), or use --device cpu.");
}

}  // namespace

bool built() { return false; }
int device_count() { return 0; }
void open(int) { absent(); }
DeviceInfo device_info() { absent(); }
Memory memory() { absent(); }
void* allocate(size_t) { absent(); }
void release(void*) noexcept {}
void* allocate_pinned(size_t) { absent(); }
void release_pinned(void*) noexcept {}
void lock_pages(void*, size_t, ThreadPool&) { absent(); }
void unlock_pages(void*, size_t) noexcept {}
std::shared_ptr<Queue> make_queue() { absent(); }
void synchronize(Queue&) { absent(); }
Queue& branch(Queue&) { absent(); }
void join(Queue&) { absent(); }
std::shared_ptr<Graph> record(Queue&, const std::function<void()>&) { absent(); }
void launch(Queue&, const Graph&) { absent(); }
uint64_t scratch_version(const Queue&) { absent(); }
void copy(Queue&, void*, size_t, bool, const void*, size_t, bool, size_t, size_t) { absent(); }
void copy_async(Queue&, void*, const void*, size_t, bool) { absent(); }
std::shared_ptr<Event> make_event() { absent(); }
void mark(Queue&, Event&) { absent(); }
void wait_for(Queue&, const Event&) { absent(); }
void wait_for(const Event&) { absent(); }
void copy_now(void*, const void*, size_t, bool) { absent(); }

}  // namespace furlong::cuda
