#include "tensor/copy.h"

#include <cstring>

namespace furlong {

void copy(Stream& stream, Tensor to, Tensor from) {
  CHECK(to.dtype() == from.dtype() && to.rows() == from.rows() && to.row_size() == from.row_size(), "copy of {} to {}",
        from.describe(), to.describe());
  if (stream.is_dry() || to.numel() == 0) return;
  const size_t size = size_of(to.dtype());
  const bool whole = to.contiguous() && from.contiguous();
  const size_t rows = whole ? 1 : static_cast<size_t>(to.rows()), width = to.bytes() / rows;
  const size_t to_stride = whole ? width : static_cast<size_t>(to.row_stride()) * size;
  const size_t from_stride = whole ? width : static_cast<size_t>(from.row_stride()) * size;
  const bool to_device = to.device() == Device::cuda, from_device = from.device() == Device::cuda;
  if (to_device || from_device) {
    cuda::copy(stream.queue(), to.data(), to_stride, to_device, from.data(), from_stride, from_device, width, rows);
    return;
  }
  for (size_t r = 0; r < rows; r++) {
    std::memmove(static_cast<char*>(to.data()) + r * to_stride, static_cast<const char*>(from.data()) + r * from_stride,
                 width);
  }
}

Tensor on_device(Stream& stream, Arena& arena, std::string_view name, Tensor host) {
  if (stream.device() == Device::cpu) return host;
  const Tensor device = arena.make_like(name, host);
  copy(stream, device, host);
  return device;
}

OnHost::OnHost(const Tensor& tensor) : view_(tensor) {
  if (tensor.device() == Device::cpu || tensor.numel() == 0) return;
  CHECK(tensor.contiguous(), "{} is not contiguous", tensor.describe());
  buffer_ = Buffer(tensor.bytes());
  view_ = tensor.placed(buffer_.data(), Device::cpu);
  cuda::copy_now(view_.data(), tensor.data(), tensor.bytes(), false);
}

void write_numbers(const Tensor& tensor, int64_t first, int64_t count, const void* from) {
  CHECK(tensor.contiguous() && first >= 0 && first + count <= tensor.numel(), "[{}, {}) of {}", first, first + count,
        tensor.describe());
  const size_t size = size_of(tensor.dtype()), bytes = static_cast<size_t>(count) * size;
  auto* to = static_cast<char*>(tensor.data()) + static_cast<size_t>(first) * size;
  if (bytes == 0) return;
  if (tensor.device() == Device::cpu) {
    std::memcpy(to, from, bytes);
  } else {
    cuda::copy_now(to, from, bytes, true);
  }
}

}  // namespace furlong
