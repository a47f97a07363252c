// Tensor: a view of typed numbers in memory, passed by value; it owns nothing (Buffer and Arena own).
// Rows are contiguous; the first dimension may have a stride (row_stride) larger than a row.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/check.h"
#include "tensor/dtype.h"

namespace furlong {

enum class Device : uint8_t { cpu, cuda };

class Tensor {
 public:
  static constexpr int max_rank = 4;

  Tensor() = default;
  Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape, Device device = Device::cpu);
  Tensor(void* data, DType dtype, const int64_t* shape, int rank, Device device = Device::cpu);

  bool defined() const { return rank_ > 0; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int rank() const { return rank_; }
  int64_t dim(int i) const {
    CHECK(i >= 0 && i < rank_, "dimension {} of a tensor of rank {}", i, rank_);
    return shape_[static_cast<size_t>(i)];
  }
  int64_t rows() const { return rank_ == 0 ? 0 : shape_[0]; }
  // Elements of one row: the product of all dimensions after the first.
  int64_t row_size() const;
  // Elements from one row to the next; row_size() when contiguous.
  int64_t row_stride() const { return row_stride_; }
  bool contiguous() const { return row_stride_ == row_size() || rows() <= 1; }
  int64_t numel() const { return rank_ == 0 ? 0 : rows() * row_size(); }
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype_); }
  bool same_shape(const Tensor& other) const;

  // Typed access; the dtype must be T's.
  template <class T>
  T* as() const {
    CHECK(dtype_ == dtype_of<T>, "a {} tensor read as {}", name_of(dtype_), name_of(dtype_of<T>));
    return static_cast<T*>(data_);
  }
  void* data() const { return data_; }

  // Rows [begin, end).
  Tensor rows(int64_t begin, int64_t end) const;
  // Columns [begin, end) of a rank-2 tensor, keeping the row stride.
  Tensor columns(int64_t begin, int64_t end) const;
  // Entry i along the first dimension, a tensor of one rank less.
  Tensor at(int64_t i) const;
  // The same numbers under another shape of equal size; the tensor must be contiguous.
  Tensor reshape(std::initializer_list<int64_t> shape) const;
  // A contiguous tensor of this shape and dtype over other memory.
  Tensor placed(void* data, Device device) const { return {data, dtype_, shape_.data(), rank_, device}; }
  // "f32[8,64]" for messages.
  std::string describe() const;

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
  int rank_ = 0;
  std::array<int64_t, max_rank> shape_{};
  int64_t row_stride_ = 0;
};

}  // namespace furlong
