// Movement between memories.
#pragma once
#include "tensor/buffer.h"
#include "tensor/stream.h"

namespace furlong {

// to = from, of one dtype and as many rows of as many numbers; each may lie on the host or on the stream's device. A
// copy to the host has ended on return; one from the host has taken its numbers.
void copy(Stream&, Tensor to, Tensor from);

// The tensor itself where the stream computes on the host, else a copy of it in the arena (nothing is copied on a dry
// stream).
Tensor on_device(Stream&, Arena&, std::string_view name, Tensor host);

// A contiguous tensor's numbers on the host: the tensor itself if it lies there, else a copy with its own memory, taken
// when everything before has run.
class OnHost {
 public:
  explicit OnHost(const Tensor& tensor);
  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }

 private:
  Buffer buffer_;
  Tensor view_;
};

// Writes `count` numbers at offset `first` of a contiguous tensor from host memory, wherever the tensor lies.
void write_numbers(const Tensor& tensor, int64_t first, int64_t count, const void* from);

}  // namespace furlong
