// Single-threaded matrix kernels on raw pointers. Each output element is one fixed chain of operations over its own row
// and column, whatever the block it was computed in: a row's result is the same alone, batched, or on several threads.
#pragma once
#include "ops/cpu/simd.h"

namespace furlong::cpu::FURLONG_ISA {

// C (M,N) [+]= A (M,K) · B (N,K)ᵀ, both with contiguous K. Per element: chains of 32 multiply-adds (`chain`, panels.h)
// over K, each begun from 0, added up in order.
// packed: B from pack_nt (packed_columns), which is then read in its place, or null; A is of B's type then. after: what
// will be wanted after B and is asked for from memory meanwhile, as many bytes as B has, packed where B is; or null.
template <class A, class B, class C>
void gemm_nt(int64_t m, int64_t n, int64_t k, const A* a, int64_t lda, const B* b, int64_t ldb, C* c, int64_t ldc,
             bool accumulate = false, const void* packed = nullptr, const void* after = nullptr);

// The same for one A (M,K) and several B (N,K) after each other. Between its making and its last product, nothing else
// of this file may be called on the thread.
template <class A, class C>
class RowsNt {
 public:
  RowsNt(int64_t m, int64_t k, const A* a, int64_t lda);
  void times(int64_t n, const A* b, int64_t ldb, C* c, int64_t ldc, const void* after = nullptr) const;

 private:
  int64_t m_, k_, lda_;
  const A* a_;
  const void* turned_ = nullptr;
};

// Bytes of B (N,K) in the order in which gemm_nt multiplies its columns by rows of the same type. bf16 stays bf16, and
// is widened as it is read where there are no dot products of it; 0 where that has no vector instructions.
template <class B>
int64_t packed_size(int64_t n, int64_t k);
// The columns [begin, end) of B (N,K), contiguous, into `to` for all of it. begin is a multiple of 64.
template <class B>
void pack_nt(void* to, const B* b, int64_t k, int64_t begin, int64_t end);
// From column `begin` on, a multiple of 64.
template <class B>
const void* packed_columns(const void* packed, int64_t k, int64_t begin);

// C (M,N) [+]= A (M,K) · B (K,N) with contiguous N; element (i,p) of A at a[i·row + p·column], so that Aᵀ works too.
// Per element: one chain of multiply-adds over p = 0, 1, …, starting from 0 or from C. Where bf16 meets bf16 and the
// instruction set has dot products of pairs, a chain is one of those, in both.
template <class A, class B, class C>
void gemm_nn(int64_t m, int64_t n, int64_t k, const A* a, int64_t row, int64_t column, const B* b, int64_t ldb, C* c,
             int64_t ldc, bool accumulate = false);

}  // namespace furlong::cpu::FURLONG_ISA
