// What every front door needs: shape checks whose message names the op and the shapes, and the table of bodies.
#pragma once
#include "ops/table.h"

namespace furlong::front {

// The dtype sums and statistics are kept in beside tensors of `t`: f64 for f64, f32 for the rest.
constexpr DType acc(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

// The table that runs an op on this tensor.
inline const OpTable& body(const Tensor& t) { return body_of(t.device(), t.dtype()); }

// True when the op must be skipped: a dry stream or nothing to do.
inline bool skip(const Stream& stream, const Tensor& t) { return stream.is_dry() || t.numel() == 0; }

inline void expect(bool condition, const char* op, const char* rule, std::initializer_list<Tensor> tensors) {
  if (condition) [[likely]]
    return;
  std::string shapes;
  for (const auto& t : tensors) shapes += " " + t.describe();
  CHECK(false, "{}: {}; got{}", op, rule, shapes);
}

}  // namespace furlong::front
