#include "model/mlp.h"

#include "model/collectives.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/swiglu.h"

namespace furlong {

void mlp_forward(Exec& exec, const ModelConfig&, const MlpWeights& w, Tensor y, Tensor x, Tensor residual,
                 const Batch& batch, MlpSaved& saved, const NormAfter* after) {
  auto& [stream, arena, mesh] = exec;
  const RowBlocks by_tensor = tensor_rows(mesh, batch.rows());
  const DType t = x.dtype();
  const int64_t f = w.gate.rows();
  saved.x = all_gather(exec, by_tensor, "mlp.x", x);
  saved.gate_up = arena.make("mlp.gate_up", t, {saved.x.rows(), 2 * f});
  saved.act = arena.make("mlp.act", t, {saved.x.rows(), f});
  linear_swiglu(stream, saved.act, saved.gate_up, saved.x, w.gate, w.up, {});
  row_parallel(exec, by_tensor, y, saved.act, w.down);
  if (after != nullptr) {
    add_rms_norm(stream, after->y, after->r, y, residual, after->w, after->eps);
  } else {
    add(stream, y, residual);
  }
}

Tensor mlp_backward(Exec& exec, const ModelConfig& c, const MlpWeights& w, const MlpSaved& saved, Tensor dy,
                    const Batch& batch, MlpWeights& grads) {
  auto& [stream, arena, mesh] = exec;
  const RowBlocks by_tensor = tensor_rows(mesh, batch.rows());
  const DType t = dy.dtype();
  const int64_t rows = saved.x.rows(), f = w.gate.rows();
  const Tensor dx = arena.make("mlp.dx", t, {dy.rows(), c.hidden_size});
  dy = all_gather(exec, by_tensor, "mlp.dy", dy);
  const Tensor dact = arena.make("mlp.dact", t, {rows, f});
  linear_dw(stream, grads.down, dy, saved.act);
  linear_dx(stream, dact, dy, w.down, false);
  const Tensor dgate_up = arena.make("mlp.dgate_up", t, {rows, 2 * f});
  swiglu_backward(stream, dgate_up, dact, saved.gate_up);
  const Tensor dgate = dgate_up.columns(0, f), dup = dgate_up.columns(f, 2 * f);
  linear_dw(stream, grads.gate, dgate, saved.x);
  linear_dw(stream, grads.up, dup, saved.x);
  const bool alone = by_tensor.group.size() == 1;
  const Tensor partial = alone ? dx : arena.make("mlp.dx", t, {rows, c.hidden_size});
  linear_dx(stream, partial, dgate, w.gate, false);
  linear_dx(stream, partial, dup, w.up, true);
  if (!alone) reduce_scatter(exec, by_tensor, dx, partial);
  return dx;
}

}  // namespace furlong
