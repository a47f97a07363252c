#include "ops/rope.h"

#include "ops/front.h"

namespace furlong {
namespace {

void check(const char* op, const Tensor& y, const Tensor& r, const Tensor& x, const Tensor& w, const Tensor& positions,
           const RopeShape& s) {
  front::expect(y.rank() == 2 && x.rank() == 2 && y.rows() == x.rows() && y.dim(1) == s.heads * s.head_dim &&
                    x.dim(1) == s.heads * s.head_stride && s.head_stride >= s.head_dim && y.dtype() == x.dtype() &&
                    w.numel() == s.head_dim && r.numel() == x.rows() * s.heads && r.contiguous() &&
                    r.dtype() == front::acc(x.dtype()) && positions.numel() == x.rows() && s.rotary_dim % 2 == 0 &&
                    0 <= s.rotary_dim && s.rotary_dim <= s.head_dim,
                op, "y (T, heads·head_dim), x (T, heads·head_stride), w (head_dim), r (T, heads), positions (T) wanted",
                {y, x, w, r, positions});
}

}  // namespace

void norm_rope(Stream& stream, Tensor y, Tensor r, Tensor x, Tensor w, Tensor positions, const RopeShape& shape) {
  check("norm_rope", y, r, x, w, positions, shape);
  if (front::skip(stream, y)) return;
  front::body(x).norm_rope(stream, y, r, x, w, positions, shape);
}

void norm_rope_both(Stream& stream, const RopeOf& queries, const RopeOf& keys, Tensor positions) {
  for (const RopeOf* p : {&queries, &keys}) check("norm_rope_both", p->y, p->r, p->x, p->w, positions, p->shape);
  if (front::skip(stream, queries.y)) return;
  front::body(queries.x).norm_rope_both(stream, queries, keys, positions);
}

void norm_rope_backward(Stream& stream, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r, Tensor positions,
                        const RopeShape& shape) {
  check("norm_rope_backward", dy, r, x, w, positions, shape);
  front::expect(dx.same_shape(x) && dx.dtype() == x.dtype() && dw.same_shape(w) && dw.dtype() == front::acc(x.dtype()),
                "norm_rope_backward", "dx as x and dw as w, in fp32, wanted", {dx, x, dw, w});
  if (front::skip(stream, dx)) return;
  front::body(x).norm_rope_backward(stream, dx, dw, dy, x, w, r, positions, shape);
}

}  // namespace furlong
