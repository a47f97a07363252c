// Matrix products through cuBLASLt. What the library needs is kept in Queue::blas: its handle and, per shape, the
// algorithm it proposed. The proposal depends on the shape alone, never on a timing, so that the same run gives the
// same bits.
#pragma once
#include "tensor/cuda/queue.h"

namespace furlong::cuda {

// A matrix in memory, rows `stride` numbers apart. `transposed`: the product takes its transpose.
struct Matrix {
  void* data;
  DType dtype;
  int64_t stride;
  bool transposed = false;
};

// c (m,n) = a (m,k) · b (k,n), or += where `accumulate`. a and b of one dtype, bf16 or f32; sums in fp32.
struct Product {
  int64_t m, n, k;
  Matrix c, a, b;
  bool accumulate = false;
  // The sum over k may be cut into parts that are added in a fixed order. Not where a row's bits must not depend on m.
  bool cut = false;
};

struct Plan;
// How the library computes it; null where it cannot.
const Plan* plan_of(Queue&, const Product&);
size_t workspace_of(const Plan*);
void run(Queue&, const Plan&, const Product&, void* workspace);

}  // namespace furlong::cuda
