#include "ops/adamw.h"

#include "ops/front.h"

namespace furlong {

void adamw(Stream& stream, Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamParams& params) {
  const bool f64 = weight.dtype() == DType::f64;
  for (const auto& t : {master, m, v, grad}) {
    const bool real = f64 ? t.dtype() == DType::f64 : t.dtype() == DType::f32 || t.dtype() == DType::bf16;
    front::expect(t.numel() == weight.numel() && real && t.contiguous() && t.device() == weight.device(), "adamw",
                  "master, moments and gradient of the weight's size, in fp32 or bf16, wanted", {weight, t});
  }
  front::expect(weight.contiguous(), "adamw", "a contiguous weight wanted", {weight});
  CHECK(params.step >= 1, "adamw: step {}", params.step);
  if (front::skip(stream, weight)) return;
  front::body(weight).adamw(stream, weight, master, m, v, grad, params);
}

}  // namespace furlong
