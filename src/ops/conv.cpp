#include "ops/conv.h"

#include "ops/front.h"

namespace furlong {
namespace {

void check(const char* op, const Tensor& y, const Tensor& x, const Tensor& w, const Segments& segments) {
  front::expect(x.rank() == 2 && y.same_shape(x) && y.dtype() == x.dtype() && w.rank() == 3 && w.rows() == x.dim(1) &&
                    w.dim(1) == 1 && w.dim(2) >= 1 && w.contiguous() && segments.positions.numel() == x.rows(),
                op, "x and y (T,C), w (C,1,taps), positions (T) wanted", {y, x, w, segments.positions});
}

}  // namespace

void conv_silu(Stream& stream, Tensor y, Tensor x, Tensor w, const Segments& segments, const DeltaSlots& slots) {
  check("conv_silu", y, x, w, segments);
  front::expect(!slots.defined() || (slots.window.rank() == 3 && slots.window.dim(2) == x.dim(1) &&
                                     slots.window.dim(1) >= w.dim(2) - 1 && slots.window.dtype() == x.dtype() &&
                                     slots.slots.numel() == segments.count()),
                "conv_silu", "a window (slots, at least taps - 1, C) and a slot per segment wanted",
                {x, w, slots.window, slots.slots});
  if (front::skip(stream, y)) return;
  front::body(x).conv_silu(stream, y, x, w, segments, slots);
}

void conv_silu_backward(Stream& stream, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, const Segments& segments) {
  check("conv_silu_backward", dy, x, w, segments);
  front::expect(dx.same_shape(x) && dx.dtype() == x.dtype() && dw.same_shape(w) &&
                    dw.dtype() == front::acc(x.dtype()) && dw.contiguous(),
                "conv_silu_backward", "dx as x and dw as w, in fp32, wanted", {dx, x, dw, w});
  if (front::skip(stream, dx)) return;
  front::body(x).conv_silu_backward(stream, dx, dw, dy, x, w, segments);
}

}  // namespace furlong
