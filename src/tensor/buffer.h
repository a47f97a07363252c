// Owners of memory. Buffer owns one block; Share is a part of a block that several users occupy in turn; Arena hands
// out named blocks in stack order and remembers its high mark.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/threads.h"
#include "tensor/tensor.h"

namespace furlong {

// One block of memory of a device, 64-byte aligned, zeroed. Throws Error(Exit::resources) when it cannot be had.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t bytes, Device device = Device::cpu);
  // Page-locked memory of the host, which a device copies from and to at full speed behind the host's back. Its pages
  // are there at once, first touched by all threads.
  static Buffer page_locked(size_t bytes, ThreadPool& threads);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_ = Device::cpu;
  bool locked_ = false;
};

// A part of a block of memory whose parts may overlap, because their users take turns. Addresses never move. The block
// lives as long as any of its parts.
class Share {
 public:
  Share() = default;
  // The whole of a new block, zeroed. Throws Error(Exit::resources).
  static Share block(size_t bytes, Device device);
  Share part(size_t begin, size_t bytes) const;

  bool defined() const { return block_ != nullptr; }
  void* data() const;
  size_t bytes() const { return bytes_; }
  Device device() const;
  // To be called before a part is used again. True when a part that overlaps it was in use since: then its content is
  // lost.
  bool enter() const;

 private:
  struct Block;
  std::shared_ptr<Block> block_;
  size_t begin_ = 0, bytes_ = 0;
};

// A tensor with its own memory.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(DType dtype, std::initializer_list<int64_t> shape, Device device = Device::cpu);
  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }

 private:
  Buffer buffer_;
  Tensor view_;
};

// Stack-like memory for the intermediates of a step. A measuring arena hands out addresses that must not be touched and
// only counts: run the step on it first (with a dry stream), then make the real arena of high_mark() bytes.
class Arena {
 public:
  explicit Arena(size_t capacity, Device device = Device::cpu);
  explicit Arena(Share memory);
  static Arena measuring(Device device = Device::cpu);

  bool is_measuring() const { return measuring_; }
  Device device() const { return device_; }
  // Contents are undefined. Throws Error(Exit::resources) when the capacity is exceeded.
  Tensor make(std::string_view name, DType dtype, std::initializer_list<int64_t> shape);
  // One of the dtype and shape of another.
  Tensor make_like(std::string_view name, const Tensor& other);

  // Memory of this name and size, 64-byte aligned.
  void* take(std::string_view name, size_t bytes);

  size_t capacity() const { return capacity_; }
  size_t used() const { return used_; }
  size_t high_mark() const { return high_; }
  // Bytes per name at the moment of the high mark, for the memory table.
  std::map<std::string, size_t, std::less<>> at_high_mark() const;

  // Everything made after a Scope began is given back at its end.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), used_(arena.used_), blocks_(arena.blocks_.size()) {}
    ~Scope() {
      arena_.used_ = used_;
      arena_.blocks_.resize(blocks_);
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t used_;
    size_t blocks_;
  };

 private:
  struct Block {
    std::string_view name;  // names are string literals
    size_t bytes;
  };
  Buffer buffer_;
  Share share_;  // in place of the buffer
  Device device_ = Device::cpu;
  bool measuring_ = false;
  size_t capacity_ = 0;
  size_t used_ = 0;
  size_t high_ = 0;
  std::vector<Block> blocks_;
  std::vector<Block> at_high_;
};

}  // namespace furlong
