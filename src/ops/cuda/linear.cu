#include <algorithm>

#include "ops/cuda/kernel.cuh"
#include "ops/cuda/products.h"

namespace furlong::cuda {
namespace {

constexpr size_t line = 256;                        // the alignment of parts of the scratch
constexpr size_t most_rounded = size_t{256} << 20;  // bytes of a gradient rounded to bf16 at a time

// The library has kernels of their own for few rows in fp32, whose sums run in another order than those for many.
constexpr int64_t few_rows = 32;

size_t padded(size_t bytes) { return (bytes + line - 1) / line * line; }

Matrix matrix(const Tensor& t, bool transposed = false) { return {t.data(), t.dtype(), t.row_stride(), transposed}; }

// One product, by the library where it can.
void multiply(Queue& queue, const Product& p) {
  const Plan* plan = plan_of(queue, p);
  if (plan == nullptr) {
    plain_product(queue, p);
  } else {
    run(queue, *plan, p, workspace_of(plan) > 0 ? queue.scratch(workspace_of(plan)) : nullptr);
  }
}

constexpr int convert_threads = 256;

// to (rows, columns) = from (+ to): four neighbouring numbers a thread, a row of blocks for each row of the matrix.
template <class To>
__global__ __launch_bounds__(convert_threads) void convert_kernel(To* to, int64_t to_stride, const float* from,
                                                                  int64_t from_stride, int64_t rows, int64_t columns,
                                                                  bool accumulate, bool aligned) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * convert_threads + threadIdx.x) * 4;
  const int count = static_cast<int>(min(columns - at, int64_t{4}));
  if (count <= 0) return;
  for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
    const float* in = from + r * from_stride + at;
    To* out = to + r * to_stride + at;
    if (sizeof(To) == 2 && aligned && count == 4 && !accumulate) {
      const float4 x = __ldcs(reinterpret_cast<const float4*>(in));
      const __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y), high = __floats2bfloat162_rn(x.z, x.w);
      *reinterpret_cast<uint2*>(out) =
          make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
    } else {
      for (int i = 0; i < count; i++) out[i] = narrow<To>(in[i] + (accumulate ? widen(out[i]) : 0.0f));
    }
  }
}

template <class To>
void convert_rows(Queue& queue, To* to, int64_t to_stride, const float* from, int64_t from_stride, int64_t rows,
                  int64_t columns, bool accumulate) {
  const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0 && from_stride % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(to) % 8 == 0 && to_stride % 4 == 0;
  const dim3 grid(static_cast<unsigned>(blocks_for(columns, convert_threads * 4)),
                  static_cast<unsigned>(std::min<int64_t>(rows, 65535)));
  convert_kernel<<<grid, convert_threads, 0, queue.stream>>>(to, to_stride, from, from_stride, rows, columns,
                                                             accumulate, aligned);
}

// A gradient dy (T,N) kept in fp32 beside weights and activations in bf16 is rounded to bf16 for the tensor cores,
// `step` columns at a time, so that the copy of a gradient of logits stays small.
struct Rounded {
  Rounded(const Tensor& dy, int64_t multiple) : rows(dy.rows()), columns(dy.dim(1)) {
    const int64_t fit = std::max<int64_t>(1, static_cast<int64_t>(most_rounded) / (2 * rows * multiple)) * multiple;
    step = columns;
    if (fit < columns) step = blocks_for(blocks_for(columns, blocks_for(columns, fit)), multiple) * multiple;
    stride = blocks_for(step, 8) * 8;
  }
  size_t bytes() const { return padded(static_cast<size_t>(rows * stride) * 2); }
  int64_t rows, columns, step, stride;
};

// dx = dy · w over one block of columns of dy after another. More than one: the sum is kept in fp32 between them.
void rounded_dx(Queue& queue, const Tensor& dx, const Tensor& dy, const Tensor& w, bool accumulate) {
  const Rounded r(dy, 256);
  const int64_t k = w.dim(1);
  const bool single = r.step == r.columns;
  const size_t sum_bytes = single ? 0 : padded(static_cast<size_t>(r.rows * k) * sizeof(float));
  const auto part = [&](char* base, int64_t begin) {
    const int64_t width = std::min(r.step, r.columns - begin);
    const Matrix c = single ? matrix(dx) : Matrix{base + r.bytes(), DType::f32, k};
    return Product{.m = r.rows,
                   .n = k,
                   .k = width,
                   .c = c,
                   .a = {base, DType::bf16, r.stride},
                   .b = {data_of<half_t>(w) + begin * k, DType::bf16, w.row_stride()},
                   .accumulate = single ? accumulate : begin > 0};
  };
  // Only alignments count before the scratch is known; all its parts are aligned alike.
  char* const nowhere = nullptr;
  size_t workspace = 0;
  for (int64_t begin = 0; begin < r.columns; begin += r.step) {
    const Plan* plan = plan_of(queue, part(nowhere, begin));
    if (plan == nullptr) {
      return plain_product(queue, {r.rows, k, r.columns, matrix(dx), matrix(dy), matrix(w), accumulate});
    }
    workspace = std::max(workspace, workspace_of(plan));
  }
  char* base = static_cast<char*>(queue.scratch(r.bytes() + sum_bytes + workspace));
  for (int64_t begin = 0; begin < r.columns; begin += r.step) {
    const Product p = part(base, begin);
    convert_rows(queue, reinterpret_cast<half_t*>(base), r.stride, data_of<float>(dy) + begin, dy.row_stride(), r.rows,
                 p.k, false);
    run(queue, *plan_of(queue, p), p, base + r.bytes() + sum_bytes);
  }
  if (!single) {
    convert_rows(queue, data_of<half_t>(dx), dx.row_stride(), reinterpret_cast<const float*>(base + r.bytes()), k,
                 r.rows, k, accumulate);
  }
}

// dw += dyᵀ · x, the rows of dw that belong to one block of columns of dy after another.
void rounded_dw(Queue& queue, const Tensor& dw, const Tensor& dy, const Tensor& x) {
  const Rounded r(dy, 256);
  const int64_t k = x.dim(1);
  const auto part = [&](char* base, int64_t begin) {
    return Product{.m = std::min(r.step, r.columns - begin),
                   .n = k,
                   .k = r.rows,
                   .c = {data_of<float>(dw) + begin * k, DType::f32, k},
                   .a = {base, DType::bf16, r.stride, true},
                   .b = matrix(x),
                   .accumulate = true,
                   .cut = true};
  };
  char* const nowhere = nullptr;
  size_t workspace = 0;
  for (int64_t begin = 0; begin < r.columns; begin += r.step) {
    const Plan* plan = plan_of(queue, part(nowhere, begin));
    if (plan == nullptr) {
      return plain_product(queue, {r.columns, k, r.rows, matrix(dw), matrix(dy, true), matrix(x), true});
    }
    workspace = std::max(workspace, workspace_of(plan));
  }
  char* base = static_cast<char*>(queue.scratch(r.bytes() + workspace));
  for (int64_t begin = 0; begin < r.columns; begin += r.step) {
    const Product p = part(base, begin);
    convert_rows(queue, reinterpret_cast<half_t*>(base), r.stride, data_of<float>(dy) + begin, dy.row_stride(), r.rows,
                 p.m, false);
    run(queue, *plan_of(queue, p), p, base + r.bytes());
  }
}

// Whether one launch of the products of few rows takes all of these, which are at most so many.
bool are_skinny(const Tensor& x, std::initializer_list<LinearOf> products, size_t most) {
  return products.size() <= most &&
         std::all_of(products.begin(), products.end(), [&](const LinearOf& p) { return is_skinny(p.y, x, p.w); });
}

}  // namespace

void linear(Stream& stream, Tensor y, Tensor x, Tensor w) {
  Queue& queue = stream.queue();
  if (w.rows() == 1) {
    narrow_linear(queue, y, x, w);
  } else if (is_skinny(y, x, w)) {
    skinny_linear(stream, x, {{y, w}});
  } else if (x.dtype() == DType::f32 && x.rows() <= few_rows) {
    plain_product(queue, {x.rows(), w.rows(), w.dim(1), matrix(y), matrix(x), matrix(w, true)});
  } else {
    multiply(queue, {x.rows(), w.rows(), w.dim(1), matrix(y), matrix(x), matrix(w, true)});
  }
  check_launch(queue, "linear");
}

void linear_many(Stream& stream, Tensor x, std::initializer_list<LinearOf> products) {
  if (products.size() == 0) return;
  if (are_skinny(x, products, most_skinny)) {
    skinny_linear(stream, x, products);
    check_launch(stream.queue(), "linear_many");
  } else {
    Branch branch(stream, products.size() > 1 && leaves_room(x.rows()));
    for (const LinearOf* p = products.begin() + 1; p != products.end(); p++) {
      cuda::linear(branch.stream(), p->y, x, p->w);
    }
    cuda::linear(stream, products.begin()->y, x, products.begin()->w);
    branch.join();
  }
}

void linear_swiglu(Stream& stream, Tensor y, Tensor gate_up, Tensor x, Tensor w_gate, Tensor w_up,
                   std::initializer_list<LinearOf> others) {
  const int64_t f = y.dim(1);
  if (f > 1 && y.dtype() == DType::bf16 && is_skinny(y, x, w_gate) && is_skinny(y, x, w_up) &&
      are_skinny(x, others, most_skinny - 2)) {
    skinny_swiglu(stream, x, {y, gate_up, w_gate, w_up}, others);
    check_launch(stream.queue(), "linear_swiglu");
    return;
  }
  cuda::linear(stream, gate_up.columns(0, f), x, w_gate);
  cuda::linear(stream, gate_up.columns(f, 2 * f), x, w_up);
  cuda::swiglu(stream, y, gate_up);
  cuda::linear_many(stream, x, others);
}

void linear_dx(Stream& stream, Tensor dx, Tensor dy, Tensor w, bool accumulate) {
  Queue& queue = stream.queue();
  if (w.rows() == 1) {
    narrow_linear_dx(queue, dx, dy, w, accumulate);
  } else if (dy.dtype() != w.dtype()) {
    rounded_dx(queue, dx, dy, w, accumulate);
  } else {
    multiply(queue, {dy.rows(), w.dim(1), w.rows(), matrix(dx), matrix(dy), matrix(w), accumulate});
  }
  check_launch(queue, "linear_dx");
}

void linear_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x) {
  Queue& queue = stream.queue();
  if (dw.rows() == 1) {
    narrow_linear_dw(queue, dw, dy, x);
  } else if (dy.dtype() != x.dtype()) {
    rounded_dw(queue, dw, dy, x);
  } else {
    multiply(queue, {dw.rows(), dw.dim(1), dy.rows(), matrix(dw), matrix(dy, true), matrix(x), true, true});
  }
  check_launch(queue, "linear_dw");
}

}  // namespace furlong::cuda
