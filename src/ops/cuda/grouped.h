// The grouped products: which body takes which shape. box_map also serves the products of few rows (skinny.cu).
#pragma once
#include <cuda.h>

#include "ops/cuda/bodies.h"

namespace furlong::cuda::grouped {

// Any shape and dtype, in fp32 arithmetic.
void generic_rows(Stream&, Tensor y, Tensor x, Tensor w, Tensor offsets, bool across);
void generic_dw(Stream&, Tensor dw, Tensor dy, Tensor x, Tensor offsets);

// Tensor cores: bf16, columns in multiples of 64, rows of whole 16 bytes. y = x · w[e]ᵀ, or x · w[e] when across.
void tensor_rows(Stream&, Tensor y, Tensor x, Tensor w, Tensor offsets, bool across);
// y = x · w[e]ᵀ as above, and act = swiglu(y), of few rows: those that narrow_takes.
void tensor_swiglu(Stream&, Tensor act, Tensor y, Tensor x, Tensor w, Tensor offsets);
// The two products of an expert of so few rows, behind a kernel that lets the first read all it needs before its wait.
void tensor_mlp(Stream&, const GroupedMlp&);
bool narrow_takes(const Tensor& x, const Tensor& w);
void tensor_dw(Stream&, Tensor dw, Tensor dy, Tensor x, Tensor offsets);

// A tensor map of rows x columns numbers, `stride` numbers from row to row, in boxes whose rows are 128 bytes,
// swizzled.
CUtensorMap box_map(void* data, DType dtype, int64_t rows, int64_t columns, int64_t stride, int box_rows);

// A zero on the device, in the queue's scratch memory.
int* zero_counter(Queue& queue);

constexpr int most_experts = 700;  // their tiles are counted in shared memory

}  // namespace furlong::cuda::grouped
