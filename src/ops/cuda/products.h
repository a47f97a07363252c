// The library's products and our own kernels beside it, as linear.cu chooses between them.
#pragma once
#include "ops/cuda/blas.h"
#include "ops/linear.h"

namespace furlong::cuda {

// Any shape and alignment, a and b in f32 or bf16 each; every number is one sum over k in order.
void plain_product(Queue&, const Product&);

// y (T,N) = x (T,K) · w (N,K)ᵀ in bf16 for the few rows of decoding, at the speed of reading w; several in one launch.
constexpr size_t most_skinny = 4;  // weights in one launch
bool is_skinny(const Tensor& y, const Tensor& x, const Tensor& w);
void skinny_linear(Stream&, const Tensor& x, std::initializer_list<LinearOf> products);
// One product, by a kernel that lets the next one read at once what the kernels before both wrote (kernel.cuh).
void skinny_linear_ahead(Stream&, const Tensor& y, const Tensor& x, const Tensor& w);
// gate_up (T,2F) = x · w_gateᵀ | x · w_upᵀ and act (T,F) = swiglu(gate_up), F > 1, beside other products.
struct SkinnySwiglu {
  Tensor act, gate_up, w_gate, w_up;
};
void skinny_swiglu(Stream&, const Tensor& x, const SkinnySwiglu&, std::initializer_list<LinearOf> others);

// The three products of a weight with one row, N = 1.
void narrow_linear(Queue&, const Tensor& y, const Tensor& x, const Tensor& w);
void narrow_linear_dx(Queue&, const Tensor& dx, const Tensor& dy, const Tensor& w, bool accumulate);
void narrow_linear_dw(Queue&, const Tensor& dw, const Tensor& dy, const Tensor& x);

}  // namespace furlong::cuda
