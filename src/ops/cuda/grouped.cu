#include "ops/cuda/grouped.h"

#include <cudaTypedefs.h>

#include "ops/cuda/kernel.cuh"
#include "ops/cuda/products.h"

namespace furlong::cuda {
namespace grouped {
namespace {

PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    CHECK(found == cudaDriverEntryPointSuccess && entry != nullptr, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
  }();
  return encode;
}

bool whole_16_bytes(const Tensor& t) {
  return t.dtype() == DType::bf16 && t.row_stride() % 8 == 0 && reinterpret_cast<uintptr_t>(t.data()) % 16 == 0;
}

// Whether the tensor cores' body takes dy (or y) and x of these shapes.
bool regular(const Tensor& y, const Tensor& x, const Tensor& offsets) {
  return whole_16_bytes(y) && whole_16_bytes(x) && y.dim(1) % 64 == 0 && x.dim(1) % 64 == 0 &&
         offsets.rows() <= most_experts + 1;
}

}  // namespace

CUtensorMap box_map(void* data, DType dtype, int64_t rows, int64_t columns, int64_t stride, int box_rows) {
  const size_t size = size_of(dtype);
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * size};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(128 / size), static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  CUtensorMap map;
  const CUresult result =
      encoder()(&map, dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 2,
                data, extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled refused a map");
  return map;
}

int* zero_counter(Queue& queue) {
  int* counter = queue.scratch<int>(1);
  check(cudaMemsetAsync(counter, 0, sizeof(int), queue.stream), "cudaMemsetAsync");
  return counter;
}

}  // namespace grouped

void grouped_linear(Stream& stream, Tensor y, Tensor x, Tensor w, Tensor offsets) {
  if (w.dtype() == DType::bf16 && grouped::regular(y, x, offsets)) {
    grouped::tensor_rows(stream, y, x, w, offsets, false);
  } else {
    grouped::generic_rows(stream, y, x, w, offsets, false);
  }
  check_launch(stream.queue(), "grouped_linear");
}

void grouped_swiglu(Stream& stream, Tensor y, Tensor gate_up, Tensor x, Tensor w, Tensor offsets) {
  if (w.dtype() == DType::bf16 && grouped::regular(gate_up, x, offsets) && grouped::whole_16_bytes(y) &&
      grouped::narrow_takes(x, w)) {
    grouped::tensor_swiglu(stream, y, gate_up, x, w, offsets);
    check_launch(stream.queue(), "grouped_swiglu");
  } else {
    cuda::grouped_linear(stream, gate_up, x, w, offsets);
    cuda::swiglu(stream, y, gate_up);
  }
}

void grouped_mlp(Stream& stream, const GroupedMlp& m, Tensor y, Tensor x, Tensor w) {
  if (m.w_down.dtype() == DType::bf16 && grouped::regular(m.gate_up, m.x, m.offsets) &&
      grouped::regular(m.y, m.act, m.offsets) && grouped::narrow_takes(m.x, m.w_gate_up) && w.rows() > 1 &&
      is_skinny(y, x, w)) {
    skinny_linear_ahead(stream, y, x, w);
    grouped::tensor_mlp(stream, m);
    check_launch(stream.queue(), "grouped_mlp");
    return;
  }
  cuda::linear(stream, y, x, w);
  cuda::grouped_swiglu(stream, m.act, m.gate_up, m.x, m.w_gate_up, m.offsets);
  cuda::grouped_linear(stream, m.y, m.act, m.w_down, m.offsets);
}

void grouped_linear_dx(Stream& stream, Tensor dx, Tensor dy, Tensor w, Tensor offsets) {
  if (w.dtype() == DType::bf16 && grouped::regular(dy, dx, offsets)) {
    grouped::tensor_rows(stream, dx, dy, w, offsets, true);
  } else {
    grouped::generic_rows(stream, dx, dy, w, offsets, true);
  }
  check_launch(stream.queue(), "grouped_linear_dx");
}

void grouped_linear_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x, Tensor offsets) {
  if (grouped::regular(dy, x, offsets)) {
    grouped::tensor_dw(stream, dw, dy, x, offsets);
  } else {
    grouped::generic_dw(stream, dw, dy, x, offsets);
  }
  check_launch(stream.queue(), "grouped_linear_dw");
}

}  // namespace furlong::cuda
