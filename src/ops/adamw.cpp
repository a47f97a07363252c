#include "ops/adamw.h"

#include "ops/front.h"

namespace furlong {

void adamw(Stream& stream, Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamParams& params) {
  for (const auto& t : {master, m, v, grad}) {
    front::expect(t.numel() == weight.numel() && t.dtype() == front::acc(weight.dtype()) && t.contiguous(), "adamw",
                  "master, moments and gradient of the weight's size, in fp32, wanted", {weight, t});
  }
  front::expect(weight.contiguous(), "adamw", "a contiguous weight wanted", {weight});
  CHECK(params.step >= 1, "adamw: step {}", params.step);
  if (front::skip(stream, weight)) return;
  front::body(weight).adamw(stream, weight, master, m, v, grad, params);
}

}  // namespace furlong
