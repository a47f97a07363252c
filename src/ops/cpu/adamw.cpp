#include "ops/cpu/rows.h"

namespace furlong::cpu::FURLONG_ISA {

// The operations and their order are those of the usual single-tensor implementation: decay, then the moments, then one
// step with the bias corrections folded into scalars computed in double.
void adamw(Stream& stream, Tensor weight, Tensor master, Tensor m, Tensor v, Tensor grad, const AdamParams& params) {
  dispatch(weight.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const double correction1 = 1 - std::pow(params.beta1, static_cast<double>(params.step));
    const double correction2 = 1 - std::pow(params.beta2, static_cast<double>(params.step));
    const S keep = static_cast<S>(1 - params.lr * params.weight_decay);
    const S blend1 = static_cast<S>(1 - params.beta1), blend2 = static_cast<S>(1 - params.beta2);
    const S beta2 = static_cast<S>(params.beta2), eps = static_cast<S>(params.eps);
    const S step = static_cast<S>(params.lr / correction1), root2 = static_cast<S>(std::sqrt(correction2));
    const S scale = static_cast<S>(params.grad_scale);
    S *wp = master.as<S>(), *mp = m.as<S>(), *vp = v.as<S>();
    const S* gp = grad.as<S>();
    column_blocks(stream, master.numel(), 12, [&](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; i++) {
        const S g = gp[i] * scale;
        const S mi = mp[i] + (g - mp[i]) * blend1;
        const S vi = vp[i] * beta2 + blend2 * g * g;
        mp[i] = mi;
        vp[i] = vi;
        wp[i] = wp[i] * keep - step * mi / (std::sqrt(vi) / root2 + eps);
      }
      if (weight.data() != master.data()) {
        T* out = weight.as<T>();
        for (int64_t i = begin; i < end; i++) out[i] = narrow<T>(wp[i]);
      }
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
