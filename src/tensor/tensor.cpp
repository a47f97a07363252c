#include "tensor/tensor.h"

namespace furlong {
namespace {

uint8_t* advance(void* data, DType dtype, int64_t elements) {
  return static_cast<uint8_t*>(data) + elements * static_cast<int64_t>(size_of(dtype));
}

}  // namespace

Tensor::Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape, Device device)
    : Tensor(data, dtype, shape.begin(), static_cast<int>(shape.size()), device) {}

Tensor::Tensor(void* data, DType dtype, const int64_t* shape, int rank, Device device)
    : data_(data), dtype_(dtype), device_(device), rank_(rank) {
  CHECK(rank >= 1 && rank <= max_rank, "rank {}", rank);
  for (int i = 0; i < rank; i++) {
    CHECK(shape[i] >= 0, "dimension {} is {}", i, shape[i]);
    shape_[static_cast<size_t>(i)] = shape[i];
  }
  row_stride_ = row_size();
}

int64_t Tensor::row_size() const {
  int64_t n = 1;
  for (int i = 1; i < rank_; i++) n *= shape_[static_cast<size_t>(i)];
  return n;
}

bool Tensor::same_shape(const Tensor& other) const { return rank_ == other.rank_ && shape_ == other.shape_; }

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  CHECK(rank_ >= 1 && 0 <= begin && begin <= end && end <= rows(), "rows [{}, {}) of {}", begin, end, describe());
  Tensor view = *this;
  view.data_ = advance(data_, dtype_, begin * row_stride_);
  view.shape_[0] = end - begin;
  return view;
}

Tensor Tensor::columns(int64_t begin, int64_t end) const {
  CHECK(rank_ == 2 && 0 <= begin && begin <= end && end <= dim(1), "columns [{}, {}) of {}", begin, end, describe());
  Tensor view = *this;
  view.data_ = advance(data_, dtype_, begin);
  view.shape_[1] = end - begin;
  return view;
}

Tensor Tensor::at(int64_t i) const {
  CHECK(rank_ >= 2 && 0 <= i && i < rows(), "entry {} of {}", i, describe());
  return {advance(data_, dtype_, i * row_stride_), dtype_, shape_.data() + 1, rank_ - 1, device_};
}

Tensor Tensor::reshape(std::initializer_list<int64_t> shape) const {
  CHECK(contiguous(), "reshape of a strided {}", describe());
  Tensor view(data_, dtype_, shape, device_);
  CHECK(view.numel() == numel(), "reshape of {} to {}", describe(), view.describe());
  return view;
}

std::string Tensor::describe() const {
  if (rank_ == 0) return "undefined";
  std::string text = fmt::format("{}[", name_of(dtype_));
  for (int i = 0; i < rank_; i++) text += fmt::format("{}{}", i > 0 ? "," : "", shape_[static_cast<size_t>(i)]);
  return text + "]";
}

}  // namespace furlong
