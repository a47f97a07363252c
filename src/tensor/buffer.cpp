#include "tensor/buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/host_memory.h"
#include "tensor/cuda.h"

namespace furlong {
namespace {

constexpr size_t alignment = 64;

size_t aligned(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

double gibibytes(uint64_t bytes) { return static_cast<double>(bytes) / 1073741824.0; }

size_t bytes_of(DType dtype, std::initializer_list<int64_t> shape) {
  int64_t n = static_cast<int64_t>(size_of(dtype));
  for (const int64_t d : shape) {
    CHECK(d >= 0 && (d == 0 || n <= std::numeric_limits<int64_t>::max() / d), "tensor size overflows");
    n *= d;
  }
  return static_cast<size_t>(n);
}

}  // namespace

Buffer::Buffer(size_t bytes, Device device) : bytes_(aligned(bytes)), device_(device) {
  if (bytes_ == 0) return;
  if (device == Device::cuda) {
    data_ = cuda::allocate(bytes_);
    return;
  }
  // Anonymous pages come zeroed and are only backed once touched.
  void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    fail(Exit::resources, "cannot allocate {:.1f} MiB of host memory: {}", static_cast<double>(bytes_) / 1048576.0,
         std::strerror(errno));
  }
  madvise(p, bytes_, MADV_HUGEPAGE);
  data_ = p;
}

Buffer Buffer::page_locked(size_t bytes, ThreadPool& threads) {
  // Beyond what is there the kernel would end the process instead of refusing.
  const uint64_t there = available_host_memory();
  if (aligned(bytes) > there) {
    fail(Exit::resources,
         "the host has too little memory: {:.2f} GiB of page-locked memory wanted, {:.2f} GiB free. Smaller "
         "--optimizer-offload-fraction, bf16 moments (--use-precision-aware-optimizer --exp-avg-dtype bf16 "
         "--exp-avg-sq-dtype bf16) or leaving out --overlap-cpu-optimizer-d2h-h2d need less.",
         gibibytes(aligned(bytes)), gibibytes(there));
  }
  Buffer buffer(bytes);
  if (buffer.bytes_ == 0) return buffer;
  constexpr size_t piece = size_t{64} << 20, page = 4096;
  auto* begin = static_cast<volatile uint8_t*>(buffer.data_);
  threads.parallel_uneven(static_cast<int64_t>((buffer.bytes_ + piece - 1) / piece), [&](int64_t i) {
    const size_t first = static_cast<size_t>(i) * piece, end = std::min(buffer.bytes_, first + piece);
    for (size_t at = first; at < end; at += page) begin[at] = 0;
  });
  cuda::lock_pages(buffer.data_, buffer.bytes_, threads);
  buffer.locked_ = true;
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (device_ == Device::cuda) {
    cuda::release(data_);
  } else {
    if (locked_) cuda::unlock_pages(data_, bytes_);
    munmap(data_, bytes_);
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_),
      locked_(other.locked_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  std::swap(locked_, other.locked_);
  return *this;
}

struct Share::Block {
  struct Part {
    size_t begin, bytes;
    uint64_t entered;
  };
  Buffer buffer;
  std::vector<Part> parts;
  uint64_t entries = 0;
};

Share Share::block(size_t bytes, Device device) {
  Share share;
  share.block_ = std::make_shared<Block>();
  share.block_->buffer = Buffer(bytes, device);
  share.bytes_ = bytes;
  return share;
}

Share Share::part(size_t begin, size_t bytes) const {
  CHECK(begin + bytes <= bytes_, "bytes [{}, {}) of a part of {}", begin, begin + bytes, bytes_);
  Share share(*this);
  share.begin_ += begin;
  share.bytes_ = bytes;
  return share;
}

void* Share::data() const { return static_cast<uint8_t*>(block_->buffer.data()) + begin_; }

Device Share::device() const { return block_->buffer.device(); }

bool Share::enter() const {
  auto& parts = block_->parts;
  const auto is_this = [&](const Block::Part& p) { return p.begin == begin_ && p.bytes == bytes_; };
  auto mine = std::find_if(parts.begin(), parts.end(), is_this);
  if (mine == parts.end()) mine = parts.insert(mine, {begin_, bytes_, 0});
  const bool lost = std::any_of(parts.begin(), parts.end(), [&](const Block::Part& p) {
    const bool overlaps = p.begin < begin_ + bytes_ && begin_ < p.begin + p.bytes;
    return overlaps && p.entered > mine->entered;
  });
  mine->entered = ++block_->entries;
  return lost;
}

OwnedTensor::OwnedTensor(DType dtype, std::initializer_list<int64_t> shape, Device device)
    : buffer_(bytes_of(dtype, shape), device), view_(buffer_.data(), dtype, shape, device) {}

Arena::Arena(size_t capacity, Device device) : buffer_(capacity, device), device_(device), capacity_(capacity) {}

Arena::Arena(Share memory) : share_(memory), device_(memory.device()), capacity_(memory.bytes()) {}

Arena Arena::measuring(Device device) {
  Arena arena(0, device);
  arena.measuring_ = true;
  arena.capacity_ = std::numeric_limits<size_t>::max() / 2;
  return arena;
}

void* Arena::take(std::string_view name, size_t size) {
  const size_t bytes = aligned(size);
  if (bytes > capacity_ - used_) {
    fail(Exit::resources, "the working memory is too small for {}: {} bytes wanted, {} of {} left", name, bytes,
         capacity_ - used_, capacity_);
  }
  auto* base = static_cast<uint8_t*>(share_.defined() ? share_.data() : buffer_.data());
  if (measuring_) base = reinterpret_cast<uint8_t*>(alignment);
  void* p = base + used_;
  used_ += bytes;
  blocks_.push_back({name, bytes});
  if (used_ > high_) {
    high_ = used_;
    if (measuring_) at_high_ = blocks_;
  }
  return p;
}

std::map<std::string, size_t, std::less<>> Arena::at_high_mark() const {
  std::map<std::string, size_t, std::less<>> names;
  for (const auto& block : at_high_) names[std::string(block.name)] += block.bytes;
  return names;
}

Tensor Arena::make(std::string_view name, DType dtype, std::initializer_list<int64_t> shape) {
  return {take(name, bytes_of(dtype, shape)), dtype, shape.begin(), static_cast<int>(shape.size()), device_};
}

Tensor Arena::make_like(std::string_view name, const Tensor& other) {
  return other.placed(take(name, other.bytes()), device_);
}

}  // namespace furlong
