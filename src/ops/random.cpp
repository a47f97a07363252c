#include "ops/random.h"

#include "ops/front.h"

namespace furlong {

void random_normal(Stream& stream, Tensor x, const RngKey& key, double scale) {
  front::expect(x.contiguous() && (x.dtype() == DType::f32 || x.dtype() == DType::bf16), "random_normal",
                "a contiguous f32 or bf16 tensor wanted", {x});
  if (front::skip(stream, x)) return;
  front::body(x).random_normal(stream, x, key, scale);
}

}  // namespace furlong
