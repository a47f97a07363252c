#include "ops/cuda/blas.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>

namespace furlong::cuda {

// The library counts in columns, so a row-major c = a · b is asked of it as cᵀ = bᵀ · aᵀ: its A is our b, its B our a.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulHeuristicResult_t found{};
  bool usable = false;

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;
  ~Plan() {
    for (const auto layout : {a, b, c}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
    if (product != nullptr) cublasLtMatmulDescDestroy(product);
  }
};

namespace {

constexpr size_t most_workspace = size_t{32} << 20;
constexpr size_t most_plans = 8192;  // packed batches have many row counts; past this all are made anew

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const Exit code = status == CUBLAS_STATUS_ALLOC_FAILED ? Exit::resources : Exit::lost;
  throw Error(code, std::string("cuBLASLt error in ") + what + ": " + cublasLtGetStatusString(status) +
                        ". The last checkpoint is untouched; start again to resume from it.");
}

using Key = std::array<int64_t, 10>;

struct Library {
  Library() { check(cublasLtCreate(&handle), "cublasLtCreate"); }
  ~Library() {
    plans.clear();
    cublasLtDestroy(handle);
  }
  cublasLtHandle_t handle = nullptr;
  std::map<Key, Plan> plans;
};

Library& library(Queue& queue) {
  if (queue.blas == nullptr) queue.blas = std::make_shared<Library>();
  return *static_cast<Library*>(queue.blas.get());
}

uint32_t alignment(const Matrix& m) {
  const auto address = reinterpret_cast<uintptr_t>(m.data);
  uint32_t bytes = 256;
  while (address % bytes != 0) bytes /= 2;
  return bytes;
}

cudaDataType_t type_of(DType dtype) { return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

Key key_of(const Product& p) {
  const auto bit = [](bool b, int at) { return static_cast<int64_t>(b) << at; };
  const int64_t flags = bit(p.a.transposed, 0) | bit(p.b.transposed, 1) | bit(p.accumulate, 2) | bit(p.cut, 3) |
                        bit(p.a.dtype == DType::bf16, 4) | bit(p.c.dtype == DType::bf16, 5);
  return {p.m, p.n, p.k, p.c.stride, p.a.stride, p.b.stride, flags, alignment(p.c), alignment(p.a), alignment(p.b)};
}

template <class T>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t name, const T& value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference, name, &value, sizeof value), "setting a preference");
}

// A matrix of our rows and columns before transposition, as the library sees it.
cublasLtMatrixLayout_t layout_of(const Matrix& m, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type_of(m.dtype), static_cast<uint64_t>(m.transposed ? rows : columns),
                                   static_cast<uint64_t>(m.transposed ? columns : rows), m.stride),
        "cublasLtMatrixLayoutCreate");
  return layout;
}

void describe(Plan& plan, const Product& p) {
  check(cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  const auto transpose = [&](cublasLtMatmulDescAttributes_t name, bool transposed) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescSetAttribute(plan.product, name, &operation, sizeof operation), "describing a product");
  };
  transpose(CUBLASLT_MATMUL_DESC_TRANSA, p.b.transposed);
  transpose(CUBLASLT_MATMUL_DESC_TRANSB, p.a.transposed);
  plan.a = layout_of(p.b, p.k, p.n);
  plan.b = layout_of(p.a, p.m, p.k);
  plan.c = layout_of(p.c, p.m, p.n);
}

void choose(cublasLtHandle_t handle, Plan& plan, const Product& p) {
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, most_workspace);
  // Parts of a sum meet in the workspace and are added by one thread in order, or there are none.
  const uint32_t schemes = p.cut ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_NONE;
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment(p.b));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment(p.a));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment(p.c));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment(p.c));
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, plan.product, plan.a, plan.b, plan.c, plan.c,
                                                               preference, 1, &plan.found, &count);
  cublasLtMatmulPreferenceDestroy(preference);
  plan.usable = status == CUBLAS_STATUS_SUCCESS && count == 1 && plan.found.state == CUBLAS_STATUS_SUCCESS;
}

}  // namespace

const Plan* plan_of(Queue& queue, const Product& p) {
  Library& lib = library(queue);
  if (lib.plans.size() >= most_plans) lib.plans.clear();
  const auto [at, fresh] = lib.plans.try_emplace(key_of(p));
  if (fresh) {
    describe(at->second, p);
    choose(lib.handle, at->second, p);
  }
  return at->second.usable ? &at->second : nullptr;
}

size_t workspace_of(const Plan* plan) { return plan == nullptr ? 0 : plan->found.workspaceSize; }

void run(Queue& queue, const Plan& plan, const Product& p, void* workspace) {
  const float one = 1, beta = p.accumulate ? 1 : 0;
  check(cublasLtMatmul(library(queue).handle, plan.product, &one, p.b.data, plan.a, p.a.data, plan.b, &beta, p.c.data,
                       plan.c, p.c.data, plan.c, &plan.found.algo, workspace, plan.found.workspaceSize, queue.stream),
        "cublasLtMatmul");
}

}  // namespace furlong::cuda
