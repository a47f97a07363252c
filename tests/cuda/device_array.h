// Test arrays on a CUDA device.
#pragma once
#include "../ops/support.h"
#include "tensor/copy.h"

namespace furlong::test {

// The device's copy of a host array, strides included.
class DeviceArray {
 public:
  DeviceArray(Stream& stream, const Array& host) : host_(&host) {
    const Tensor& t = host.view();
    const int64_t numbers = t.rows() > 0 ? (t.rows() - 1) * t.row_stride() + t.row_size() : 0;
    // What lies between strided rows travels too, so that writes there show.
    const int64_t whole = t.rows() * t.row_stride();
    buffer_ = Buffer(static_cast<size_t>(std::max<int64_t>(whole, 1)) * size_of(t.dtype()), Device::cuda);
    if (numbers > 0) {
      copy(stream, Tensor(buffer_.data(), t.dtype(), {numbers}, Device::cuda), Tensor(t.data(), t.dtype(), {numbers}));
    }
    view_ = t.placed(buffer_.data(), Device::cuda);
    if (t.row_stride() != t.row_size()) {
      view_ = Tensor(buffer_.data(), t.dtype(), {t.rows(), t.row_stride()}, Device::cuda).columns(0, t.row_size());
    }
  }
  operator Tensor() const { return view_; }
  const Tensor& view() const { return view_; }
  // Brings everything back into the host array.
  void fetch(Stream& stream) const {
    const Tensor& t = host_->view();
    const int64_t numbers = t.rows() > 0 ? (t.rows() - 1) * t.row_stride() + t.row_size() : 0;
    if (numbers == 0) return;
    copy(stream, Tensor(t.data(), t.dtype(), {numbers}), Tensor(buffer_.data(), t.dtype(), {numbers}, Device::cuda));
  }

 private:
  const Array* host_;
  Buffer buffer_;
  Tensor view_;
};

inline std::vector<DeviceArray> upload(Stream& stream, const std::vector<Array>& arrays) {
  std::vector<DeviceArray> out;
  out.reserve(arrays.size());
  for (const auto& a : arrays) out.emplace_back(stream, a);
  return out;
}

inline std::vector<Tensor> views(const std::vector<DeviceArray>& arrays) { return {arrays.begin(), arrays.end()}; }

inline void fetch(Stream& stream, const std::vector<DeviceArray>& arrays) {
  for (const auto& a : arrays) a.fetch(stream);
}

}  // namespace furlong::test
