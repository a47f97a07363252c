#include "ops/random.h"

#include "ops/front.h"

namespace furlong {

void random_normal(Stream& stream, Tensor x, const RngKey& key, double scale, int64_t first, int64_t stride) {
  front::expect(x.contiguous() && (x.dtype() == DType::f32 || x.dtype() == DType::bf16), "random_normal",
                "a contiguous f32 or bf16 tensor wanted", {x});
  CHECK(first >= 0 && (stride == 0 || stride >= x.row_size()), "random_normal from {} by {} into {}", first, stride,
        x.describe());
  if (front::skip(stream, x)) return;
  front::body(x).random_normal(stream, x, key, scale, first, stride > 0 ? stride : x.row_size());
}

}  // namespace furlong
